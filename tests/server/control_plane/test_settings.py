"""Trace and log settings: what holds, for whom, and what is no setting."""

import asyncio
import errno
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ringserve.protocol.errors import BadRequest, RingServeError, Unsupported
from ringserve.server.control_plane.log_settings import LogSettings
from ringserve.server.control_plane.trace_settings import Start, TraceSettings
from ringserve.server.control_plane.tracing import TraceFile, Tracing
from ringserve.server.logs.formats import MODEL_LOG
from ringserve.server.messages import Message
from ringserve.server.trace_messages import SetTraces, Trace

START = Start(file="traces.json")


def test_settings_are_texts_but_for_the_level() -> None:
    assert TraceSettings(START).of().described() == {
        "trace_level": ["OFF"],
        "trace_rate": "1000",
        "trace_count": "-1",
        "log_frequency": "0",
        "trace_file": "traces.json",
        "trace_mode": "triton",
    }


def test_a_model_has_its_own_then_the_shared_then_those_of_the_start() -> None:
    settings = TraceSettings(START)
    settings.update("", {"trace_rate": "9", "trace_count": "5"})
    assert settings.of("m").described()["trace_rate"] == "9"
    settings.update("m", {"trace_rate": "7"})
    settings.update("", {"trace_rate": "11"})
    assert settings.of("m").described()["trace_rate"] == "7"
    assert settings.of("m").described()["trace_count"] == "5"
    assert settings.of().described()["trace_rate"] == "11"
    assert settings.update("m", {"trace_rate": None}).described()["trace_rate"] == "11"
    assert not settings.models
    assert settings.update("", {"trace_rate": None, "trace_count": None}).described()["trace_rate"] == "1000"
    assert settings.of().count == -1


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"trace_level": ["OFF", "TIMESTAMPS"]}, "Expect only one trace level 'OFF' is specified"),
        ({"trace_level": "OFF"}, "attempt to access JSON non-array as array: trace_level"),
        ({"trace_level": [1]}, "attempt to access JSON non-string as string: trace_level"),
        ({"trace_level": ["LOUD"]}, "trace_level: expected OFF or TIMESTAMPS, got 'LOUD'"),
        ({"trace_rate": 5}, "attempt to access JSON non-string as string: trace_rate"),
        ({"trace_rate": "many"}, "Unable to parse 'trace_rate', got: many"),
        ({"trace_rate": ""}, "Unable to parse 'trace_rate', got: "),
        ({"trace_rate": "0"}, "Attempting to set invalid trace setting :sample rate must be non-zero"),
        (
            {"trace_rate": "99999999999"},
            "Unable to parse 'trace_rate', value is out of range [ 0, 4294967295 ], got: 99999999999",
        ),
        ({"trace_count": "-2"}, "Unable to parse 'trace_count'. Expecting value >= -1, got:-2"),
        ({"trace_count": "9" * 21}, f"Unable to parse 'trace_count', got: {'9' * 21}"),
        (
            {"log_frequency": "-1"},
            "Unable to parse 'log_frequency', value is out of range [ 0, 4294967295 ], got: -1",
        ),
    ],
)
def test_what_is_no_setting_changes_nothing(wanted: dict[str, Any], said: str) -> None:
    settings = TraceSettings(START)
    with pytest.raises(BadRequest) as caught:
        settings.update("m", {"trace_count": "3", **wanted})
    assert caught.value.message == said
    assert settings == TraceSettings(START)


@pytest.mark.parametrize("wanted", [{"trace_file": "x"}, {"trace_file": None}, {"trace_level": ["TENSORS"]}])
def test_what_this_server_does_not_do_is_unsupported(wanted: dict[str, Any]) -> None:
    with pytest.raises(Unsupported):
        TraceSettings(START).update("", wanted)


def test_what_is_unknown_is_passed_over_as_is_an_empty_level() -> None:
    settings = TraceSettings(START)
    assert settings.update("", {"unknown": 1, "trace_mode": "triton", "trace_level": []}) == TraceSettings(START).of()


def test_a_count_goes_down_where_it_was_set_and_ends_the_tracing() -> None:
    settings = TraceSettings(START)
    settings.update("", {"trace_level": ["TIMESTAMPS"], "trace_rate": "3"})
    settings.update("m", {"trace_count": "2"})
    assert settings.rates() == (3, {"m": 3})
    assert [settings.traced("m") for _ in range(3)] == [True, True, False]
    assert settings.of("m").described()["trace_count"] == "0"
    assert settings.rates() == (3, {"m": 0})
    assert settings.traced("another")
    assert settings.of().count == -1


def test_a_count_of_the_start_goes_down_too() -> None:
    settings = TraceSettings(Start("TIMESTAMPS", 1, 1, file="f"))
    assert settings.rates() == (1, {})
    assert settings.traced("m")
    assert settings.rates() == (0, {})
    assert settings.update("", {"trace_count": None}).count == 1


def test_without_a_file_nothing_is_traced() -> None:
    settings = TraceSettings(Start())
    with pytest.raises(BadRequest, match="trace file name is not given"):
        settings.update("", {"trace_level": ["TIMESTAMPS"]})
    assert settings.update("", {"trace_level": ["OFF"]}).every == 0


# ---- traces


def trace(model: str = "m", version: str = "1", begun: bool = True) -> Trace:
    return Trace(model, version, "r", (1, 2, 3, 4, 5, 6, 7) if begun else (1, 2, 0, 0, 0, 0, 7))


def test_a_file_is_json_whenever_it_is_looked_at(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "t.json")
    file.add([(trace(), 0)])
    first = json.loads((tmp_path / "t.json").read_text())
    file.add([(trace(version="1.0", begun=False), 0), (trace(), 0)])
    everything = json.loads((tmp_path / "t.json").read_text())
    assert first[0] == {"id": 1, "model_name": "m", "model_version": 1, "request_id": "r"}
    assert [stamp["name"] for stamp in first[1]["timestamps"]] == [
        *("REQUEST_START", "QUEUE_START", "COMPUTE_START", "COMPUTE_INPUT_END"),
        *("COMPUTE_OUTPUT_START", "COMPUTE_END", "REQUEST_END"),
    ]
    assert everything[:2] == first
    assert everything[2]["model_version"] == "1.0"
    assert [stamp["ns"] for stamp in everything[3]["timestamps"]] == [1, 2, 7]
    assert [each["id"] for each in everything] == [1, 1, 2, 2, 3, 3]


def test_with_a_frequency_files_are_numbered(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "t.json")
    file.add([(trace(), 2)] * 5)
    lengths = [len(json.loads((tmp_path / f"t.json.{number}").read_text())) for number in range(3)]
    assert lengths == [4, 4, 2]
    file.add([(trace(), 0)])
    assert len(json.loads((tmp_path / "t.json").read_text())) == 2


def versions(file: TraceFile) -> list[int]:
    return [each["model_version"] for each in json.loads(file.path.read_bytes()) if "model_version" in each]


@pytest.mark.parametrize(
    "spoil", [Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_bytes(b"[torn")]
)
def test_a_file_that_somebody_moves_or_empties_is_begun_anew(tmp_path: Path, spoil: Callable[[Path], object]) -> None:
    file = TraceFile(tmp_path / "t.json")
    file.add([(trace(version="1"), 0)])
    spoil(file.path)
    file.add([(trace(version="2"), 0)])
    assert versions(file) == [2]


def test_a_disk_that_is_full_costs_only_the_traces_that_came_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = TraceFile(tmp_path / "t.json")
    file.add([(trace(version="1"), 0)])
    write = os.pwrite

    def half_of_it(fd: int, data: memoryview, at: int) -> int:
        if len(data) == 1:
            return write(fd, data, at)  # there is room for one byte more
        write(fd, data[: len(data) // 2], at)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", half_of_it)
    with pytest.raises(OSError, match="No space left"):
        file.add([(trace(version="2"), 0)])
    monkeypatch.undo()
    file.add([(trace(version="3"), 0)])
    assert versions(file) == [1, 3]


def test_nobody_waits_for_the_reader_of_a_pipe(tmp_path: Path) -> None:
    file = TraceFile(tmp_path / "t.json")
    os.mkfifo(file.path)
    for _ in range(2):
        with pytest.raises(OSError, match="it is no file"):
            file.add([(trace(version="1"), 0)])
    file.path.unlink()
    file.add([(trace(version="2"), 0)])
    assert versions(file) == [2]


def test_front_ends_are_told_of_changes_and_that_a_count_is_used_up(tmp_path: Path) -> None:
    async def play() -> None:
        tracing = Tracing(Start(file=str(tmp_path / "t.json")), lambda model: model == "m")
        told: list[Message] = []

        async def tell_all(make: Any, fds: Any) -> None:
            told.append(make(len(told)))

        tracing.tell_all = tell_all
        await tracing.update("", {"trace_count": "8"})
        assert told == []
        await tracing.update("m", {"trace_level": ["TIMESTAMPS"], "trace_rate": "2", "trace_count": "1"})
        assert told == [SetTraces(0, 0, {"m": 2})]
        tracing.heard([trace(), trace()], 0)
        await tracing.close()
        assert len(json.loads((tmp_path / "t.json").read_text())) == 2
        assert told[1:] == [SetTraces(1, 0, {"m": 0})]
        fresh: list[Message] = []
        tracing.equip(lambda message, fds: fresh.append(message), 9)
        assert fresh == [SetTraces(9, 0, {"m": 0})]
        with pytest.raises(BadRequest, match="Request for unknown model : nobody"):
            await tracing.update("nobody", {})

    asyncio.run(play())


def test_a_file_that_cannot_be_written_is_a_line_of_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        tracing = Tracing(Start("TIMESTAMPS", 1, file=str(tmp_path / "no" / "t.json")), lambda model: True)
        tracing.heard([trace()], 3)
        await tracing.close()
        said = [record.getMessage() for record in caplog.records]
        assert said[0].startswith("3 requests were not traced")
        assert "cannot be written" in said[1]

    asyncio.run(play())


# ---- logs


@pytest.fixture
def logs() -> Any:
    level = logging.getLogger("ringserve").level
    yield LogSettings()
    logging.getLogger("ringserve").setLevel(level)


def record(level: int, name: str = "ringserve.x") -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, "said", (), None)


def test_each_kind_of_line_can_be_switched_off_but_what_models_print(logs: LogSettings) -> None:
    kinds = {"log_info": logging.INFO, "log_warning": logging.WARNING, "log_error": logging.ERROR}
    for kind, level in kinds.items():
        assert logs.filter(record(level))
        assert logs.update({kind: False})[kind] is False
        assert not logs.filter(record(level))
        assert logs.filter(record(level, MODEL_LOG))
    assert logs.filter(record(logging.CRITICAL))


def test_verbose_is_for_debugging(logs: LogSettings) -> None:
    assert not logs.filter(record(logging.DEBUG))
    logs.update({"log_verbose_level": 2})
    assert logs.filter(record(logging.DEBUG))
    assert logging.getLogger("ringserve").level == logging.DEBUG
    logs.update({"log_verbose_level": 0, "log_format": "ISO8601", "log_info": None, "unknown": 1})
    assert logging.getLogger("ringserve").level == logging.NOTSET
    assert logs.values == {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "ISO8601",
    }


@pytest.mark.parametrize(
    ("wanted", "status"),
    [
        ({"log_info": "yes"}, 400),
        ({"log_verbose_level": -1}, 400),
        ({"log_verbose_level": "1"}, 400),
        ({"log_verbose_level": True}, 400),
        ({"log_verbose_level": 2**32}, 400),
        ({"log_format": 5}, 400),
        ({"log_format": "other"}, 400),
        ({"log_file": ""}, 501),
    ],
)
def test_what_is_no_log_setting_changes_nothing(logs: LogSettings, wanted: dict[str, Any], status: int) -> None:
    before = dict(logs.values)
    with pytest.raises(RingServeError) as caught:
        logs.update({"log_error": False, **wanted})
    assert caught.value.http_status == status
    assert logs.values == before

"""A line for every request, in TorchServe's format, without anything secret and with nothing that a client could forge."""

import json
import re
from collections.abc import Callable
from typing import Any

import pytest

from ringserve.server.logs.access import ENTRIES_MAX, TARGET_CHARS_MAX, AccessLog, shown_peer, shown_target
from ringserve.server.logs.writer import Writer

PEER = ("127.0.0.1", 54321)


class Lines:
    def __init__(self) -> None:
        self.text = ""

    def write(self, lines: bytes) -> None:
        self.text += lines.decode()

    def close(self) -> None:
        pass


class Log:
    """An access log whose timer is rung by hand."""

    def __init__(self, *, as_json: bool = False) -> None:
        self.target = Lines()
        self.timers: list[Callable[[], None]] = []
        writer = Writer("test")
        self.access = AccessLog(
            writer.outlet("access_log.log", self.target),
            as_json=as_json,
            call_later=lambda after_s, ring: self.timers.append(ring),
            close=writer.close,
        )

    def lines(self) -> list[str]:
        self.access.close()
        return self.target.text.splitlines()


def line_of(*entry: Any, as_json: bool = False) -> str:
    log = Log(as_json=as_json)
    log.access.add(*entry)
    (line,) = log.lines()
    return line


def test_a_line_is_torchserves() -> None:
    line = line_of(PEER, "GET", "/ping", 200, 0.0069)
    when, rest = line.split(" - ")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3}", when)
    assert rest == '/127.0.0.1:54321 "GET /ping HTTP/1.1" 200 6'


def test_a_line_of_json_has_the_same_in_fields() -> None:
    said = json.loads(line_of(PEER, "POST", "/predictions/a?x=1", 404, 0.001234567, 'id-"1', as_json=True))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said.pop("time"))
    assert said == {
        "level": "INFO",
        "logger": "ACCESS_LOG",
        "message": "POST /predictions/a?x=*** HTTP/1.1",
        "remote": "127.0.0.1:54321",
        "method": "POST",
        "path": "/predictions/a?x=***",
        "status": 404,
        "took_ms": 1.234,
        "request_id": 'id-"1',
    }


def test_requests_are_written_together_after_a_while_or_when_there_are_many() -> None:
    log = Log()
    for _ in range(ENTRIES_MAX - 1):
        log.access.add(PEER, "GET", "/ping", 200, 0)
    assert len(log.timers) == 1, "one timer for all of them"
    log.access._outlet._writer.flush()
    assert log.target.text == ""
    log.access.add(PEER, "GET", "/ping", 200, 0)
    log.access.add(PEER, "GET", "/late", 200, 0)
    assert len(log.timers) == 2
    log.timers[0]()
    assert len(log.lines()) == ENTRIES_MAX + 1


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/ping", "/ping"),
        ("/models?limit=5&next_page_token=10", "/models?limit=5&next_page_token=10"),
        (
            "/models?url=https%3A%2F%2Fu:pw@host%2Fa.mar%3FX-Amz-Signature%3Ds&initial_workers=1",
            "/models?url=***&initial_workers=1",
        ),
        ("/ping?token=5ecret&5ecret&=5ecret", "/ping?token=***&***&=***"),
        ("/ping?", "/ping?***"),
    ],
)
def test_of_a_query_only_harmless_values_are_shown(target: str, shown: str) -> None:
    assert shown_target(target) == shown


def test_nobody_forges_a_line_nor_steers_a_terminal() -> None:
    forged = '/a" 200 0\n2026-01-01T00:00:00,000 - /10.0.0.1:1 "GET /\x1b[2J\x85\u2028é\\'
    line = line_of(PEER, 'GET"\r\n', forged, 404, 0)
    assert line.isprintable()
    assert line.isascii()
    assert line.endswith(' HTTP/1.1" 404 0')
    assert line.count('"') - line.count('\\"') == 2
    said = line_of(PEER, "GET\n", forged, 404, 0, "\n\x1b", as_json=True)
    assert said.isprintable()
    assert said.isascii()
    assert json.loads(said)["status"] == 404


def test_a_long_target_is_cut() -> None:
    assert len(shown_target("/" + "a" * 100_000)) <= TARGET_CHARS_MAX + 3
    assert "secret" not in shown_target("/a?" + "b" * TARGET_CHARS_MAX + "secret")


@pytest.mark.parametrize(
    ("peer", "shown"),
    [(PEER, "/127.0.0.1:54321"), (("::1", 80, 0, 0), "/[::1]:80"), ("", "/unix"), (None, "/unix")],
)
def test_a_client_is_shown_as_java_does(peer: Any, shown: str) -> None:
    assert shown_peer(peer) == shown


def test_texts_of_requests_are_not_kept_for_ever() -> None:
    log = Log()
    for number in range(20_000):
        log.access.add(("10.0.0.1", number), "GET", f"/{number}", 404, 0)
    assert len(log.access._requests) < 10_000
    assert len(log.access._peers) < 10_000
    assert len(log.lines()) == 20_000

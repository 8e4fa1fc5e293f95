"""What a snapshot says can be read again, whoever wrote it, and whatever is wrong with it is a sentence."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.server.snapshots.document import (
    PLACEMENT_KEYS,
    SnapshotError,
    State,
    VersionRecord,
    parse_snapshot,
    parse_state,
    read_snapshot,
    render_state,
    write_snapshot,
)

TORCHSERVE = Path(__file__).parent / "torchserve-0.12-shutdown.cfg"
DIGITS = VersionRecord("digits", "1.0", "digits.mar", default=True, min_workers=1, max_workers=2)

names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12)
numbers = st.none() | st.integers(1, 1000)
plain_values = st.text(st.characters(codec="utf-8"), max_size=8) | st.integers(0, 9) | st.booleans()
as_torchserve_writes = st.builds(
    VersionRecord,
    names,
    names,
    names.filter(lambda name: "/" not in name),
    st.booleans(),
    numbers,
    st.none(),
    numbers,
    numbers,
    numbers,
    numbers,
)
as_ours = st.builds(
    replace,
    as_torchserve_writes,
    ours=st.just(True),
    url=names,
    handler=names | st.just(""),
    queue_timeout_s=numbers,
    remote=st.booleans(),
    dropped=st.booleans(),
    scaled=st.booleans(),
    kept=st.booleans(),
    named=st.booleans(),
    pinned=st.booleans(),
    lost=st.booleans(),
    placement=st.dictionaries(st.sampled_from(PLACEMENT_KEYS), plain_values, max_size=2),
    devices=st.lists(names, max_size=2).map(tuple),
)


def parse(models: Any, **more: Any) -> State:
    return parse_state(orjson.dumps({"name": "x", "modelCount": 1, "models": models, **more}).decode())


def reason(**values: Any) -> str:
    """Why a version with these values is not taken."""
    [problem] = parse({"digits": {"1.0": {"marName": "digits.mar", **values}}}).problems
    assert (problem.model, problem.version) == ("digits", "1.0")
    return problem.reason


@given(
    st.lists(as_torchserve_writes | as_ours, unique_by=lambda each: (each.model, each.version), max_size=5),
    st.dictionaries(names.filter(lambda name: name != "model_snapshot"), names, max_size=3),
)
def test_what_is_written_is_read_again(records: list[VersionRecord], properties: dict[str, str]) -> None:
    text = write_snapshot(State(tuple(records)), list(properties.items()), "today")
    snapshot = parse_snapshot(text)
    by_name = {(each.model, each.version): each for each in snapshot.state.records}
    assert by_name == {(each.model, each.version): each for each in records}
    assert snapshot.state.problems == ()
    assert snapshot.properties == properties


@given(st.text())
def test_any_text_is_a_snapshot_or_a_sentence(text: str) -> None:
    for parsed in (parse_snapshot, parse_state):
        try:
            parsed(text)
        except SnapshotError as error:
            assert "expected" in str(error)


def test_a_file_torn_at_any_byte_is_not_read(tmp_path: Path) -> None:
    records = (replace(DIGITS, ours=True, handler="a\n:b"), replace(DIGITS, version="2.0", default=False))
    whole = write_snapshot(State(records), [("model_store", "/models"), ("ümlaut", " = ")], "today").encode()
    path = tmp_path / "torn.cfg"
    for size in range(len(whole) - 1):  # without its last line's end it is whole
        path.write_bytes(whole[:size])
        with pytest.raises(SnapshotError, match=r"torn\.cfg: "):
            read_snapshot(path)


@given(st.integers(0), st.integers(0, 255))
def test_a_byte_that_was_changed_is_read_or_a_sentence(at: int, byte: int) -> None:
    data = bytearray(TORCHSERVE.read_bytes())
    data[at % len(data)] = byte
    try:
        parse_snapshot(data.decode("latin-1"))
    except SnapshotError as error:
        assert "expected" in str(error)


def test_a_snapshot_of_torchserve_is_read() -> None:
    snapshot = read_snapshot(TORCHSERVE)
    records = {(each.model, each.version): each for each in snapshot.state.records}
    assert records["light", "2.0"] == VersionRecord(
        "light", "2.0", "light-2.mar", True, 2, 2, 4, 50, 120, 120, "python"
    )
    assert records["light", "1.0"].default is False
    assert records["renamed", "1.0"].mar_name == "other.mar"
    assert records["yamled", "1.0"].response_timeout_s == 77
    assert snapshot.properties["tsConfigFile"] == "/home/model-server/config.properties"
    assert snapshot.state.name == "20261120185700268-shutdown.cfg"
    assert snapshot.state.problems == ()


def test_kserves_minimal_one_is_read() -> None:
    minimal = (
        '{"name":"startup.cfg","modelCount":1,"models":{"mnist":{"1.0":{"defaultVersion":true,"marName":"mnist.mar",'
        '"minWorkers":1,"maxWorkers":5,"batchSize":1,"maxBatchDelay":10,"responseTimeout":120}}}}'
    )
    [record] = parse_state(minimal).records
    assert record == VersionRecord("mnist", "1.0", "mnist.mar", True, 1, 5, 1, 10, 120)
    assert not record.ours


def test_what_torchserve_reads_has_its_keys_in_its_order_and_ours_in_one_of_its_own() -> None:
    everything = replace(
        DIGITS,
        batch_size=1,
        batch_wait_ms=100,
        response_timeout_s=120,
        startup_timeout_s=120,
        ours=True,
        url="digits.mar",
    )
    written = orjson.loads(render_state(State((everything,), name="20261120071355459-startup.cfg", created_ms=5)))
    assert list(written) == ["name", "modelCount", "created", "models"]
    assert list(written["models"]["digits"]["1.0"]) == [
        "defaultVersion",
        "marName",
        "minWorkers",
        "maxWorkers",
        "batchSize",
        "maxBatchDelay",
        "responseTimeout",
        "startupTimeout",
        "runtimeType",
        "ringserve",
    ]


def test_what_torchserve_could_not_restore_is_not_among_its_models() -> None:
    lost = replace(DIGITS, version="2.0", lost=True, ours=True)
    nested = replace(DIGITS, version="3.0", mar_name="digits/3.0/any.mar", dropped=True, ours=True)
    written = orjson.loads(render_state(State((DIGITS, lost, nested))))
    assert written["modelCount"] == 1
    assert list(written["models"]["digits"]) == ["1.0"]
    assert list(written["ringserve"]["notRestored"]["digits"]) == ["2.0"]
    assert list(written["ringserve"]["repository"]["digits"]) == ["3.0"]


def test_names_that_are_no_text_do_not_keep_the_others_from_being_written() -> None:
    broken = replace(DIGITS, version="2.0", mar_name="\udcff.mar", ours=True, url="\udcff.mar")
    assert {each.version for each in parse_state(render_state(State((DIGITS, broken)))).records} == {"1.0", "2.0"}


def test_one_version_that_makes_no_sense_leaves_the_others_alone() -> None:
    state = parse({"digits": {"1.0": {"marName": "digits.mar"}, "2.0": 7}, "other": {"1.0": {"marName": ["x"]}}})
    assert [each.name for each in state.records] == ["model digits version 1.0"]
    assert {each.model: each.reason for each in state.problems} == {
        "digits": "expected a JSON object, got 7",
        "other": "marName: expected text, got ['x']",
    }


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"marName": ""}, "marName: expected the name of an archive in the model store, got none"),
        ({"minWorkers": -1}, "minWorkers: expected a whole number from 0 to 1024, got -1"),
        ({"maxWorkers": 1e9}, "maxWorkers: expected a whole number from 0 to 1024, got 1000000000"),
        ({"minWorkers": 3, "maxWorkers": 2}, "maxWorkers: expected 3 (minWorkers) or more, got 2"),
        ({"batchSize": 0}, "batchSize: expected a whole number from 1 to 65536, got 0"),
        ({"batchSize": True}, "batchSize: expected a whole number from 1 to 65536, got True"),
        ({"maxBatchDelay": "soon"}, "maxBatchDelay: expected a whole number from 0 to 2147483647, got 'soon'"),
        ({"responseTimeout": 1.5}, "responseTimeout: expected a whole number from 0 to 2147483647, got 1.5"),
        ({"defaultVersion": "yes"}, "defaultVersion: expected true or false, got 'yes'"),
        ({"ringserve": []}, "ringserve: expected a JSON object, got []"),
        ({"ringserve": {"placement": 1}}, "placement: expected a JSON object, got 1"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_what_was_expected(values: dict[str, Any], sentence: str) -> None:
    assert reason(**values) == sentence


@pytest.mark.parametrize("number", [4, 4.0, "4"])
def test_numbers_are_taken_as_torchserves_parser_takes_them(number: object) -> None:
    [record] = parse({"digits": {"1.0": {"marName": "digits.mar", "batchSize": number}}}).records
    assert record.batch_size == 4


@pytest.mark.parametrize(("count", "restored"), [(0, 0), (-1, 0), (1, 1), (7, 1), (None, 1), ("none", 1), (False, 1)])
def test_a_count_of_none_restores_none_as_in_torchserve(
    count: object, restored: int, caplog: pytest.LogCaptureFixture
) -> None:
    text = orjson.dumps({"modelCount": count, "models": {"digits": {"1.0": {"marName": "digits.mar"}}}}).decode()
    assert len(parse_state(text).records) == restored
    assert ("modelCount says" in caplog.text) == (restored == 0)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a=b\n", "without this key"),
        ("model_snapshot={\n", "does not parse"),
        ("model_snapshot=[]\n", "expected a JSON object, got"),
        ('model_snapshot={"models"\\: []}\n', "models: expected a JSON object"),
    ],
)
def test_a_file_without_a_state_says_what_it_lacks(text: str, sentence: str) -> None:
    with pytest.raises(SnapshotError, match=sentence):
        parse_snapshot(text)


def test_anything_but_a_file_is_a_sentence(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.cfg"):
        with pytest.raises(SnapshotError, match="cannot be read"):
            read_snapshot(path)


def test_a_model_that_makes_no_sense_leaves_the_others_alone() -> None:
    state = parse({"other": None, "digits": {"1.0": {"marName": "digits.mar"}}})
    assert [each.name for each in state.records] == ["model digits version 1.0"]
    [problem] = state.problems
    assert (problem.model, problem.version, problem.reason) == ("other", "all", "expected a JSON object, got None")


@pytest.mark.parametrize("ours", [None, [], {"repository": 7}, {"notRestored": {"other": 7}}])
def test_what_only_we_write_is_not_needed_for_the_rest(ours: object) -> None:
    state = parse_state(
        orjson.dumps({"models": {"digits": {"1.0": {"marName": "digits.mar"}}}, "ringserve": ours}).decode()
    )
    assert [each.name for each in state.records] == ["model digits version 1.0"]


def test_what_the_api_has_sent_away_is_written_and_read_again() -> None:
    state = State((DIGITS,), unregistered={"light.mar": "2f6b", "\udcff.mar": ""})
    assert parse_state(render_state(state)).unregistered == {"light.mar": "2f6b", "?.mar": ""}
    assert parse({}, ringserve={"unregistered": {"a.mar": 7, "b.mar": "1"}}).unregistered == {"b.mar": "1"}

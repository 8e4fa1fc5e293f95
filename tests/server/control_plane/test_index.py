"""The repository index, what a load may bring, and what lies in a folder by a name."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.errors import BadRequest, Internal, RingServeError
from ringserve.server.control_plane.index import (
    NO_WORKERS,
    REASON_CHARACTERS_MAX,
    Indexed,
    State,
    repository_index,
    state_of_workers,
)
from ringserve.server.control_plane.load_request import (
    FILES_MAX,
    LoadRequest,
    check_model_name,
    check_unload_request,
    read_load_request,
    write_files,
)
from ringserve.server.control_plane.model_control import find_model
from ringserve.server.open_inference.control_paths import is_control, needs_management

NAMES = st.sampled_from(["a", "b", "c"])
KNOWN = st.builds(Indexed, NAMES, st.sampled_from(["", "1", "2"]), st.sampled_from(State), st.sampled_from(["", "why"]))


def test_every_version_is_a_line_and_a_model_that_was_never_loaded_is_its_name() -> None:
    known = [
        Indexed("m", "10", State.READY),
        Indexed("m", "2", State.UNAVAILABLE, "unloaded"),
        Indexed("broken", "1", State.UNAVAILABLE, "it does not load"),
    ]
    assert repository_index(known, ["m", "later"]) == [
        {"name": "broken", "version": "1", "state": "UNAVAILABLE", "reason": "it does not load"},
        {"name": "later"},
        {"name": "m", "version": "2", "state": "UNAVAILABLE", "reason": "unloaded"},
        {"name": "m", "version": "10", "state": "READY", "reason": ""},
    ]
    assert repository_index(known, ["later"], ready_only=True) == [
        {"name": "m", "version": "10", "state": "READY", "reason": ""}
    ]


def test_a_version_that_serves_again_is_not_what_it_was_before() -> None:
    known = [Indexed("m", "1", State.UNAVAILABLE, "unloaded"), Indexed("m", "1", State.LOADING)]
    assert [line["state"] for line in repository_index(known, [])] == ["LOADING"]
    assert [line["state"] for line in repository_index([*known, Indexed("m", "1", State.READY)], [])] == ["READY"]


@given(st.lists(KNOWN), st.lists(NAMES))
def test_no_line_comes_twice_and_no_model_is_missing(known: list[Indexed], never: list[str]) -> None:
    lines = repository_index(known, never)
    places = [(line["name"], line.get("version")) for line in lines]
    assert len(set(places)) == len(places)
    assert {line["name"] for line in lines} == {each.name for each in known} | set(never)
    assert all(set(line) in ({"name"}, {"name", "version", "state", "reason"}) for line in lines)


@pytest.mark.parametrize(
    ("ready", "wanted", "reason", "state"),
    [
        (1, 2, "one died", (State.READY, "")),
        (0, 1, "", (State.LOADING, "")),
        (0, 1, None, (State.LOADING, "")),
        (0, 1, "why", (State.UNAVAILABLE, "why")),
        (0, 0, None, (State.UNAVAILABLE, NO_WORKERS)),
    ],
)
def test_the_state_is_that_of_the_workers(ready: int, wanted: int, reason: str | None, state: object) -> None:
    assert state_of_workers(ready, wanted, reason) == state


def test_of_a_long_reason_the_beginning_is_kept() -> None:
    _, reason = state_of_workers(0, 1, "why " * REASON_CHARACTERS_MAX)
    assert reason.startswith("why why")
    assert len(reason) == REASON_CHARACTERS_MAX + len(" ...")


# ---- what a load brings


def b64(text: bytes) -> str:
    return base64.b64encode(text).decode()


def test_a_load_may_bring_a_configuration_and_files() -> None:
    body = {"parameters": {"config": "{}", "file:1/model.py": b64(b"code")}, "other": 1}
    assert read_load_request(body) == LoadRequest("{}", {"1/model.py": b"code"})
    assert read_load_request(None) == read_load_request([]) == read_load_request({}) == LoadRequest()


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        (5, "attempt to get members for non-object: parameters"),
        ({"other": "x"}, "unrecognized load parameter 'other'"),
        ({"other": 1}, "attempt to access JSON non-string as string: other"),
        ({"config": 1}, "attempt to access JSON non-string as string: config"),
        ({"file:x": "?"}, "file:x: expected base64, got something else"),
        ({"file:x": ["?"]}, "attempt to access JSON non-string as string: file:x"),
        ({"config": "x" * ((1 << 20) + 1)}, "config: expected at most 1048576 characters, got 1048577"),
        (
            {f"file:{number}": "" for number in range(FILES_MAX + 1)},
            "parameters: expected at most 1000 files, got more",
        ),
    ],
)
def test_what_a_load_may_not_bring_is_named(parameters: Any, said: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read_load_request({"parameters": parameters})
    assert caught.value.message == said


def test_an_unload_has_no_dependents_to_unload() -> None:
    check_unload_request({"parameters": {"unload_dependents": True, "other": 1}})
    check_unload_request(None)
    with pytest.raises(BadRequest, match="non-boolean as boolean: unload_dependents"):
        check_unload_request({"parameters": {"unload_dependents": "yes"}})


@pytest.mark.parametrize("name", ["", " ", "a/b", "..", "a..b", "a\\b", "a\0b", "n" * 256, "\udcff/"])
def test_a_name_that_is_no_folders_is_refused(name: str) -> None:
    with pytest.raises(BadRequest, match="failed to load '"):
        check_model_name(name)


def test_files_are_written_below_their_folder(tmp_path: Path) -> None:
    write_files(tmp_path / "m", "m", {"1/model.py": b"code", "labels.txt": b"x"})
    assert (tmp_path / "m/1/model.py").read_bytes() == b"code"
    assert (tmp_path / "m/labels.txt").read_bytes() == b"x"


@pytest.mark.parametrize(
    "names",
    [
        *(["../x"], ["/x"], ["1/../../x"], ["."], [""], ["1//x"], ["1/"], ["a\0b"], ["a\\..\\b"], ["n" * 256]),
        *(["/".join(["d"] * 40)], ["1", "1/x"], ["1/x", "1"]),
    ],
)
def test_names_that_lead_elsewhere_or_contradict_each_other_write_nothing_outside(
    tmp_path: Path, names: list[str]
) -> None:
    with pytest.raises(BadRequest, match="failed to load 'm', failed to poll from model repository: Invalid file path"):
        write_files(tmp_path / "uploads" / "m", "m", dict.fromkeys(names, b""))
    outside = [path for path in tmp_path.rglob("*") if not path.is_relative_to(tmp_path / "uploads")]
    assert outside == []


@given(name=st.text(max_size=40))
def test_no_name_of_a_file_leads_out_of_the_folder(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("files")
    try:
        write_files(root / "in" / "m", "m", {name: b"x"})
    except RingServeError:
        pass
    else:
        assert len([path for path in (root / "in" / "m").rglob("*") if path.is_file()]) == 1
    assert [path.name for path in root.iterdir()] in ([], ["in"])


# ---- what lies there by a name


def make_folder(folder: Path) -> None:
    manifest = {"model": {"modelName": "m", "modelVersion": "1.0", "serializedFile": "", "handler": "h.py:f"}}
    (folder / "MAR-INF").mkdir(parents=True)
    (folder / "MAR-INF/MANIFEST.json").write_text(json.dumps(manifest))


def test_an_archive_is_found_by_its_name_and_a_model_with_versions_by_its_folders(tmp_path: Path) -> None:
    (tmp_path / "flat.mar").write_bytes(b"")
    for version in ("1", "2", "10"):
        make_folder(tmp_path / "many" / version)
    flat, many = find_model(tmp_path, "flat"), find_model(tmp_path, "many")
    assert flat is not None
    assert [(each.file, each.version) for each in flat.entries] == [("flat.mar", None)]
    assert many is not None
    assert [each.version for each in many.entries] == ["10"]  # the latest, where nothing is said
    (tmp_path / "many/config.yaml").write_text("version_policy: all")
    many = find_model(tmp_path, "many")
    assert many is not None
    assert [each.version for each in many.entries] == ["1", "2", "10"]
    assert find_model(tmp_path, "nothing") is None


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda root: make_folder(root / "m"), "model appears in two or more repositories"),
        (lambda root: (root / "m.mar").unlink() or root.rmdir(), "the folder cannot be read"),
    ],
)
def test_a_model_that_is_there_twice_or_cannot_be_looked_for_is_not_loaded(
    tmp_path: Path, prepare: Callable[[Path], object], said: str
) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "m.mar").write_bytes(b"")
    prepare(root)
    with pytest.raises(Internal, match=f"failed to load 'm', {said}"):
        find_model(root, "m")


# ---- which requests are the supervisor's


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/v2/repository/index", True),
        ("/v2/repository/models/m/load", True),
        ("/v2/models/stats", True),
        ("/v2/models/m/stats", True),
        ("/v2/models/m/versions/1.0/stats", True),
        ("/v2/trace/setting", True),
        ("/v2/models/m/trace/setting", True),
        ("/v2/logging", True),
        ("/v2/systemsharedmemory/region/r/register", True),
        ("/v2/cudasharedmemory/status", True),
        ("/v2/models/m/versions/1/trace/setting", False),
        ("/v2/models/m/infer", False),
        ("/v2/models/stats/infer", False),
        ("/v2/models/m/other/1/stats", False),
        ("/v2/models/m", False),
        ("/v2", False),
        ("/v2/health/live", False),
        ("/v2/logging/", False),
        ("/predictions/stats", False),
    ],
)
def test_what_is_about_the_server_is_the_supervisors(path: str, wanted: bool) -> None:
    assert is_control(path) is wanted


@pytest.mark.parametrize(
    ("method", "path", "wanted"),
    [
        ("POST", "/v2/repository/models/m/load", True),
        ("POST", "/v2/repository/models/m/load/", True),
        ("POST", "/v2/repository/models/m/unload", True),
        ("POST", "/v2/trace/setting", True),
        ("POST", "/v2/models/m/trace/setting", True),
        ("POST", "/v2/logging", True),
        ("POST", "/v2/repository/index", False),
        ("POST", "/v2/systemsharedmemory/region/r/register", False),
        ("GET", "/v2/logging", False),
        ("GET", "/v2/models/stats", False),
    ],
)
def test_what_changes_the_server_needs_the_key_of_management(method: str, path: str, wanted: bool) -> None:
    assert needs_management(method, path) is wanted

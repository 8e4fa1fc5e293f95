"""What a look at the repository finds, and what it says of what it cannot use."""

import os
import socket
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from ringserve.server.repository import scan as scan_module
from ringserve.server.repository.scan import Entry, scan
from ringserve.server.repository.version_policy import FolderConfig, VersionPolicy


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    return root


def write(path: Path, text: str = "{}") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_mar(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with ZipFile(path, "w") as bundle:
        bundle.writestr("MAR-INF/MANIFEST.json", "{}")
    return path


def only(root: Path) -> Entry:
    [entry] = scan(root).entries.values()
    return entry


@pytest.mark.parametrize(
    ("made", "slot", "file", "is_folder", "model", "version"),
    [
        ("m.mar", "m.mar", "m.mar", False, None, None),
        ("M.MAR", "M.MAR", "M.MAR", False, None, None),
        ("m/MAR-INF/MANIFEST.json", "m", "m", True, None, None),
        ("m/1.0/any.mar", "m/1.0", "m/1.0/any.mar", False, "m", "1.0"),
        ("m/1.0/MAR-INF/MANIFEST.json", "m/1.0", "m/1.0", True, "m", "1.0"),
    ],
)
def test_every_layout_is_found(
    root: Path, made: str, slot: str, file: str, is_folder: bool, model: str | None, version: str | None
) -> None:
    write(root / made)
    entry = only(root)
    assert (entry.slot, entry.file, entry.is_folder) == (slot, file, is_folder)
    assert (entry.model, entry.version, entry.problem) == (model, version, None)
    assert entry.path == root / file


@pytest.mark.parametrize(
    "name",
    [
        ".hidden.mar",
        ".hidden/1.0/m.mar",
        "m.mar.part",
        "m.mar.tmp",
        "m.mar~",
        "README.md",
        "readme",
        "notes.txt",
        "workflow.war",
        "lost+found/x",
        "pictures/cats/1.jpg",
        "m/1.0/.m.mar",
        "m/1.0/m.mar.part",
        "m/readme.md",
        "__pycache__/x.pyc",
    ],
)
def test_what_is_no_model_is_ignored(root: Path, name: str) -> None:
    write(root / name)
    found = scan(root)
    assert found.entries == {}
    assert found.problems == {}


@pytest.mark.parametrize(
    ("made", "file", "sentence"),
    [
        (["m.tar"], "m.tar", "expected an archive's name to end in .mar or .tar.gz or .tgz"),
        (["m.zip"], "m.zip", "expected an archive's name to end in .mar or .tar.gz or .tgz"),
        (["m.model"], "m.model", "expected an archive's name to end in .mar or .tar.gz or .tgz"),
        (["m/m.tgz"], "m/m.tgz", "expected an archive in a folder of its version: m/1.0/"),
        (["m/m.mar"], "m/m.mar", "expected an archive in a folder of its version: m/1.0/"),
        (["m.mar/x"], "m.mar", "expected MAR-INF/MANIFEST.json or versions in the folder, got neither"),
        (["m/1.0/m.mar", "m/2.0/x"], "m/2.0", "expected one archive or MAR-INF/MANIFEST.json, got neither"),
        (["a\nb.mar"], "a\\nb.mar", "expected a name in UTF-8 without control characters"),
        (["m/1.0/m.mar", "m/a\nb/m.mar"], "m/a\\nb", "expected a version in UTF-8 without control characters"),
    ],
)
def test_what_looks_like_a_model_and_is_none_is_reported(root: Path, made: list[str], file: str, sentence: str) -> None:
    for name in made:
        write(root / name)
    assert scan(root).problems == {file: sentence}


def test_a_broken_folder_in_the_place_of_an_archive_does_not_remove_it(root: Path) -> None:
    write(root / "m.mar/x")
    assert scan(root).uncertain == {"m.mar"}


def test_what_nobody_thought_of_is_a_problem_of_its_file_alone(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mar(root / "good.mar")
    write_mar(root / "m/1.0/m.mar")
    monkeypatch.setattr(scan_module, "parse_folder_config", lambda raw, where: raw["not thought of"])
    found = scan(root)
    assert set(found.entries) == {"good.mar"}
    assert found.problems == {"m": "expected a file or folder that can be looked at, got KeyError('not thought of')"}
    assert found.uncertain == {"m"}


@pytest.mark.parametrize("value", ["0x" + "f" * 5000, "9" * 100, '"\\ud800"'])
def test_a_value_that_nobody_can_hold_is_a_problem_of_its_model_alone(root: Path, value: str) -> None:
    write_mar(root / "good.mar")
    write_mar(root / "m/1.0/m.mar")
    write(root / "m/config.yaml", f"x: {value}\n")
    for _ in range(2):  # the second look remembers
        entries = scan(root).entries
        assert entries["good.mar"].problem is None
        assert str(entries["m/1.0"].problem).startswith("config.yaml, line 1: expected YAML, got an error: expected ")


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (["m/1.0/a.mar", "m/1.0/b.mar"], "expected one archive or MAR-INF/MANIFEST.json, got a.mar, b.mar"),
        (["m/1.0/a.mar", "m/1.0/MAR-INF/MANIFEST.json"], "got MAR-INF, a.mar"),
    ],
)
def test_a_version_that_could_be_two_things_is_refused(root: Path, made: list[str], sentence: str) -> None:
    for name in made:
        write(root / name)
    assert sentence in str(only(root).problem)


def test_names_that_are_no_text_are_shown_and_not_served(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root) + b"/\xff.mar")).write_text("{}")
    found = scan(root)
    assert found.entries == {}
    assert found.problems == {"\\xff.mar": "expected a name in UTF-8 without control characters"}


def test_a_pipe_or_socket_with_an_archives_name_is_refused_and_never_opened(root: Path) -> None:
    os.mkfifo(root / "pipe.mar")
    (root / "m/1.0").mkdir(parents=True)
    os.mkfifo(root / "m/1.0/config.yaml")
    write_mar(root / "m/1.0/m.mar")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(os.path.relpath(root / "socket.mar"))
        found = scan(root).entries
    assert found["pipe.mar"].problem == "expected a regular file, got a named pipe"
    assert found["socket.mar"].problem == "expected a regular file, got a socket"
    assert found["m/1.0"].problem == "config.yaml: expected a regular file, got something else"


# ---- links


def test_a_link_at_the_top_is_the_operators_choice(root: Path, tmp_path: Path) -> None:
    write_mar(tmp_path / "elsewhere/m.mar")
    write_mar(tmp_path / "elsewhere/versions/1.0/m.mar")
    (root / "m.mar").symlink_to(tmp_path / "elsewhere/m.mar")
    (root / "other").symlink_to(tmp_path / "elsewhere/versions")
    assert {slot: entry.problem for slot, entry in scan(root).entries.items()} == {"m.mar": None, "other/1.0": None}


def test_a_mount_as_kubernetes_makes_it_changes_when_its_data_link_moves(root: Path) -> None:
    for folder in ("..2024", "..2025"):
        write_mar(root / folder / "m.mar")
    (root / "..data").symlink_to("..2024")
    (root / "m.mar").symlink_to("..data/m.mar")
    before = only(root)
    (root / "..new").symlink_to("..2025")
    os.replace(root / "..new", root / "..data")
    after = only(root)
    assert (before.slot, after.slot) == ("m.mar", "m.mar")
    assert before.fingerprint != after.fingerprint


def test_links_that_go_round_or_lead_nowhere_are_reported_and_nothing_there_counts_as_removed(root: Path) -> None:
    (root / "a.mar").symlink_to("b.mar")
    (root / "b.mar").symlink_to("a.mar")
    (root / "gone.mar").symlink_to("nowhere.mar")
    (root / "self").symlink_to(".")
    (root / "above").symlink_to(root.parent)
    found = scan(root)
    assert found.entries == {}
    expected = "expected a file or folder that can be read, got "
    assert found.problems["a.mar"] == f"{expected}Too many levels of symbolic links"
    assert found.problems["gone.mar"] == f"{expected}a link that leads nowhere"
    assert found.problems["self"] == "expected a folder of the repository, got a link to what it lies in"
    assert found.problems["above"] == "expected a folder of the repository, got a link to what it lies in"
    assert found.uncertain == {"a.mar", "b.mar", "gone.mar"}


# ---- what cannot be read


def test_a_folder_that_is_not_there_is_no_empty_one(root: Path) -> None:
    root.rmdir()
    assert scan(root).unreadable == "the folder cannot be read: No such file or directory"


def test_a_file_in_place_of_the_folder_is_no_empty_one(root: Path) -> None:
    root.rmdir()
    root.write_text("")
    assert scan(root).unreadable == "the folder cannot be read: Not a directory"


def test_a_group_that_cannot_be_read_is_uncertain(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mar(root / "m/1.0/m.mar")
    write_mar(root / "other.mar")
    listed = os.listdir

    def fail(folder: Path) -> Any:
        if Path(folder).name == "m":
            raise OSError(116, "Stale file handle")
        return listed(folder)

    monkeypatch.setattr(os, "listdir", fail)
    found = scan(root)
    assert set(found.entries) == {"other.mar"}
    assert found.uncertain == {"m"}
    assert found.problems == {"m": "expected a file or folder that can be read, got Stale file handle"}


def test_what_vanishes_while_it_is_looked_at_was_never_there(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mar(root / "m.mar")
    write_mar(root / "v/1.0/m.mar")
    listed = os.listdir

    def more(folder: Path) -> list[str]:
        return [*listed(folder), *(["ghost.mar", "ghost"] if folder == root else ["ghost"])]

    monkeypatch.setattr(os, "listdir", more)
    found = scan(root)
    assert set(found.entries) == {"m.mar", "v/1.0"}
    assert found.uncertain == set()


def test_a_folder_of_too_many_names_is_not_looked_through(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "ENTRIES_MAX", 2)
    for name in "abc":
        write_mar(root / f"{name}.mar")
    assert scan(root).unreadable == "the folder cannot be read: expected at most 2 names, got 3"


def test_an_unpacked_model_of_too_many_files_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan_module, "FILES_MAX", 2)
    for name in ("MAR-INF/MANIFEST.json", "a.py", "b.py"):
        write(root / "m" / name)
    assert "more than 2 files" in str(only(root).problem)


def test_an_unpacked_model_of_endless_depth_is_refused(root: Path) -> None:
    write(root / "m/MAR-INF/MANIFEST.json")
    write(root / "m" / "/".join(["d"] * 80) / "x")
    assert "64 nested folders" in str(only(root).problem)


# ---- fingerprints


def changed(root: Path, how: Any) -> bool:
    before = only(root).fingerprint
    how()
    return before != only(root).fingerprint


def test_an_archive_that_is_written_or_replaced_has_another_fingerprint(root: Path) -> None:
    path = write_mar(root / "m.mar")
    assert not changed(root, lambda: path.read_bytes())
    assert changed(root, lambda: path.write_bytes(path.read_bytes() + b"x"))
    assert changed(root, lambda: os.utime(path, ns=(0, 1)))


def test_a_copy_of_equal_size_and_age_has_another_fingerprint(root: Path) -> None:
    path = write_mar(root / "m.mar")
    status = path.stat()

    def replace() -> None:
        while (root / ".new").write_bytes(path.read_bytes()) and (
            root / ".new"
        ).stat().st_ctime_ns == status.st_ctime_ns:
            pass
        os.utime(root / ".new", ns=(status.st_atime_ns, status.st_mtime_ns))
        os.replace(root / ".new", path)

    assert changed(root, replace)


def test_a_file_in_an_unpacked_model_counts_and_what_python_writes_there_does_not(root: Path) -> None:
    write(root / "m/MAR-INF/MANIFEST.json")
    handler = write(root / "m/handler.py", "a")
    assert not changed(root, lambda: write(root / "m/__pycache__/handler.cpython-311.pyc"))
    assert not changed(root, lambda: write(root / "m/.cache/x"))
    assert changed(root, lambda: write(root / "m/extra/weights.pt"))
    assert changed(root, lambda: handler.write_text("ab"))
    assert changed(root, handler.unlink)


def test_a_configuration_counts_with_what_it_says(root: Path) -> None:
    write_mar(root / "m/1.0/m.mar")
    assert changed(root, lambda: write(root / "m/config.yaml", "batchSize: 2"))
    assert not changed(root, lambda: write(root / "m/config.yaml", "batchSize: 2\nversion_policy: all"))
    assert changed(root, lambda: write(root / "m/1.0/config.yaml", "batchSize: 4"))
    assert not changed(root, lambda: write(root / "m/1.0/config.yaml", "# four\nbatchSize: 4"))


# ---- configuration


def test_a_versions_configuration_wins_over_that_of_its_folder(root: Path) -> None:
    for version in ("1.0", "2.0"):
        write_mar(root / f"m/{version}/m.mar")
    write(root / "m/config.yaml", "version_policy: all\ndefault_version: '1.0'\nbatchSize: 2\nminWorkers: 1")
    write(root / "m/2.0/config.yaml", "batchSize: 4")
    found = scan(root)
    both = {"batchSize": 2, "minWorkers": 1}
    assert found.folders == {"m": FolderConfig(VersionPolicy(None), "1.0", both)}
    assert found.entries["m/1.0"].overrides == both
    assert found.entries["m/2.0"].overrides == {"batchSize": 4, "minWorkers": 1}


def test_a_broken_configuration_refuses_what_it_is_about(root: Path) -> None:
    for version in ("1.0", "2.0"):
        write_mar(root / f"m/{version}/m.mar")
    write(root / "m/2.0/config.yaml", "batchSize: [")
    found = scan(root)
    assert found.entries["m/1.0"].problem is None
    assert "config.yaml, line" in str(found.entries["m/2.0"].problem)
    write(root / "m/config.yaml", "version_policy: newest")
    found = scan(root)
    assert all("m/config.yaml: version_policy: expected all" in str(each.problem) for each in found.entries.values())
    assert found.folders == {}, "nobody knows which versions are wanted"


def test_an_unpacked_model_keeps_a_config_yaml_of_its_own(root: Path) -> None:
    write(root / "m/MAR-INF/MANIFEST.json")
    write(root / "m/config.yaml", "- a list")
    assert only(root).problem is None
    assert only(root).overrides == {}

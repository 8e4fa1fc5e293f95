"""`ringserve snapshot`: what restarts go by, for people and programs."""

import shutil
from datetime import datetime
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner, Result

from ringserve.server.snapshots.document import State, VersionRecord, read_snapshot
from ringserve.server.snapshots.store import SnapshotStore, folder_of, newest
from ringserve.tools.cli.snapshot import snapshot

TORCHSERVE = Path(__file__).parent.parent / "server" / "snapshots" / "torchserve-0.12-shutdown.cfg"
THEIRS = "20261120185700268-shutdown.cfg"
OURS = "20261121120000000-snapshot.cfg"
TORN = "20261122120000000-snapshot.cfg"


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    """With TorchServe's snapshot, a newer one of ours, and a torn one that is newer still."""
    folder = folder_of(tmp_path)
    folder.mkdir()
    shutil.copy(TORCHSERVE, folder / THEIRS)
    records = (
        VersionRecord("light", "1.0", "light.mar", True, 1, 1, ours=True, handler="h:\x1b[1mhandle", queue_timeout_s=7),
        VersionRecord("far", "1.0", "far.mar", True, 1, 2, ours=True, remote=True, url="https://host/far.mar"),
        VersionRecord("gone", "1.0", "gone.mar", ours=True, lost=True),
    )
    clock = datetime(2026, 11, 21, 12)
    assert SnapshotStore(folder, 9, lambda: clock).write("snapshot", State(records), [("a", "b")]).name == OURS
    (folder / TORN).write_bytes(b"model_snapshot={")
    return tmp_path


def call(logs: Path, *words: str) -> Result:
    return CliRunner().invoke(snapshot, [words[0], "--log-location", str(logs), *words[1:]])


def test_list_prints_the_newest_first_with_its_models(logs: Path) -> None:
    lines = call(logs, "list").output.splitlines()
    assert lines[0].split() == ["NAME", "KIND", "WRITTEN", "MODELS"]
    assert [line.split()[0] for line in lines[1:]] == [TORN, OURS, THEIRS]
    assert "cannot be read" in lines[1]
    assert "light 1.0, far 1.0, gone 1.0" in lines[2]
    torn, ours, _ = orjson.loads(call(logs, "list", "--json").stdout)
    assert "does not parse" in torn["error"]
    assert (ours["kind"], ours["written"], ours["models"]["far"]) == ("snapshot", "2026-11-21T12:00:00.000", ["1.0"])


def test_list_of_a_folder_that_is_not_there_says_so(tmp_path: Path) -> None:
    result = call(tmp_path / "none", "list")
    assert (result.exit_code, result.stdout) == (0, f"There are no snapshots in {tmp_path / 'none' / 'config'}.\n")


def test_show_prints_models_and_settings_and_nothing_that_a_terminal_obeys(logs: Path) -> None:
    result = call(logs, "show")
    assert result.exit_code == 0
    assert f"Snapshot {OURS}" in result.stdout
    assert "handler h: [1mhandle, queue timeout 7 s" in result.stdout
    assert "from https://host/far.mar" in result.stdout
    assert "not restored the last time" in result.stdout
    assert "  a=b" in result.stdout
    assert TORN in result.stderr
    shown = orjson.loads(call(logs, "show", OURS, "--json").stdout)
    assert shown["a"] == "b"
    assert shown["model_snapshot"]["models"]["far"]["1.0"]["maxWorkers"] == 2


def test_diff_says_in_sentences_what_is_otherwise(logs: Path) -> None:
    sentences = call(logs, "diff", THEIRS, OURS).stdout.splitlines()
    assert "model yamled version 1.0 is not there any more." in sentences
    assert "model far version 1.0 is new." in sentences
    assert "model light version 1.0: minWorkers was 2 and is 1." in sentences
    assert "model light version 1.0 is the default version now." in sentences
    assert "model_store was /home/model-server/model-store and is not said." in sentences
    assert call(logs, "diff", OURS, OURS).stdout == "No differences.\n"
    assert orjson.loads(call(logs, "diff", OURS, OURS, "--json").stdout) == []


def test_diff_with_a_server_that_does_not_run_says_so(
    logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    result = call(logs, "diff", OURS, "running")
    assert (result.exit_code, result.stderr) == (1, "RingServe is not currently running.\n")


def test_restore_makes_an_older_one_the_newest(logs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (folder_of(logs) / TORN).unlink()
    result = call(logs, "restore", THEIRS)
    path = newest(logs)
    assert path is not None
    assert result.stdout == f"The next start restores {THEIRS}, as {path.name}.\n"
    assert path.name > OURS
    assert read_snapshot(path).state.records == read_snapshot(folder_of(logs) / THEIRS).state.records
    assert read_snapshot(path).properties == read_snapshot(folder_of(logs) / THEIRS).properties


@pytest.mark.parametrize("name", ["../x.cfg", "/etc/passwd", "x", f"../config/{OURS}", ""])
@pytest.mark.parametrize("command", ["show", "restore"])
def test_a_name_that_is_no_snapshots_is_refused(logs: Path, command: str, name: str) -> None:
    result = call(logs, command, name)
    assert result.exit_code == 1
    assert "NAME: expected the name of a snapshot" in result.stderr


def test_one_that_is_not_there_or_torn_is_told(logs: Path) -> None:
    for name, reason in ((TORN, "does not parse"), ("20200101000000000-startup.cfg", "cannot be read")):
        result = call(logs, "show", name)
        assert result.exit_code == 1
        assert reason in result.stderr


def test_nothing_prints_the_password_of_a_keystore_that_torchserve_wrote_down(logs: Path) -> None:
    path = folder_of(logs) / THEIRS
    path.write_text("keystore_pass=hunter2\nload_models=https://u:hunter2@h/a.mar?hunter2\n" + path.read_text())
    for words in (("show", THEIRS), ("show", THEIRS, "--json"), ("diff", THEIRS, OURS), ("diff", OURS, THEIRS)):
        result = call(logs, *words)
        assert result.exit_code == 0
        assert "hunter2" not in result.output
    assert "keystore_pass=***" in call(logs, "show", THEIRS).output


def test_what_diff_prints_is_not_obeyed_by_a_terminal(logs: Path) -> None:
    state = State((VersionRecord("m\x1b[2J", "1.0", "m.mar"),))
    made = SnapshotStore(folder_of(logs), 9, lambda: datetime(2026, 11, 23)).write("snapshot", state, [])
    assert "\x1b" not in call(logs, "diff", OURS, made.name).output

"""Which PID files name a server, and what becomes of those that name none."""

import fcntl
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from ringserve.server.pid_file import (
    MODULE,
    AlreadyRunning,
    PidFileError,
    holding_pid_file,
    is_server_command,
    keep_pid_file,
    pid_file,
    running_pid,
    take_pid_file,
)


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return pid_file()


@pytest.mark.parametrize(
    ("words", "server"),
    [
        (["/venv/bin/python", "/venv/bin/ringserve", "start", "--foreground"], True),
        (["/venv/bin/python", "-P", "-m", MODULE, "start", "--models", "stop"], True),
        (["python", "/bin/torchserve", "--foreground", "--model-store", "config"], True),
        (["python", "/bin/ringserve", "--start"], True),
        (["python", "/bin/ringserve", "stop"], False),
        (["python", "/bin/torchserve", "--stop"], False),
        (["python", "/bin/ringserve", "status", "--json"], False),
        (["python", "-P", "-m", "ringserve.server.frontend", "7"], False),
        (["tail", "-f", "start"], False),
        (["/usr/bin/torchserve", "--start"], True),
        (["python3.11", "-X", "dev", "-W", "error", "/bin/torchserve", "--start"], True),
        (["su", "ringserve"], False),
        (["tail", "-f", "/var/log/ringserve"], False),
        (["python", "watch.py", "/opt/torchserve"], False),
        ([], False),
    ],
)
def test_a_server_is_told_by_its_command_line(words: list[str], server: bool) -> None:
    assert is_server_command(words) is server


@pytest.mark.parametrize("text", ["", "\n", "many", "-1", "0", "99999999999999999999", "\0\0", "1 2", "é"])
def test_a_file_that_names_nothing_is_removed(path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    path.write_text(text)
    assert running_pid() is None
    assert not path.exists()
    assert caplog.messages == ["Removing orphan pid file."]


def test_a_pid_that_another_program_has_now_is_no_server_and_removed_silently(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING")
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as other:
        path.write_text(f"{other.pid}\n")
        assert running_pid() is None
        assert caplog.messages == []
        other.communicate(b"\n")
    assert not path.exists()


def test_a_file_that_cannot_be_read_is_an_error_that_names_it(path: Path) -> None:
    path.mkdir()
    with pytest.raises(PidFileError, match=f"PID file {path} cannot be read: Is a directory"):
        running_pid()
    with pytest.raises(PidFileError, match="cannot be read"), holding_pid_file():
        pass


def test_neither_a_link_nor_a_pipe_is_followed(path: Path) -> None:
    """The folder may be everybody's."""
    path.symlink_to("nowhere")
    with pytest.raises(PidFileError, match="cannot be read: It is a symbolic link"), holding_pid_file():
        pass
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PidFileError, match="cannot be read: It is not a regular file"):
        running_pid()


def test_what_a_server_puts_there_while_a_stale_one_is_looked_at_stays(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_server(pid: int) -> bool:
        if pid == 7777777:
            path.unlink()
            path.write_text("1")
        return pid == 1

    monkeypatch.setattr("ringserve.server.pid_file.is_server", is_server)
    path.write_text("7777777")
    assert running_pid() == 1
    assert path.read_text() == "1"


def test_a_stale_one_that_somebody_else_is_removing_is_left_to_him(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_text("stale")
    with path.open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        monkeypatch.setattr(time, "sleep", lambda s: path.unlink())
        assert running_pid() is None


def test_it_is_kept_when_whoever_took_it_over_is_gone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringserve.server.pid_file.is_server", lambda pid: pid == 1)
    path.write_text("7777777")
    keep_pid_file()
    assert path.read_text() == str(os.getpid())
    path.write_text("1")
    keep_pid_file()
    assert path.read_text() == "1"


def test_nothing_is_left_of_one_that_cannot_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(written: Path, text: str) -> None:
        written.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(PidFileError, match="cannot be written: No space left"), holding_pid_file():
        pass
    assert list(path.parent.iterdir()) == []


def test_it_is_there_as_long_as_it_is_held(path: Path) -> None:
    with holding_pid_file():
        assert path.read_text() == str(os.getpid())
        assert list(path.parent.iterdir()) == [path]
    assert list(path.parent.iterdir()) == []


def test_that_of_a_former_life_with_the_same_pid_is_taken(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container that is started again: the server before had our pid, and we look like a server."""
    monkeypatch.setattr("ringserve.server.pid_file.is_server", lambda pid: pid == os.getpid())
    path.write_text(str(os.getpid()))
    with holding_pid_file():
        assert path.read_text() == str(os.getpid())
    assert not path.exists()


def test_it_is_not_taken_from_a_server_that_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringserve.server.pid_file.is_server", lambda pid: pid == 1)
    path.write_text("1")
    with pytest.raises(AlreadyRunning, match=r"already running \(pid 1\)"), holding_pid_file():
        pass
    assert path.read_text() == "1"


def test_an_instance_that_was_taken_over_from_leaves_it_to_its_successor(path: Path) -> None:
    with holding_pid_file():
        path.write_text("1")
    assert path.read_text() == "1"
    take_pid_file()
    assert path.read_text() == str(os.getpid())

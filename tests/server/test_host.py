"""What a server takes of its machine, and whose it is."""

import fcntl
import os
import tempfile
from pathlib import Path

import pytest

from ringserve.server.host import make_work_dir, work_dirs
from ringserve.server.settings import ConfigError


def test_folders_of_servers_that_died_are_removed_also_of_one_that_had_our_pid(tmp_path: Path) -> None:
    for name in (f"ringserve-{os.getpid()}-former", "ringserve-7777777-dead"):
        (tmp_path / name / "inside").mkdir(parents=True)
    (tmp_path / "ringserve-1-alive").mkdir()
    (tmp_path / "ringserve-notes").mkdir()
    made = make_work_dir(tmp_path)
    assert made.name.startswith(f"ringserve-{os.getpid()}-")
    assert made.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in tmp_path.iterdir()} == {made.name, "ringserve-1-alive", "ringserve-notes"}


def test_a_folder_is_locked_by_its_server_so_that_another_container_leaves_it_alone(tmp_path: Path) -> None:
    """One that shares the folder for temporary files, and not the pids."""
    made = make_work_dir(tmp_path)
    foreign = made.rename(tmp_path / "ringserve-7777777-foreign")
    ours = make_work_dir(tmp_path)
    assert set(tmp_path.iterdir()) == {ours, foreign}
    fd = os.open(foreign, os.O_RDONLY)
    with pytest.raises(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_a_temporary_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=f"{tmp_path}/file cannot be used: Not a directory"):
        make_work_dir(tmp_path / "file")


def test_a_relative_one_is_found_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "temp").mkdir()
    assert make_work_dir(Path("temp")).is_absolute()


def test_a_folder_that_somebody_else_made_is_not_the_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder for temporary files is everybody's, and a pid no secret."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    pid = os.getpid()
    ours, other = tmp_path / f"ringserve-{pid}-abc", tmp_path / f"ringserve-{pid}0-abc"
    ours.mkdir()
    other.mkdir()
    assert work_dirs(pid) == [ours]
    if os.geteuid() == 0:
        os.chown(ours, 12345, 12345)
        assert work_dirs(pid) == []

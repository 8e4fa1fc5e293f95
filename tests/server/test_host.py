"""What a server takes of its machine, and whose it is."""

import os
import tempfile
from pathlib import Path

import pytest

from ringserve.server.host import make_work_dir, work_dirs


def test_folders_of_servers_that_died_are_removed_also_of_one_that_had_our_pid(tmp_path: Path) -> None:
    for name in (f"ringserve-{os.getpid()}-former", "ringserve-7777777-dead"):
        (tmp_path / name / "inside").mkdir(parents=True)
    (tmp_path / "ringserve-1-alive").mkdir()
    (tmp_path / "ringserve-notes").mkdir()
    made = make_work_dir(tmp_path)
    assert made.name.startswith(f"ringserve-{os.getpid()}-")
    assert made.stat().st_mode & 0o777 == 0o700
    assert {path.name for path in tmp_path.iterdir()} == {made.name, "ringserve-1-alive", "ringserve-notes"}


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

"""What the log files meet outside of a tidy world: forged lines, foreign locks, a disk that stays full."""

import errno
import fcntl
import logging
import os
import re
import sys
from pathlib import Path

import pytest

from ringserve.server.logs.access import shown_target
from ringserve.server.logs.formats import formatter
from ringserve.server.logs.rotating import LogFile, Rotation

FORGED = "2026-11-20T18:56:18,527 [INFO ] main ringserve.supervisor - the key is 5"


@pytest.mark.parametrize("console", [False, True])
def test_only_the_server_begins_a_record(console: bool) -> None:
    try:
        raise ValueError(f"bad name\n{FORGED}\n{FORGED.replace('T', ' ')}")
    except ValueError as error:
        made = logging.LogRecord(
            "ringserve.management", logging.ERROR, "a.py", 1, "%s\nand on", (error,), sys.exc_info()
        )
    said = formatter("text", console=console).format(made).splitlines()
    assert said[-2].strip() == FORGED
    assert [line for line in said[1:] if re.match(r"\d{4}-", line)] == []
    assert said[3] == "and on", "other lines stay as they are"


def test_a_file_that_somebody_else_has_locked_is_written_all_the_same(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log", Rotation(bytes_max=10, kept=2))
    log.write(b"first\n")
    with log.path.open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        log.write(b"second\n")
        assert log.path.read_text() == "first\nsecond\n"
    log.write(b"third\n")
    log.close()
    assert {each.name: each.read_text() for each in tmp_path.iterdir()} == {
        "a.log": "third\n",
        "a.log.1": "first\nsecond\n",
    }


def test_a_line_torn_long_ago_gets_its_end_when_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, really, room = LogFile(tmp_path / "a.log"), os.write, [4]

    def write(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = really(fd, bytes(data)[: room[0]])
        room[0] -= taken
        return taken

    monkeypatch.setattr(os, "write", write)
    for line in (b"a torn line\n", b"never written\n", b"nor this\n"):
        with pytest.raises(OSError, match="No space left"):
            log.write(line)
    room[0] = 1000
    log.write(b"a whole one\n")
    log.write(b"and another\n")
    monkeypatch.undo()
    log.close()
    assert log.path.read_text() == "a to\na whole one\nand another\n"


def test_a_target_that_names_a_host_shows_no_user_of_it() -> None:
    assert shown_target("http://user:5ecret@host/ping?key=5ecret") == "http://***@host/ping?key=***"
    assert shown_target("/a//b@c") == "/a//b@c"

"""What a process prints reaches the log, however much it is, and holds up nobody."""

import asyncio
import logging
import os
from collections import deque

import pytest

from ringserve.server.process import LAST_LINES_MAX, LINE_BYTES_MAX, READ_BYTES, TAIL_LINES, _Output, output_logger


def heard(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "ringserve.output"]


def test_a_flood_is_taken_in_small_portions_and_whole_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ringserve.output")

    async def act() -> None:
        ours, theirs = os.pipe()
        output = _Output(ours, "W-stdout", logging.INFO, output_logger, deque(maxlen=TAIL_LINES), lambda line: False)
        os.write(theirs, b"\n" * 10_000 + b"last words")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert 0 < len(heard(caplog)) <= 2 * READ_BYTES, "others have their turn after each portion"
        caplog.clear()
        output.read_last()
        os.close(theirs)

    asyncio.run(act())
    left_out, *lines, last = heard(caplog)
    assert left_out.startswith("(")
    assert left_out.endswith(" lines are left out here)")
    assert (len(lines), last) == (LAST_LINES_MAX, "last words")


def test_lines_come_whole_and_the_last_needs_no_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ringserve.output")
    tail: deque[str] = deque(maxlen=TAIL_LINES)

    async def act() -> None:
        ours, theirs = os.pipe()
        output = _Output(ours, "W-stdout", logging.INFO, output_logger, tail, lambda line: False)
        os.write(theirs, b"one\ntw")
        output.read()
        os.write(theirs, b"o\nthree")
        os.close(theirs)
        output.read_last()

    asyncio.run(act())
    assert heard(caplog) == ["one", "two", "three"]
    assert list(tail) == ["one", "two", "three"]


def test_a_line_without_end_is_told_in_parts_and_no_character_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "ringserve.output")
    text = "".join("é☃😀"[number % 3] for number in range(LINE_BYTES_MAX))

    async def act() -> None:
        ours, theirs = os.pipe()
        output = _Output(ours, "W-stdout", logging.INFO, output_logger, deque(), lambda line: False)
        data = text.encode()
        for at in range(0, len(data), READ_BYTES):
            os.write(theirs, data[at : at + READ_BYTES])
            output.read()
        os.write(theirs, b"\xc3\n\xff\xfe")
        os.close(theirs)
        output.read_last()

    asyncio.run(act())
    *parts, last, junk = heard(caplog)
    assert len(parts) > 1
    assert "".join([*parts, last]) == text + "\ufffd"
    assert junk == "\ufffd\ufffd"


def test_a_line_has_the_level_of_its_stream_but_our_own_say_theirs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "ringserve.output")

    async def act() -> None:
        for source, level in (("W-stdout", logging.INFO), ("W-stderr", logging.WARNING)):
            ours, theirs = os.pipe()
            output = _Output(ours, source, level, output_logger, deque(maxlen=TAIL_LINES), lambda line: False)
            os.write(theirs, b"said\nERROR ringserve.worker broke\nINFO ringserve fine\nERROR mine broke\n")
            os.close(theirs)
            output.read_last()

    asyncio.run(act())
    levels = [record.levelname for record in caplog.records]
    assert levels == ["INFO", "ERROR", "INFO", "INFO", "WARNING", "ERROR", "INFO", "WARNING"]

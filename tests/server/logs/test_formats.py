"""What a record looks like on the console, in the files, and as JSON."""

import json
import logging
import re
import sys

import pytest

from ringserve.server.logs.formats import SOURCE, formatter, one_line


def record(
    message: str, level: int = logging.INFO, *, name: str = "ringserve.supervisor", source: str | None = None
) -> logging.LogRecord:
    made = logging.LogRecord(name, level, "a.py", 1, "%s", (message,), None)
    if source is not None:
        setattr(made, SOURCE, source)
    return made


def test_a_line_of_a_file_is_torchserves() -> None:
    lines = formatter("text")
    said = lines.format(record("Model server started."))
    when, rest = said[:23], said[23:]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3}", when)
    assert rest == " [INFO ] main ringserve.supervisor - Model server started."
    printed = record("hello", logging.WARNING, name="MODEL_LOG", source="W-9000-noop_1.0-stderr")
    assert lines.format(printed)[23:] == " [WARN ] W-9000-noop_1.0-stderr MODEL_LOG - hello"


def test_the_console_has_the_name_of_the_worker_before_what_it_prints() -> None:
    lines = formatter("text", console=True)
    assert lines.format(record("a word", logging.WARNING))[24:] == "WARNING ringserve.supervisor a word"
    printed = record("hello", name="MODEL_LOG", source="W-9000-noop_1.0-stdout")
    assert lines.format(printed)[24:] == "INFO MODEL_LOG W-9000-noop_1.0 hello"


@pytest.mark.parametrize("console", [False, True])
def test_json_is_one_object_a_line_whatever_is_said(console: bool) -> None:
    try:
        raise ValueError("broken")
    except ValueError:
        made = record('two\nlines "\x1b', logging.ERROR)
        made.exc_info = sys.exc_info()
    line = formatter("json", console=console).format(made)
    said = json.loads(line)
    assert line.isprintable()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", said["time"])
    assert (said["level"], said["logger"], said["thread"]) == ("ERROR", "ringserve.supervisor", "main")
    assert said["message"].startswith('two\nlines "\x1b\nTraceback')


def test_what_models_print_steers_no_terminal() -> None:
    assert one_line("a\tb é\x1b[31m\r\x85\u2028\ud800") == "a\tb é\\x1b[31m\\r\\x85\\u2028\\ud800"
    printed = record("red\x1b[31m\rover", name="MODEL_LOG", source="W-1-stdout")
    for lines in (formatter("text"), formatter("text", console=True)):
        assert lines.format(printed).endswith("red\\x1b[31m\\rover")

"""How a line of a log looks: as TorchServe writes it, or as one JSON object.

Whatever comes from outside (what clients ask for, what models print) is escaped, so that nobody writes a line that the server did not.
"""

import json
import logging
import re
import time
from typing import Final

# What a record may bring: which process and stream a line of output is from. TorchServe has the name of a thread there.
SOURCE: Final = "ringserve_source"
MODEL_LOG: Final = "MODEL_LOG"
ACCESS_LOG: Final = "ACCESS_LOG"
TEXT, JSON = "text", "json"
# A line of a message that begins as a record does, whoever put it there, is not to be taken for one.
_LIKE_A_RECORD = re.compile(r"\n(?=\d{4}-\d\d-\d\d)")
LEVELS = {"WARNING": "WARN", "CRITICAL": "FATAL"}  # log4j's names


class Clock:
    """Times as text. Seconds are formatted once each."""

    def __init__(self, *, utc: bool = False) -> None:
        self._second = -1
        self._text = ""
        self._utc = utc

    def text(self, when_s: float) -> str:
        """`2026-11-20T19:46:08,901` as log4j has it, in local time; RFC 3339 in UTC."""
        second = int(when_s)
        millis = int((when_s - second) * 1000)
        text = self.second(second)
        return f"{text}.{millis:03d}Z" if self._utc else f"{text},{millis:03d}"

    def second(self, second: int) -> str:
        """Without what follows the seconds."""
        if second != self._second:
            moment = time.gmtime(second) if self._utc else time.localtime(second)
            self._second, self._text = second, time.strftime("%Y-%m-%dT%H:%M:%S", moment)
        return self._text


def one_line(text: str) -> str:
    """Without characters that end a line or steer a terminal, nor those that only look as if they did."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else _escaped(each) for each in text)


def _escaped(character: str) -> str:
    return character if character == "\t" else ascii(character)[1:-1]


class _Lines(logging.Formatter):
    """What server and models say. Lines of a message, such as a traceback's, are lines of the log, each of them escaped."""

    def body(self, record: logging.LogRecord) -> str:
        """The message with what belongs to it, not escaped yet."""
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}\n{self.formatException(record.exc_info)}"
        return text

    def lines(self, record: logging.LogRecord) -> str:
        """The same, escaped."""
        return _LIKE_A_RECORD.sub("\n    ", "\n".join(map(one_line, self.body(record).split("\n"))))


class ConsoleFormatter(_Lines):
    """`2026-11-20 19:46:08,901 INFO ringserve.supervisor what it says`."""

    def format(self, record: logging.LogRecord) -> str:
        said, source = self.lines(record), getattr(record, SOURCE, None)
        if source is not None:
            said = f"{source.rpartition('-')[0]} {said}"
        return f"{self.formatTime(record)} {record.levelname} {record.name} {said}"


class TorchServeFormatter(_Lines):
    """`2026-11-20T19:46:08,901 [INFO ] main ringserve.supervisor - what it says`."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = Clock()

    def format(self, record: logging.LogRecord) -> str:
        level = LEVELS.get(record.levelname, record.levelname)
        thread = getattr(record, SOURCE, None) or _thread(record)
        return f"{self._clock.text(record.created)} [{level:<5}] {thread} {record.name} - {self.lines(record)}"


class JsonFormatter(_Lines):
    """One object, whatever is in the message."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = Clock(utc=True)

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": self._clock.text(record.created),
            "level": LEVELS.get(record.levelname, record.levelname),
            "logger": record.name,
            "thread": getattr(record, SOURCE, None) or _thread(record),
            "message": self.body(record),
        }
        return json.dumps(said)


def _thread(record: logging.LogRecord) -> str:
    return "main" if record.threadName == "MainThread" else record.threadName or "main"


def formatter(log_format: str, *, console: bool = False) -> logging.Formatter:
    """Of the setting `log_format`."""
    if log_format == JSON:
        return JsonFormatter()
    return ConsoleFormatter() if console else TorchServeFormatter()

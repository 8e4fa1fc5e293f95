"""Where the supervisor's records go: `ts_log.log` takes all of them, `model_log.log` what models print, and the console what
`ts_log.log` does, unless it is the file that the server was started with in the background: nothing is written twice.
"""

import contextlib
import logging
import os
import stat
import sys
from pathlib import Path

from ringserve.server.logs.formats import MODEL_LOG, formatter
from ringserve.server.logs.rotating import LogFile
from ringserve.server.logs.writer import Console, Outlet, Writer, say_in_log, say_on_console

CONSOLE_FILE = "ringserve.log"  # of a server in the background: what no logger wrote
TS_LOG_FILE = "ts_log.log"
MODEL_LOG_FILE = "model_log.log"
FLUSH_S_MAX = 0.5


class _Handler(logging.Handler):
    """Formats where it is called, writes elsewhere."""

    def __init__(self, every: Outlet, models: Outlet | None, lines: logging.Formatter) -> None:
        super().__init__()
        self._every = every
        self._models = models
        self.setFormatter(lines)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        except Exception:  # noqa: BLE001 - a record that cannot be formatted is the standard library's to report
            self.handleError(record)
            return
        self._every.put(line)
        if self._models is not None and record.name == MODEL_LOG:
            self._models.put(line)


class Logs:
    """The handlers of this process, until it is closed."""

    def __init__(self, location: Path, log_format: str, *, fd: int = 2) -> None:
        location = location.absolute()
        in_background = is_same_file(fd, location / CONSOLE_FILE)
        self._files = Writer("logs", say_on_console if in_background else say_in_log)
        every, models = (
            self._files.outlet(str(location / name), LogFile(location / name)) for name in (TS_LOG_FILE, MODEL_LOG_FILE)
        )
        models.put(b"", 0)  # it is there from the start, as TorchServe's is
        handlers: list[logging.Handler] = [_Handler(every, models, formatter(log_format))]
        self._console: Writer | None = None
        console = formatter(log_format, console=True)
        if is_plain_file(fd):
            # A file takes what it is given at once: whoever reads it finds all that has been said.
            if not in_background:
                direct: logging.Handler = logging.StreamHandler(sys.stderr)
                direct.setFormatter(console)
                handlers.append(direct)
        else:
            self._console = Writer("console")
            handlers.append(_Handler(self._console.outlet("the console", Console(fd)), None, console))
        logging.basicConfig(level=logging.INFO, handlers=handlers, force=True)

    def flush(self) -> None:
        """Wait until what has been said is written, as long as it takes where nothing hinders it."""
        self._files.flush(FLUSH_S_MAX)
        if self._console is not None:
            self._console.flush(FLUSH_S_MAX)

    def close(self) -> None:
        """What is said from here on goes to standard error."""
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, force=True)
        self._files.close()
        if self._console is not None:
            self._console.close()


def is_plain_file(fd: int) -> bool:
    with contextlib.suppress(OSError):
        return stat.S_ISREG(os.fstat(fd).st_mode)
    return False


def is_same_file(fd: int, path: Path) -> bool:
    with contextlib.suppress(OSError):
        found, named = os.fstat(fd), path.stat()
        return (found.st_dev, found.st_ino) == (named.st_dev, named.st_ino)
    return False

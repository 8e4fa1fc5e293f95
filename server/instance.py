"""Starting and stopping the server as a process: PID file, one server per temporary folder, waiting for it to be gone."""

import contextlib
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import uvloop

from ringserve.server.settings import Settings
from ringserve.server.supervisor import Supervisor

logger = logging.getLogger("ringserve")

PID_FILE_NAME = ".model_server.pid"  # TorchServe's, so that scripts find it
STOP_S_MAX = 90.0
POLL_S = 0.05


class AlreadyRunning(Exception):
    """Another server holds the PID file."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"RingServe is already running (pid {pid}), please use ringserve stop to stop it.")
        self.pid = pid


def pid_file() -> Path:
    """In the temporary folder, which TMPDIR moves."""
    return Path(tempfile.gettempdir()) / PID_FILE_NAME


def running_pid() -> int | None:
    """The server that the PID file names, if it is one and lives. A file that names anything else is stale and removed."""
    path = pid_file()
    try:
        pid = int(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        pid = -1
    if pid > 0 and _is_server(pid):
        return pid
    with contextlib.suppress(OSError):
        path.unlink()
        logger.warning("Removing orphan pid file.")
    return None


def _is_server(pid: int) -> bool:
    try:
        process = psutil.Process(pid)
        words = process.cmdline()
        return process.status() != psutil.STATUS_ZOMBIE and "start" in words and any(map(_is_our_name, words))
    except psutil.Error:
        return False


def _is_our_name(word: str) -> bool:
    return Path(word).name == "ringserve" or word == "ringserve.tools.cli.main"


@contextlib.contextmanager
def _holding_pid_file() -> Iterator[None]:
    """Ours from here on, or `AlreadyRunning`."""
    path = pid_file()
    # It appears with its content: an empty one would look stale to a server that starts at the same moment.
    written = path.with_name(f"{path.name}.{os.getpid()}")
    written.write_text(str(os.getpid()))
    try:
        while True:
            other = running_pid()
            if other is not None and other != os.getpid():
                raise AlreadyRunning(other)
            try:
                os.link(written, path)
                break
            except FileExistsError:
                continue  # somebody started in between, or the stale one is going
    finally:
        written.unlink()
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            if int(path.read_text()) == os.getpid():
                path.unlink()


async def _supervise(settings: Settings, on_started: Callable[[], None]) -> None:
    await Supervisor(settings, on_started).run()


def run_server(settings: Settings, on_started: Callable[[], None]) -> None:
    """Be the server until it is told to stop. Raises `AlreadyRunning`, `ConfigError`, `RingServeError`."""
    with _holding_pid_file():
        for warning in settings.warnings:
            logger.warning("%s", warning)
        uvloop.run(_supervise(settings, on_started))


def stop_server(timeout_s: float = STOP_S_MAX) -> int | None:
    """Tell the running server to stop and wait until it is gone; its pid, or None when none runs. Raises `TimeoutError`."""
    pid = running_pid()
    if pid is None:
        return None
    with contextlib.suppress(ProcessLookupError):
        pidfd = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(pidfd, signal.SIGTERM)
            _wait_gone(pid, timeout_s)
        finally:
            os.close(pidfd)
    return pid


def _wait_gone(pid: int, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while _is_server(pid):
        if time.monotonic() > end:
            raise TimeoutError(f"Stopping RingServe (pid {pid}) took longer than {timeout_s:.0f} s.")
        time.sleep(POLL_S)


def log_to_stderr() -> None:
    """One line an event."""
    logging.basicConfig(
        stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", force=True
    )

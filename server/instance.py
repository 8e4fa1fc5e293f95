"""Starting and stopping the server as a process: one server per temporary folder, and waiting for it to be gone."""

import contextlib
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import uvloop

from ringserve.server.handover import STOP_S_MAX, NotHandedOver, Predecessor, Start, connect, how_started
from ringserve.server.host import work_dirs
from ringserve.server.pid_file import holding_pid_file, is_server, release_pid_file, running_pid
from ringserve.server.security.key_file import remove_key_file
from ringserve.server.settings import Settings

logger = logging.getLogger("ringserve")

STOPPED = "Torchserve stopped."  # TorchServe's, for which scripts wait
POLL_S = 0.05


def run_server(settings: Settings, on_started: Callable[[], None], words: Sequence[str] = ()) -> None:
    """Be the server until it is told to stop. Raises `AlreadyRunning`, `PidFileError`, `ConfigError`, `RingServeError`."""
    with holding_pid_file():
        _be_server(settings, on_started, words, None)


def take_over(
    settings: Settings, on_started: Callable[[], None], words: Sequence[str], pid: int, *, as_before: bool
) -> None:
    """Be the server instead of the running one, which goes on when this one cannot start. Raises what `run_server` does, and
    `NotHandedOver`."""
    if running_pid() != pid:
        raise NotHandedOver(f"The instance with pid {pid} does not run any more.")
    predecessor = Predecessor(connect(_work_dir(pid)), as_before=as_before)
    try:
        _be_server(settings, on_started, words, predecessor)
    finally:
        predecessor.close()
        release_pid_file()


def _be_server(
    settings: Settings, on_started: Callable[[], None], words: Sequence[str], predecessor: Predecessor | None
) -> None:
    # Not above: commands that only stop or look at a server would spend most of their time on it.
    from ringserve.server.supervisor import Supervisor

    for note in settings.notes:
        logger.info("%s", note)
    for warning in settings.warnings:
        logger.warning("%s", warning)

    async def supervise() -> None:
        await Supervisor(settings, on_started, words, predecessor).run()

    uvloop.run(supervise())
    logger.info("%s", STOPPED)


def _work_dir(pid: int) -> Path:
    """Raises `NotHandedOver`."""
    try:
        found = work_dirs(pid)
    except psutil.Error:
        found = []
    if not found:
        raise NotHandedOver(f"The running instance (pid {pid}) is starting or going down.")
    return found[-1]


def started_how(pid: int) -> Start:
    """How the server with that pid was started. Raises `NotHandedOver`."""
    return how_started(_work_dir(pid))


def stop_server(timeout_s: float | None = None) -> int | None:
    """Tell the running server to stop and wait until it is gone, as long as it says that this may take; its pid, or None when none
    runs. Raises `TimeoutError`, `PermissionError`, `PidFileError`, or `ProcessLookupError` when it has ended in the meantime."""
    began_s, stopped = time.time(), None
    pid = running_pid()
    while pid is not None and (stopped is None or _started_s(pid) < began_s):
        _stop(pid, timeout_s)
        # One that was just taking over from it is meant as well; one that somebody has started since is not.
        stopped, pid = pid, running_pid()
    return stopped


def _started_s(pid: int) -> float:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return math.inf


def _stop(pid: int, timeout_s: float | None) -> None:
    if timeout_s is None:
        timeout_s = float(STOP_S_MAX)
        with contextlib.suppress(NotHandedOver):  # it is starting, or going down already
            timeout_s = started_how(pid).stop_s_max
    folder = None
    with contextlib.suppress(OSError):  # another user's
        folder = Path(f"/proc/{pid}/cwd").readlink()
    pidfd = os.pidfd_open(pid)
    try:
        if not is_server(pid):
            raise ProcessLookupError(f"RingServe (pid {pid}) has ended.")
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        _wait_gone(pid, timeout_s)
    except PermissionError:
        raise PermissionError(f"RingServe (pid {pid}) runs as another user, who alone may stop it.") from None
    finally:
        os.close(pidfd)
    if folder is not None and running_pid() is None:
        remove_key_file(folder)


def _wait_gone(pid: int, timeout_s: float) -> None:
    end = time.monotonic() + timeout_s
    while is_server(pid):
        if time.monotonic() > end:
            raise TimeoutError(f"Stopping RingServe (pid {pid}) took longer than {timeout_s:.0f} s.")
        time.sleep(POLL_S)

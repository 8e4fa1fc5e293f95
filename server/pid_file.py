"""The PID file: one server per temporary folder, found by whoever runs there (contract section 7.1).

It holds a pid and nothing else, as TorchServe's does, so what it says is checked: the process must live and be a server.
"""

import contextlib
import errno
import fcntl
import logging
import os
import pwd
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import psutil

logger = logging.getLogger("ringserve")

PID_FILE_NAME = ".model_server.pid"  # TorchServe's, so that scripts find it
BYTES_MAX = 64
# How long somebody else may take to remove a stale file.
REMOVE_S_MAX = 1.0
MODULE = "ringserve.tools.cli.main"
# TorchServe's own command line starts a server when it says nothing else, so what does not is told apart.
_OTHER_COMMANDS = frozenset(("stop", "restart", "status", "archive", "config", "snapshot"))
_OTHER_FLAGS = frozenset(("--stop", "--version", "-v", "--help"))


class AlreadyRunning(Exception):
    """Another server holds the PID file."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"RingServe is already running (pid {pid}), please use ringserve stop to stop it.")
        self.pid = pid


class PidFileError(Exception):
    """The PID file cannot be read, removed or written; the message says why and what to do."""


def pid_file() -> Path:
    """In the temporary folder, which TMPDIR moves."""
    return Path(tempfile.gettempdir()) / PID_FILE_NAME


def running_pid() -> int | None:
    """The server that the PID file names, if it is one and lives. A file that names anything else is stale and removed. Raises
    `PidFileError`."""
    path, end = pid_file(), time.monotonic() + REMOVE_S_MAX
    while True:
        try:
            file = _opened(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unusable(path, "read", error) from None
        with file:
            pid = _pid_in(file)
            if pid is not None and is_server(pid):
                return pid
            try:
                removed = _remove(path, file, others_may=time.monotonic() < end)
            except OSError as error:
                raise _unusable(path, "removed (it names no server that runs)", error) from None
        if removed:
            break
        time.sleep(0.005)
    # TorchServe says nothing where the pid is another program's by now.
    logger.log(logging.INFO if pid is not None and _lives(pid) else logging.WARNING, "Removing orphan pid file.")
    return None


def _opened(path: Path) -> BinaryIO:
    """Of a folder that everybody may write to: neither a link nor a pipe is followed. Raises `OSError`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OSError(errno.ELOOP, "It is a symbolic link") from None
        raise
    if not stat.S_ISREG(mode := os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "Is a directory" if stat.S_ISDIR(mode) else "It is not a regular file")
    return open(fd, "rb")


def _pid_in(file: BinaryIO) -> int | None:
    """None where no pid stands in it."""
    text = file.read(BYTES_MAX).strip()
    return int(text) if text.isdigit() and 0 < int(text) < 2**31 else None


def _remove(path: Path, file: BinaryIO, *, others_may: bool) -> bool:
    """Remove the file that was read, never one that a server has put there since: who removes it has its lock. False when somebody
    else does. Raises `OSError`."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if others_may:
            return False
    try:
        if not os.path.samestat(path.lstat(), os.fstat(file.fileno())):
            return False
        path.unlink()
    except FileNotFoundError:
        return False
    return True


def _unusable(path: Path, what: str, error: OSError) -> PidFileError:
    owner = ""
    with contextlib.suppress(OSError, KeyError):
        uid = path.lstat().st_uid
        if uid != os.geteuid():
            owner = f" It belongs to another user ({pwd.getpwuid(uid).pw_name}): choose a folder of your own by TMPDIR."
    return PidFileError(f"PID file {path} cannot be {what}: {error.strerror or error}.{owner}")


def is_server(pid: int) -> bool:
    try:
        return _lives(pid) and is_server_command(psutil.Process(pid).cmdline())
    except psutil.Error:
        return False


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def is_server_command(words: list[str]) -> bool:
    """Whether a process with this command line is a server: ours by name, and starting one."""
    for at, word in enumerate(words[:8]):
        if word == MODULE or (Path(word).name in ("ringserve", "torchserve") and _is_program(words, at)):
            return _OTHER_COMMANDS.isdisjoint(words[at + 1 : at + 2]) and _OTHER_FLAGS.isdisjoint(words[at + 1 :])
    return False


def _is_program(words: list[str], at: int) -> bool:
    """Whether that word is what runs, and not a user, a folder or a file that has its name."""
    pythons = [place for place, word in enumerate(words[:at]) if Path(word).name.startswith("python")]
    if not pythons:
        return at == 0
    between = words[pythons[0] + 1 : at]
    return all(
        each.startswith("-") or before in ("-X", "-W") for before, each in zip(["", *between], between, strict=False)
    )


@contextlib.contextmanager
def holding_pid_file() -> Iterator[None]:
    """Ours from here on. Raises `AlreadyRunning`, or `PidFileError`."""
    path = pid_file()
    with _written() as written:
        while True:
            other = running_pid()
            if other == os.getpid():
                # In a container that is started again, the server before had our pid.
                path.unlink(missing_ok=True)
            elif other is not None:
                raise AlreadyRunning(other)
            try:
                os.link(written, path)
                break
            except FileExistsError:
                continue  # somebody started in between, or the stale one is going
            except OSError as error:
                raise _unusable(path, "written", error) from None
    try:
        yield
    finally:
        release_pid_file()


def take_pid_file() -> None:
    """From the instance whose sockets this one has taken over."""
    with _written() as written:
        os.rename(written, pid_file())


def keep_pid_file() -> None:
    """It is ours again when whoever was to take over has it and is gone."""
    if running_pid() is None:
        take_pid_file()


def release_pid_file() -> None:
    """Unless it names another one by now."""
    path = pid_file()
    with contextlib.suppress(OSError), _opened(path) as file:
        if _pid_in(file) == os.getpid():
            path.unlink()


@contextlib.contextmanager
def _written() -> Iterator[Path]:
    """A file with our pid, to appear with its content: an empty one would look stale to a server that starts at the same moment."""
    path = pid_file()
    written = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        try:
            written.write_text(str(os.getpid()))
        except OSError as error:
            raise _unusable(written, "written", error) from None
        yield written
    finally:
        with contextlib.suppress(OSError):
            written.unlink(missing_ok=True)

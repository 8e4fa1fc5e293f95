"""What the server takes of the machine it runs on: open files, and a folder of its own for as long as it lives."""

import contextlib
import fcntl
import logging
import os
import re
import resource
import shutil
import tempfile
from pathlib import Path

import psutil

from ringserve.server.settings import ConfigError
from ringserve.shm.link import END_FDS

logger = logging.getLogger("ringserve.supervisor")

# More than that nobody needs, and programs that close whatever they might have inherited would be at it for minutes.
FILES_MAX = 1 << 20
FILES_MIN = 4096
_WORK_DIR = re.compile(r"ringserve-(\d+)-\w+")


def make_work_dir(parent: Path) -> Path:
    """A private folder for unpacked archives, named by our pid; those of servers that died are removed. In a container that is
    started again, the one before had our pid as well; beside us in another container, one that lives may have it, and has locked its
    folder. Raises `ConfigError`."""
    parent = parent.absolute()
    try:
        for entry in parent.iterdir():
            match = _WORK_DIR.fullmatch(entry.name)
            if match and (int(match[1]) == os.getpid() or not psutil.pid_exists(int(match[1]))):
                _remove(entry)
        made = Path(tempfile.mkdtemp(prefix=f"ringserve-{os.getpid()}-", dir=parent))
    except OSError as error:
        raise ConfigError(
            f"temporary folder (TEMP, TMPDIR): {parent} cannot be used: {error.strerror or error}"
        ) from None
    _locked(made)  # for as long as we live; who tidies up by age (systemd-tmpfiles) leaves it alone then, too
    return made


def _remove(folder: Path) -> None:
    """Unless it is locked, or not ours."""
    with contextlib.suppress(OSError):
        fd = _locked(folder)
        shutil.rmtree(folder, ignore_errors=True)
        os.close(fd)


def _locked(folder: Path) -> int:
    """The descriptor that holds the lock. Raises `OSError` where another one has it."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise
    except OSError:
        pass  # a file system without locks
    return fd


def work_dirs(pid: int) -> list[Path]:
    """The folder of the server with that pid, or none. Raises `psutil.Error` for a pid of no process."""
    process = psutil.Process(pid)
    owner, parents = process.uids().effective, [Path(tempfile.gettempdir())]
    with contextlib.suppress(psutil.AccessDenied):
        elsewhere = process.environ().get("TEMP")
        if elsewhere:
            parents.insert(0, Path(process.cwd(), elsewhere))
    found = [path for parent in parents for path in sorted(parent.glob(f"ringserve-{pid}-*"))]
    # In a folder that everybody may write to, somebody else may have made one of its name.
    return [path for path in found if _owner(path) == owner]


def _owner(path: Path) -> int | None:
    with contextlib.suppress(OSError):  # it is going
        return path.lstat().st_uid
    return None


def raise_file_limit() -> int:
    """As many open files as the system allows, for us and our children: every connection is one, every pair of front end and
    worker some. Returns how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    limit = FILES_MAX if limit == resource.RLIM_INFINITY else limit
    if limit < FILES_MIN:
        logger.warning(
            "a process may open %d files only (RLIMIT_NOFILE): a front end needs one for every connection and %d for every worker",
            limit,
            END_FDS + 1,
        )
    return limit

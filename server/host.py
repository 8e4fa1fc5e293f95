"""What the server takes of the machine it runs on: open files, and a folder of its own for as long as it lives."""

import contextlib
import logging
import os
import re
import resource
import shutil
import tempfile
from pathlib import Path

import psutil

from ringserve.shm.link import END_FDS

logger = logging.getLogger("ringserve.supervisor")

# More than that nobody needs, and programs that close whatever they might have inherited would be at it for minutes.
FILES_MAX = 1 << 20
FILES_MIN = 4096
_WORK_DIR = re.compile(r"ringserve-(\d+)-\w+")


def make_work_dir(parent: Path) -> Path:
    """A private folder for unpacked archives, named by our pid; those of servers that died are removed. In a container that is
    started again, the one before had our pid as well."""
    for entry in parent.iterdir():
        match = _WORK_DIR.fullmatch(entry.name)
        if match and (int(match[1]) == os.getpid() or not psutil.pid_exists(int(match[1]))):
            shutil.rmtree(entry, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"ringserve-{os.getpid()}-", dir=parent))


def work_dirs(pid: int) -> list[Path]:
    """The folder of the server with that pid, or none. Raises `psutil.Error` for a pid of no process."""
    process = psutil.Process(pid)
    owner, parents = process.uids().effective, [Path(tempfile.gettempdir())]
    with contextlib.suppress(psutil.AccessDenied):
        elsewhere = process.environ().get("TEMP")
        if elsewhere:
            parents.insert(0, Path(elsewhere))
    found = [path for parent in parents for path in sorted(parent.glob(f"ringserve-{pid}-*"))]
    # In a folder that everybody may write to, somebody else may have made one of its name.
    return [path for path in found if path.lstat().st_uid == owner]


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

"""One piece of shared memory, without a name.

A segment is created with `posix_ipc`, unlinked at once and known by its file descriptor alone: nothing is left in /dev/shm
when every process is killed, and there is no name to guess. Where the mount is missing or too small (64 MB containers),
`memfd_create` gives the same thing from the same memory. Pages are reserved at creation, so that too little memory is an
`OutOfSharedMemory` here and never a SIGBUS later.

Between creating and unlinking, a name exists for some microseconds, and a process killed right then leaves it behind. The
supervisor, which makes lanes and links, is rarely killed and sweeps such names when it starts. Parcels are made all the time, by
processes that are killed all the time (twenty kills under load left a name): they are `memfd`s, which never have one.
"""

import contextlib
import mmap
import os
import re
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import posix_ipc

from ringserve.shm.shm_errors import OutOfSharedMemory

NAME_PREFIX = "ringserve-"
_OWN_NAME = re.compile(rf"{NAME_PREFIX}(\d+)-[0-9a-f]+")


class Segment:
    """Shared memory mapped into this process. `view` is all of it, writable."""

    def __init__(self, fd: int, size_bytes: int) -> None:
        """Take over `fd`. Raises `OSError` when it cannot be mapped; `fd` is closed then."""
        self.fd = fd
        self.size_bytes = size_bytes
        try:
            self._map = mmap.mmap(fd, size_bytes)
        except BaseException:
            os.close(fd)
            raise
        self.view = memoryview(self._map)

    @classmethod
    def create(cls, size_bytes: int) -> Self:
        """A fresh segment of zeros. Raises `OutOfSharedMemory`."""
        return cls._made((_named_and_unlinked, _memfd), size_bytes)

    @classmethod
    def create_parcel(cls, size_bytes: int) -> Self:
        """A fresh one-off segment, never with a name. Raises `OutOfSharedMemory`."""
        return cls._made((_memfd,), size_bytes)

    @classmethod
    def _made(cls, ways: Sequence[Callable[[], int]], size_bytes: int) -> Self:
        assert size_bytes > 0
        for create in ways:
            fd = _reserved(create, size_bytes)
            if fd is not None:
                return cls(fd, size_bytes)
        raise OutOfSharedMemory(
            f"{size_bytes} bytes of shared memory were needed and neither /dev/shm nor memory has them"
        )

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Map a segment received from another process; `fd` belongs to the segment from here on."""
        return cls(fd, os.fstat(fd).st_size)

    def close(self) -> None:
        """Unmap and close. Arrays still looking at the memory keep the mapping alive until they go; no error."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        with contextlib.suppress(BufferError):
            self.view.release()
            self._map.close()


def _named_and_unlinked() -> int:
    name = f"/{NAME_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
    memory.unlink()
    os.set_inheritable(memory.fd, False)
    return int(memory.fd)


def _memfd() -> int:
    return os.memfd_create("ringserve", os.MFD_CLOEXEC)


def _reserved(create: Callable[[], int], size_bytes: int) -> int | None:
    """A descriptor with `size_bytes` of memory behind it, or None where there is no room for them."""
    try:
        fd = create()
    except (OSError, posix_ipc.Error):
        return None
    try:
        os.posix_fallocate(fd, 0, size_bytes)
    except OSError:
        os.close(fd)
        return None
    return fd


def sweep_names(folder: Path = Path("/dev/shm")) -> list[str]:
    """Remove names whose process died between creating and unlinking them; returns what was removed."""
    removed = []
    with contextlib.suppress(OSError):
        for entry in folder.iterdir():
            match = _OWN_NAME.fullmatch(entry.name)
            if match and not Path(f"/proc/{match[1]}").exists():
                with contextlib.suppress(OSError):
                    entry.unlink()
                    removed.append(entry.name)
    return removed

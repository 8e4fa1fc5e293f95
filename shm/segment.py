"""One piece of shared memory, without a name.

A segment is created with `posix_ipc`, unlinked at once and known by its file descriptor alone: nothing is left in /dev/shm
when every process is killed, and there is no name to guess. Where the mount is missing or too small (64 MB containers),
`memfd_create` gives the same thing from the same memory. Pages are reserved before they are written to, all at creation or, in
a sparse segment, a part at a time, so that too little memory is an `OutOfSharedMemory` and never a SIGBUS.

A sparse segment may want all of its pages later, when the mount may be full. So it goes there only when it takes no more than
half of what is left, without what other sparse segments of this process may still want; the other half is for everybody else.
Otherwise it is a `memfd`, which no mount limits.

Between creating and unlinking, a name exists for some microseconds, and a process killed right then leaves it behind. The
supervisor, which makes lanes and links, is rarely killed and sweeps such names when it starts. Parcels are made all the time, by
processes that are killed all the time (twenty kills under load left a name): they are `memfd`s, which never have one.
"""

import contextlib
import errno
import mmap
import os
import re
import secrets
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import posix_ipc

from ringserve.shm.layout import align
from ringserve.shm.shm_errors import OutOfSharedMemory

NAME_PREFIX = "ringserve-"
_OWN_NAME = re.compile(rf"{NAME_PREFIX}(\d+)-[0-9a-f]+")
MOUNT = Path("/dev/shm")
BLOCK_BYTES = 512  # the unit of st_blocks


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
        """A fresh segment of zeros, reserved. Raises `OutOfSharedMemory`."""
        return cls._made((_named_and_unlinked, _memfd), os.posix_fallocate, size_bytes)

    @classmethod
    def create_parcel(cls, size_bytes: int) -> Self:
        """A fresh one-off segment, never with a name, reserved. Raises `OutOfSharedMemory`."""
        return cls._made((_memfd,), os.posix_fallocate, size_bytes)

    @classmethod
    def create_sparse(cls, size_bytes: int) -> Self:
        """A fresh segment that has no memory yet: `reserve` what is about to be written. Raises `OutOfSharedMemory`."""
        on_mount = size_bytes <= (mount_free_bytes() - _promised_bytes()) // 2
        ways = (_named_and_unlinked, _memfd) if on_mount else (_memfd,)
        made = cls._made(ways, lambda fd, _, size: os.ftruncate(fd, size), size_bytes)
        _sparse.add(made)
        return made

    @classmethod
    def _made(cls, ways: Sequence[Callable[[], int]], fill: Callable[[int, int, int], None], size_bytes: int) -> Self:
        assert size_bytes > 0
        reason = ""
        for create in ways:
            try:
                return cls(_filled(create, fill, size_bytes), size_bytes)
            except (OSError, posix_ipc.Error) as error:
                reason = getattr(error, "strerror", None) or str(error)
        raise OutOfSharedMemory(
            f"{size_bytes} bytes of shared memory were needed and neither {MOUNT}, which has {mount_free_bytes()} free, nor"
            f" memory has them: {reason}"
        )

    @classmethod
    def attach(cls, fd: int) -> Self:
        """Map a segment received from another process; `fd` belongs to the segment from here on."""
        return cls(fd, os.fstat(fd).st_size)

    @property
    def allocated_bytes(self) -> int:
        """How much memory stands behind it."""
        return os.fstat(self.fd).st_blocks * BLOCK_BYTES

    @property
    def where(self) -> str:
        """What its memory belongs to, for the log."""
        return str(MOUNT) if os.readlink(f"/proc/self/fd/{self.fd}").startswith(f"{MOUNT}/") else "a memory file"

    def reserve(self, at: int, length: int) -> None:
        """Put memory behind a part; what it holds stays. Raises `OutOfSharedMemory`."""
        assert at >= 0
        assert 0 < length <= self.size_bytes - at
        try:
            os.posix_fallocate(self.fd, at, length)
        except OSError as error:
            raise OutOfSharedMemory(
                f"{length} more bytes of {self.where} were needed, {mount_free_bytes()} are free in {MOUNT}: {error.strerror}"
            ) from None

    def give_back(self, at: int, length: int) -> None:
        """Take the memory from the whole pages of a part, in every process; they read as zeros then. Where the kernel knows
        no holes, nothing happens."""
        start = align(at, mmap.PAGESIZE)
        end = (at + length) // mmap.PAGESIZE * mmap.PAGESIZE
        if start < end:
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_REMOVE, start, end - start)

    def close(self) -> None:
        """Unmap and close. Arrays still looking at the memory keep the mapping alive until they go; no error."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
        with contextlib.suppress(BufferError):
            self.view.release()
            self._map.close()


_sparse: weakref.WeakSet[Segment] = weakref.WeakSet()


def mount_free_bytes() -> int:
    """What /dev/shm has left; 0 where there is none."""
    try:
        free = os.statvfs(MOUNT) if os.path.ismount(MOUNT) else None
    except OSError:
        return 0
    return 0 if free is None else free.f_bavail * free.f_frsize


def _promised_bytes() -> int:
    """What the sparse segments of this process may still take from the mount."""
    return sum(each.size_bytes - each.allocated_bytes for each in _sparse if each.fd >= 0 and each.where == str(MOUNT))


def _named_and_unlinked() -> int:
    if not os.path.ismount(MOUNT):
        raise FileNotFoundError(errno.ENOENT, f"{MOUNT} is no mount")  # a folder there is part of a disk
    name = f"/{NAME_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    memory = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600)
    memory.unlink()
    os.set_inheritable(memory.fd, False)
    return int(memory.fd)


def _memfd() -> int:
    return os.memfd_create("ringserve", os.MFD_CLOEXEC)


def _filled(create: Callable[[], int], fill: Callable[[int, int, int], None], size_bytes: int) -> int:
    """A descriptor of `size_bytes`. Raises `OSError` or `posix_ipc.Error` where there is no room for them."""
    fd = create()
    try:
        fill(fd, 0, size_bytes)
    except OSError:
        os.close(fd)
        raise
    return fd


def sweep_names(folder: Path = MOUNT) -> list[str]:
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

"""Shared memory without a name: what one mapping writes another reads, and nothing is left behind."""

import errno
import os
from pathlib import Path

import numpy as np
import posix_ipc
import pytest

from ringserve.shm.segment import NAME_PREFIX, Segment, sweep_names
from ringserve.shm.shm_errors import OutOfSharedMemory

NO_SUCH_PID = 2**22 + 1  # the kernel's pid_max is at most 2**22


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def named() -> list[str]:
    return [path.name for path in Path("/dev/shm").glob(f"{NAME_PREFIX}{os.getpid()}-*")]


def backing_of(segment: Segment) -> str:
    return os.readlink(f"/proc/self/fd/{segment.fd}")


def test_a_fresh_segment_is_zeros_of_the_asked_size() -> None:
    segment = Segment.create(5000)
    assert segment.view == bytes(5000)
    assert not os.get_inheritable(segment.fd)
    segment.close()


def test_two_mappings_see_the_same_bytes() -> None:
    mine = Segment.create(4096)
    theirs = Segment.attach(os.dup(mine.fd))
    mine.view[10:15] = b"there"
    theirs.view[20:24] = b"back"
    assert (bytes(theirs.view[10:15]), bytes(mine.view[20:24])) == (b"there", b"back")
    assert theirs.size_bytes == 4096
    theirs.close()
    mine.close()


def test_no_name_is_left_after_creation() -> None:
    segment = Segment.create(4096)
    assert named() == []
    assert backing_of(segment).startswith(f"/dev/shm/{NAME_PREFIX}")
    assert backing_of(segment).endswith("(deleted)")
    segment.close()


def test_without_posix_shared_memory_a_memory_file_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise posix_ipc.PermissionsError("/dev/shm is read-only here")

    monkeypatch.setattr(posix_ipc, "SharedMemory", refuse)
    segment = Segment.create(4096)
    assert backing_of(segment).startswith("/memfd:")
    assert segment.view == bytes(4096)
    segment.close()


def test_a_full_mount_falls_back_to_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A 64 MB container: the name can be made, the pages cannot be reserved."""
    reserve = os.posix_fallocate

    def full_mount(fd: int, offset: int, length: int) -> None:
        if "/dev/shm/" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full_mount)
    segment = Segment.create(4096)
    assert backing_of(segment).startswith("/memfd:")
    assert named() == []
    segment.close()


def test_too_little_memory_is_a_sentence_and_leaks_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    before = open_fds()
    with pytest.raises(OutOfSharedMemory, match=r"^123456 bytes of shared memory were needed"):
        Segment.create(123_456)
    assert open_fds() == before


def test_what_cannot_be_mapped_is_closed() -> None:
    listen_fd, ring_fd = os.pipe()
    with pytest.raises((OSError, ValueError)):
        Segment.attach(listen_fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(listen_fd)
    os.close(ring_fd)


def test_closing_twice_is_closing_once() -> None:
    before = open_fds()
    segment = Segment.create(4096)
    segment.close()
    segment.close()
    assert open_fds() == before


def test_an_array_outlives_its_segment() -> None:
    """Closing with a view in somebody's hands is no error, and the view still reads."""
    segment = Segment.create(4096)
    array = np.frombuffer(segment.view[:16], dtype="<u8")
    segment.view[0] = 7
    segment.close()
    assert array.tolist() == [7, 0]


def test_sweeping_removes_only_names_of_dead_processes(tmp_path: Path) -> None:
    dead = f"{NAME_PREFIX}{NO_SUCH_PID}-0123456789abcdef"
    kept = {
        f"{NAME_PREFIX}{os.getpid()}-0123456789abcdef",
        f"{NAME_PREFIX}{NO_SUCH_PID}-not-hexadecimal",
        f"other-{NO_SUCH_PID}-0123456789abcdef",
        f"x{dead}",
    }
    for name in (dead, *kept):
        (tmp_path / name).touch()
    assert sweep_names(tmp_path) == [dead]
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_sweeping_a_missing_mount_does_nothing(tmp_path: Path) -> None:
    assert sweep_names(tmp_path / "none") == []


def test_a_parcel_never_has_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who makes parcels may be killed at any moment, also between making a name and removing it."""

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("a name was made")

    monkeypatch.setattr(posix_ipc, "SharedMemory", refused)
    parcel = Segment.create_parcel(4096)
    parcel.view[:5] = b"bytes"
    other = Segment.attach(os.dup(parcel.fd))
    assert bytes(other.view[:5]) == b"bytes"
    other.close()
    parcel.close()

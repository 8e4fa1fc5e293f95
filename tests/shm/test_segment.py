"""Shared memory without a name: what one mapping writes another reads, and nothing is left behind."""

import errno
import mmap
import os
import resource
from pathlib import Path

import numpy as np
import posix_ipc
import pytest

from ringserve.shm import segment as segment_module
from ringserve.shm.segment import NAME_PREFIX, Segment, mount_free_bytes, sweep_names
from ringserve.shm.shm_errors import OutOfSharedMemory

needs_mount = pytest.mark.skipif(not os.path.ismount("/dev/shm"), reason="this machine has no /dev/shm")
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


@needs_mount
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


def test_a_folder_that_is_no_mount_is_no_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without a mount, /dev/shm is a folder on some disk, and what is written there goes to the disk."""
    monkeypatch.setattr(segment_module, "MOUNT", tmp_path)
    assert mount_free_bytes() == 0
    segment = Segment.create(4096)
    assert backing_of(segment).startswith("/memfd:")
    assert segment.where == "a memory file"
    segment.close()


def test_a_sparse_segment_has_its_size_and_no_memory_until_it_is_reserved() -> None:
    segment = Segment.create_sparse(1 << 30)
    assert (segment.size_bytes, segment.allocated_bytes) == (1 << 30, 0)
    segment.reserve(5000, 10_000)
    assert segment.allocated_bytes == 3 * mmap.PAGESIZE
    segment.view[5000:15_000] = b"x" * 10_000
    assert segment.allocated_bytes == 3 * mmap.PAGESIZE
    segment.reserve(5000, 10_000)
    assert bytes(segment.view[5000:15_000]) == b"x" * 10_000
    segment.close()


def test_only_whole_pages_of_a_part_are_given_back() -> None:
    segment = Segment.create(4 * mmap.PAGESIZE)
    segment.view[:] = b"x" * len(segment.view)
    segment.give_back(1, mmap.PAGESIZE - 1)
    segment.give_back(0, mmap.PAGESIZE - 1)
    assert segment.allocated_bytes == 4 * mmap.PAGESIZE
    segment.give_back(1, 3 * mmap.PAGESIZE)
    assert segment.allocated_bytes == 2 * mmap.PAGESIZE
    kept = b"x" * mmap.PAGESIZE
    assert bytes(segment.view) == kept + bytes(2 * mmap.PAGESIZE) + kept
    segment.close()


@needs_mount
@pytest.mark.parametrize(("mebibytes", "place"), [(32, "/dev/shm"), (33, "a memory file")])
def test_a_sparse_segment_goes_to_the_mount_when_half_of_it_can_hold_it(
    monkeypatch: pytest.MonkeyPatch, mebibytes: int, place: str
) -> None:
    monkeypatch.setattr(segment_module, "mount_free_bytes", lambda: 64 << 20)
    segment = Segment.create_sparse(mebibytes << 20)
    assert segment.where == place
    segment.close()


@needs_mount
def test_what_one_sparse_segment_may_still_take_is_not_promised_to_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_module, "mount_free_bytes", lambda: 64 << 20)
    first = Segment.create_sparse(30 << 20)
    second = Segment.create_sparse(20 << 20)
    assert (first.where, second.where) == ("/dev/shm", "a memory file")
    first.close()
    third = Segment.create_sparse(20 << 20)
    assert third.where == "/dev/shm"
    second.close()
    third.close()


def test_a_part_that_cannot_be_reserved_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    segment = Segment.create_sparse(1 << 20)

    def full(fd: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OutOfSharedMemory, match=r"^123 more bytes of .* were needed, .* No space left on device"):
        segment.reserve(1, 123)
    segment.close()


def test_a_segment_larger_than_a_file_may_be_is_a_sentence_and_leaks_no_descriptor() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = open_fds()
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))
    try:
        for create in (Segment.create, Segment.create_parcel, Segment.create_sparse):
            with pytest.raises(OutOfSharedMemory, match="File too large"):
                create(2 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
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

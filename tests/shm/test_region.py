"""Regions that clients lend: the bytes are those of their object, and a truncated one is an error and no signal."""

import os
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from ringserve.shm.region import Region, RegionError, RegionMissing, check_key, open_object
from ringserve.shm.segment import NAME_PREFIX


@pytest.fixture
def object_path() -> Iterator[Path]:
    path = Path("/dev/shm") / f"client-{uuid4().hex}"
    path.write_bytes(bytes(range(256)) * 32)
    yield path
    path.unlink(missing_ok=True)


def region_of(path: Path, offset: int = 0) -> Region:
    fd, size_bytes = open_object(path.name)
    return Region("mine", fd, offset, size_bytes - offset)


@pytest.mark.parametrize("key", ["name", "/name", "//name"])
def test_a_key_may_have_slashes_in_front(key: str) -> None:
    assert check_key(key) == "name"


@pytest.mark.parametrize("key", ["", "/", "///", ".", "/..", "a/b", "../a", "a\0b", "x" * 256, "é" * 128])
def test_a_key_that_names_no_object_is_refused(key: str) -> None:
    with pytest.raises(RegionError, match="invalid shm key"):
        check_key(key)


@pytest.mark.parametrize("slashes", ["", "/", "//"])
def test_a_key_of_the_servers_own_memory_is_refused_in_every_spelling(slashes: str) -> None:
    with pytest.raises(RegionError, match=f"reserved prefix '{NAME_PREFIX}'"):
        check_key(f"{slashes}{NAME_PREFIX}1-ab")


def test_bytes_are_read_and_written_from_the_offset_on(object_path: Path) -> None:
    region = region_of(object_path, offset=10)
    memory = memoryview(bytearray(5))
    region.read_into(3, memory)
    assert bytes(memory) == bytes([13, 14, 15, 16, 17])
    region.write(1, b"abc")
    assert object_path.read_bytes()[9:15] == bytes([9, 10]) + b"abc" + bytes([14])


def test_an_object_that_was_truncated_is_an_error_to_read_and_is_not_made_longer_by_writing(object_path: Path) -> None:
    region = region_of(object_path)
    os.truncate(object_path, 100)
    with pytest.raises(RegionError, match="region 'mine' is shorter than when it was registered"):
        region.read_into(0, memoryview(bytearray(200)))
    with pytest.raises(RegionError, match="region 'mine' is shorter"):
        region.write(50, bytes(100))
    assert object_path.stat().st_size == 100


def test_opening_leaves_the_object_to_its_owner(object_path: Path) -> None:
    region = region_of(object_path)
    fd = region.fd
    del region
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert object_path.exists()


def test_an_object_that_was_unlinked_can_still_be_read(object_path: Path) -> None:
    region = region_of(object_path)
    object_path.unlink()
    memory = memoryview(bytearray(4))
    region.read_into(0, memory)
    assert bytes(memory) == bytes(range(4))


def test_what_is_not_there_cannot_be_opened() -> None:
    with pytest.raises(RegionMissing, match="Unable to open shared memory region: '/not-there'"):
        open_object("not-there")


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)])
def test_only_plain_objects_are_opened(object_path: Path, make: object) -> None:
    object_path.unlink()
    make(object_path)  # type: ignore[operator]
    try:
        with pytest.raises(RegionMissing):
            open_object(object_path.name)
    finally:
        (object_path.rmdir if object_path.is_dir() else object_path.unlink)()

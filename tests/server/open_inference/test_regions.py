"""Places of tensors in regions: only what lies in them, and still when they are unregistered under way."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from ringserve.protocol.errors import BadRequest, NotFound
from ringserve.server.open_inference.call import RegionPlace
from ringserve.server.open_inference.regions import Regions
from ringserve.shm.region import Region, open_object


@pytest.fixture
def path() -> Iterator[Path]:
    path = Path("/dev/shm") / f"client-{uuid4().hex}"
    path.write_bytes(bytes(range(100)))
    yield path
    path.unlink(missing_ok=True)


def shared(path: Path, offset: int = 10, size_bytes: int = 50) -> Regions:
    regions = Regions()
    regions.share("mine", Region("mine", open_object(path.name)[0], offset, size_bytes))
    return regions


def test_an_input_is_read_from_its_place_and_so_is_a_part_of_it(path: Path) -> None:
    found = shared(path).input(RegionPlace("mine", 5, 8))
    memory = memoryview(bytearray(8))
    found.read_into(memory)
    assert list(memory) == list(range(15, 23))
    found.part(2, 3).read_into(memory[:3])
    assert list(memory[:3]) == [17, 18, 19]


def test_an_output_is_written_to_its_place_and_may_be_shorter(path: Path) -> None:
    shared(path).output(RegionPlace("mine", 5, 8)).write("y", b"abc")
    assert path.read_bytes()[14:19] == bytes([14]) + b"abc" + bytes([18])


def test_an_output_longer_than_its_place_is_refused_and_not_written(path: Path) -> None:
    place = shared(path).output(RegionPlace("mine", 0, 2))
    sentence = r"for output 'y' \(2 bytes\) should be at least 3 bytes to hold the results"
    with pytest.raises(BadRequest, match=sentence):
        place.write("y", b"abc")
    assert path.read_bytes() == bytes(range(100))


@pytest.mark.parametrize(("offset", "nbytes"), [(50, 0), (50, 1), (-1, 5), (2**63, 1), (10**30, 1)])
def test_an_offset_outside_is_refused(path: Path, offset: int, nbytes: int) -> None:
    with pytest.raises(BadRequest, match="Invalid offset for shared memory region: 'mine'"):
        shared(path).input(RegionPlace("mine", offset, nbytes))


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 51), (49, 2), (0, 2**63), (1, 10**30), (0, -1)])
def test_what_would_reach_outside_is_refused(path: Path, offset: int, nbytes: int) -> None:
    with pytest.raises(BadRequest, match=r"Invalid offset \+ byte size for shared memory region: 'mine'"):
        shared(path).output(RegionPlace("mine", offset, nbytes))


def test_an_unknown_region_is_not_found() -> None:
    with pytest.raises(NotFound, match="Unable to find shared memory region: 'mine'"):
        Regions().input(RegionPlace("mine", 0, 1))


def test_a_region_that_is_dropped_under_way_is_there_to_its_end(path: Path) -> None:
    regions = shared(path)
    into, out = regions.input(RegionPlace("mine", 0, 4)), regions.output(RegionPlace("mine", 4, 4))
    regions.drop(("mine", "unknown"))
    memory = memoryview(bytearray(4))
    into.read_into(memory)
    out.write("y", b"wxyz")
    assert bytes(memory) == bytes(range(10, 14))
    assert path.read_bytes()[14:18] == b"wxyz"
    with pytest.raises(NotFound):
        regions.input(RegionPlace("mine", 0, 1))


def test_a_region_truncated_under_way_is_the_clients_fault(path: Path) -> None:
    regions = shared(path)
    found = regions.input(RegionPlace("mine", 0, 40))
    path.write_bytes(b"short")
    with pytest.raises(BadRequest, match="shorter than when it was registered"):
        found.read_into(memoryview(bytearray(40)))

"""What clients register of their memory: every front end knows of it before the answer, and nothing wrong changes anything."""

import asyncio
import os
import resource
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from ringserve.protocol.errors import AlreadyExists, BadRequest, NotFound, RingServeError, Unsupported
from ringserve.server.messages import Message
from ringserve.server.region_messages import DropRegions, RegionRefused, ShareCudaRegion, ShareRegion
from ringserve.server.shared_regions import CUDA, REGIONS_MAX, SYSTEM, SharedRegions

BYTES = 8192


@pytest.fixture
def key() -> Iterator[str]:
    path = Path("/dev/shm") / f"client-{uuid4().hex}"
    path.write_bytes(bytes(BYTES))
    yield path.name
    path.unlink(missing_ok=True)


class FrontEnds:
    """What front ends are told, and with how many descriptors."""

    def __init__(self, regions: SharedRegions) -> None:
        self.heard: list[tuple[Message, int]] = []
        regions.tell_all = self.tell

    async def tell(self, make: Callable[[int], Message], fds: Sequence[int] = ()) -> list[object]:
        for fd in fds:
            os.fstat(fd)
        self.heard.append((make(7), len(fds)))
        return [True]


def registered(*bodies: tuple[str, Any]) -> tuple[SharedRegions, FrontEnds]:
    regions = SharedRegions(allowed=True)
    front_ends = FrontEnds(regions)
    for name, body in bodies:
        asyncio.run(regions.register(name, body))
    return regions, front_ends


def refused(regions: SharedRegions, name: str, body: Any) -> RingServeError:
    with pytest.raises(RingServeError) as raised:
        asyncio.run(regions.register(name, body))
    return raised.value


def test_a_region_is_told_to_every_front_end_with_its_object(key: str) -> None:
    regions, front_ends = registered(("mine", {"key": f"/{key}", "offset": 100, "byte_size": 200}))
    assert front_ends.heard == [(ShareRegion(7, "mine", 100, 200), 1)]
    entry = {"name": "mine", "key": f"/{key}", "offset": 100, "byte_size": 200}
    assert regions.status("", SYSTEM) == [entry]
    assert regions.status("mine", SYSTEM) == [entry]
    assert regions.status("", CUDA) == []
    regions.close()


def test_a_front_end_that_starts_later_is_told_of_all(key: str) -> None:
    regions, _ = registered(*((name, {"key": key, "byte_size": 8}) for name in "ab"))
    told: list[tuple[Message, int]] = []
    regions.equip(lambda message, fds: told.append((message, len(fds))), 3)
    assert told == [(ShareRegion(3, name, 0, 8), 1) for name in "ab"]
    regions.close()


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({}, "Shared memory register request has no 'key' field"),
        ([], "Shared memory register request has no 'key' field"),
        (None, "Shared memory register request has no 'key' field"),
        ({"key": "KEY"}, "Shared memory register request has no 'byte_size' field"),
        ({"key": 5, "byte_size": 8}, "'key': expected a string, got int"),
        ({"key": "//", "byte_size": 8}, "cannot register shared memory region 'mine' - invalid shm key '//'"),
        ({"key": "a/b", "byte_size": 8}, "cannot register shared memory region 'mine' - invalid shm key 'a/b'"),
        (
            {"key": "/ringserve-1", "byte_size": 8},
            "cannot register shared memory region 'mine' with key '/ringserve-1' as the key contains the reserved prefix 'ringserve-'",
        ),
        ({"key": "/not-there-at-all", "byte_size": 8}, "Unable to open shared memory region: '/not-there-at-all'"),
        ({"key": "KEY", "byte_size": BYTES + 1}, "failed to register shared memory region 'mine': invalid args"),
        (
            {"key": "KEY", "byte_size": 8, "offset": BYTES},
            "failed to register shared memory region 'mine': invalid args",
        ),
        ({"key": "KEY", "byte_size": 0}, "failed to register shared memory region 'mine': invalid args"),
        ({"key": "KEY", "byte_size": 2**63 - 1, "offset": 2**63 - 1}, "invalid args"),
        ({"key": "KEY", "byte_size": -1}, "'byte_size': expected a whole number from 0 to"),
        ({"key": "KEY", "byte_size": 8, "offset": 2**63}, "'offset': expected a whole number from 0 to"),
        ({"key": "KEY", "byte_size": "8"}, "'byte_size': expected a whole number from 0 to"),
        ({"key": "KEY", "byte_size": True}, "'byte_size': expected a whole number from 0 to"),
    ],
)
def test_a_request_that_is_wrong_says_why_and_changes_nothing(key: str, body: Any, sentence: str) -> None:
    regions, front_ends = registered()
    before = len(os.listdir("/proc/self/fd"))
    if isinstance(body, dict) and body.get("key") == "KEY":
        body = {**body, "key": key}
    error = refused(regions, "mine", body)
    assert isinstance(error, BadRequest)
    assert sentence in str(error)
    assert front_ends.heard == []
    assert regions.status("", SYSTEM) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_name_is_registered_once(key: str) -> None:
    regions, _ = registered(("mine", {"key": key, "byte_size": 8}))
    error = refused(regions, "mine", {"key": key, "byte_size": 16})
    assert isinstance(error, AlreadyExists)
    assert str(error) == "shared memory region 'mine' already in manager"
    regions.close()


def test_unregistering_forgets_one_or_all_and_never_fails_for_want_of_one(key: str) -> None:
    regions, front_ends = registered(*((name, {"key": key, "byte_size": 8}) for name in "abc"))
    asyncio.run(regions.unregister("b", SYSTEM))
    asyncio.run(regions.unregister("b", SYSTEM))
    asyncio.run(regions.unregister("", CUDA))
    assert [each["name"] for each in regions.status("", SYSTEM)] == ["a", "c"]
    asyncio.run(regions.unregister("", SYSTEM))
    assert regions.status("", SYSTEM) == []
    assert front_ends.heard[3:] == [(DropRegions(7, ("b",)), 0), (DropRegions(7, ("a", "c")), 0)]


def test_a_region_of_the_other_kind_is_not_unregistered(key: str) -> None:
    regions, _ = registered(("mine", {"key": key, "byte_size": 8}))
    with pytest.raises(BadRequest, match="'mine' is registered as system shared memory, not CUDA shared memory"):
        asyncio.run(regions.unregister("mine", CUDA))
    regions.close()


@pytest.mark.parametrize(("kind", "word"), [(SYSTEM, "system"), (CUDA, "cuda")])
def test_the_status_of_an_unknown_region_is_not_found(kind: str, word: str) -> None:
    with pytest.raises(NotFound, match=f"Unable to find {word} shared memory region: 'nothing'"):
        SharedRegions(allowed=True).status("nothing", kind)


def test_where_it_is_not_allowed_nothing_is_registered_and_there_is_nothing_to_list(key: str) -> None:
    regions = SharedRegions(allowed=False)
    error = refused(regions, "mine", {"key": key, "byte_size": 8})
    assert isinstance(error, Unsupported)
    assert "allow_client_shm" in str(error)
    assert regions.status("", SYSTEM) == []


def test_there_are_only_so_many(key: str) -> None:
    regions, _ = registered(*((f"r{index}", {"key": key, "byte_size": 8}) for index in range(REGIONS_MAX)))
    assert f"{REGIONS_MAX} are registered already" in str(refused(regions, "one more", {"key": key, "byte_size": 8}))
    regions.close()


def test_front_ends_that_cannot_be_told_leave_nothing_registered(key: str) -> None:
    async def fail(make: Callable[[int], Message], fds: Sequence[int] = ()) -> list[object]:
        raise OSError("no room")

    regions = SharedRegions(allowed=True)
    regions.tell_all = fail
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="no room"):
        asyncio.run(regions.register("mine", {"key": key, "byte_size": 8}))
    assert regions.status("", SYSTEM) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_front_end_that_starts_while_others_are_told_has_what_they_will_have(key: str) -> None:
    regions = SharedRegions(allowed=True)
    fresh: list[Message] = []

    async def tell(make: Callable[[int], Message], fds: Sequence[int] = ()) -> list[object]:
        fresh.clear()
        regions.equip(lambda message, fds: fresh.append(message), 3)
        return [True]

    regions.tell_all = tell
    asyncio.run(regions.register("mine", {"key": key, "byte_size": 8}))
    assert fresh == [ShareRegion(3, "mine", 0, 8)]
    asyncio.run(regions.unregister("mine", SYSTEM))
    assert fresh == []


def test_connections_and_workers_keep_most_of_the_files_that_may_be_open(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (8, 8))
    regions, _ = registered(*((name, {"key": key, "byte_size": 8}) for name in "ab"))
    assert "2 are registered already" in str(refused(regions, "c", {"key": key, "byte_size": 8}))
    regions.close()


HANDLE = {"b64": b64encode(bytes(64)).decode()}


def test_memory_of_a_gpu_is_told_to_every_front_end() -> None:
    regions, front_ends = registered()
    asyncio.run(regions.register("card", {"raw_handle": HANDLE, "device_id": 1, "byte_size": 64}, CUDA))
    assert front_ends.heard == [(ShareCudaRegion(7, "card", bytes(64), 1, 64), 0)]
    assert regions.status("", CUDA) == [{"name": "card", "device_id": 1, "byte_size": 64}]
    assert regions.status("", SYSTEM) == []


def test_memory_that_a_front_end_cannot_open_is_registered_nowhere() -> None:
    regions, front_ends = registered()
    told = front_ends.tell

    async def refuse(make: Callable[[int], Message], fds: Sequence[int] = ()) -> list[object]:
        await told(make, fds)
        return [True, RegionRefused(7, "there is no CUDA driver on this machine")]

    regions.tell_all = refuse
    with pytest.raises(
        BadRequest, match="failed to register CUDA shared memory region 'card': there is no CUDA driver"
    ):
        asyncio.run(regions.register("card", {"raw_handle": HANDLE, "device_id": 0, "byte_size": 64}, CUDA))
    assert front_ends.heard[-1] == (DropRegions(7, ("card",)), 0)
    assert regions.status("", CUDA) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"raw_handle": None}, "'raw_handle': expected the 64 bytes"),
        ({"raw_handle": {"b64": "AAAA"}}, "'raw_handle': expected the 64 bytes"),
        ({"raw_handle": {"b64": "?"}}, "'raw_handle': expected the 64 bytes"),
        ({"device_id": -1}, "'device_id': expected a whole number from 0 to"),
        ({"device_id": 5000}, "'device_id': expected the number of a GPU, got 5000"),
        ({"byte_size": 1.5}, "'byte_size': expected a whole number from 0 to"),
    ],
)
def test_a_registration_of_gpu_memory_that_is_wrong_says_why(change: dict[str, Any], sentence: str) -> None:
    regions, _ = registered()
    body = {"raw_handle": HANDLE, "device_id": 0, "byte_size": 64, **change}
    with pytest.raises(BadRequest, match=sentence):
        asyncio.run(regions.register("card", body, CUDA))

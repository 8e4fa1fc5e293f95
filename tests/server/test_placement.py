"""Where workers go: round robin, least memory, lists of devices, slices, and refusals that show why."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.errors import InvalidModel, OutOfResources
from ringserve.server.devices import Device, Usage
from ringserve.server.placement import CPU, Place, Placer
from ringserve.server.repository.sections import PlacementWish

GIB = 1 << 30
GPUS = tuple(Device(index, f"GPU-{index}", f"A100 no {index}", "gpu", 40 * GIB) for index in range(4))
SLICES = tuple(Device(index, f"MIG-{index}", "A100 MIG 1g", "mig", 5 * GIB, "GPU-cut") for index in (4, 5))
ANY = PlacementWish()


def listed(*devices: str, policy: str = "round_robin", memory_bytes: int = 0) -> PlacementWish:
    return PlacementWish(devices, policy, memory_bytes)


def least(memory_bytes: int = 0, *devices: str) -> PlacementWish:
    return PlacementWish(devices, "least_memory", memory_bytes)


def look(placer: Placer, *used_gib: float) -> None:
    """The devices say what is in use now."""
    number = placer.look_begins()
    usage = {device.uuid: Usage(int(used * GIB), 0, 0) for device, used in zip(placer.devices, used_gib, strict=False)}
    placer.look_ends(number, usage)


def gpu_ids(places: Sequence[Place]) -> list[int | None]:
    return [place.gpu_id for place in places]


# ---- round robin


def test_workers_of_two_models_take_turns_on_all_gpus_from_the_first_on() -> None:
    placer = Placer(GPUS)
    places = [placer.place(key, ANY) for key in (1, 1, 2, 1, 2, 2)]
    assert gpu_ids(places) == [0, 1, 2, 3, 0, 1]


def test_after_an_uneven_removal_the_emptiest_gpus_are_filled_first() -> None:
    placer = Placer(GPUS)
    places = [placer.place(1, ANY) for _ in range(8)]
    for gone in (1, 3, 5, 7, 0):
        placer.leave(places[gone])
    assert [placer.workers_on(device) for device in GPUS] == [1, 0, 2, 0]
    assert gpu_ids([placer.place(1, ANY) for _ in range(5)]) == [1, 3, 0, 1, 3]


@pytest.mark.parametrize(
    ("device_ids", "expected"),
    [
        ([2, 3], [2, 3, 2, 3, 2]),
        ([3, 1], [3, 1, 3, 1, 3]),  # in the order of the list
        ([2, 2, 0], [2, 0, 2, 0, 2]),  # a device is one device
        ([0, 4], [0, 1, 2, 3, 0]),  # one wrong id: as if there were no list
        ([-1], [0, 1, 2, 3, 0]),
        ([], [0, 1, 2, 3, 0]),
    ],
)
def test_device_ids_are_a_round_robin_of_their_own(device_ids: list[int], expected: list[int]) -> None:
    placer = Placer(GPUS)
    assert gpu_ids([placer.place(1, ANY, "gpu", device_ids) for _ in range(5)]) == expected


def test_a_list_starts_at_its_first_device_whatever_others_do() -> None:
    placer = Placer(GPUS)
    others = [placer.place(1, ANY) for _ in range(3)]
    assert gpu_ids(others) == [0, 1, 2]
    assert gpu_ids([placer.place(2, ANY, None, [2, 3]) for _ in range(3)]) == [2, 3, 2]
    assert gpu_ids([placer.place(3, listed("cuda:1", "cuda:2")) for _ in range(3)]) == [1, 2, 1]
    assert gpu_ids([placer.place(1, ANY)]) == [0]  # counts everybody: 1, 3, 3, 1


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        (listed("cuda:3"), [("cuda:3", 3, None, "GPU-3")]),
        (listed("cuda:3", "GPU-1"), [("cuda:3", 3, None, "GPU-3"), ("cuda:0", 0, "GPU-1", "GPU-1")]),
        (listed("cpu"), [("cpu", None, None, None)] * 2),
        (listed("cuda:0", "cpu"), [("cuda:0", 0, None, "GPU-0"), ("cpu", None, None, None)] * 2),
        (listed("GPU-1", "cuda:1"), [("cuda:0", 0, "GPU-1", "GPU-1")] * 3),  # named twice, as it was named first
    ],
)
def test_a_place_says_how_its_worker_sees_the_device(
    wish: PlacementWish, expected: list[tuple[str, int | None, str | None, str | None]]
) -> None:
    placer = Placer(GPUS)
    places = [placer.place(1, wish, "cpu", [0]) for _ in expected]  # our key comes before TorchServe's
    assert [(each.device, each.gpu_id, each.visible, each.uuid) for each in places] == expected


def test_beside_slices_whole_gpus_are_seen_alone_and_each_slice_alone() -> None:
    placer = Placer((*GPUS[:2], Device(2, "MIG-2", "slice", "mig", GIB), Device(3, "MIG-3", "slice", "mig", GIB)))
    places = [placer.place(1, ANY) for _ in range(4)]
    assert [(each.device, each.gpu_id, each.visible) for each in places] == [
        ("cuda:0", 0, "GPU-0,GPU-1"),
        ("cuda:1", 1, "GPU-0,GPU-1"),
        ("cuda:0", 0, "MIG-2"),
        ("cuda:0", 0, "MIG-3"),
    ]
    assert placer.place(2, listed("cuda:3")).visible == "MIG-3"
    assert placer.place(2, listed("MIG-2")).visible == "MIG-2"


def test_without_gpus_everything_runs_on_the_cpu() -> None:
    placer = Placer()
    assert [placer.place(1, ANY, kind, ids) for kind, ids in ((None, None), ("gpu", [0]), ("cpu", None))] == [CPU] * 3
    assert placer.place(1, least(memory_bytes=GIB)) == CPU


def test_the_cpu_is_chosen_by_device_type_only() -> None:
    placer = Placer(GPUS)
    assert placer.place(1, ANY, "cpu") == CPU
    assert placer.place(1, ANY, "cpu", [2]) == CPU
    assert placer.place(1, ANY, "gpu").device == "cuda:0"


@pytest.mark.parametrize(
    ("devices", "wish", "device_type", "device_ids", "described", "ids", "sentences"),
    [
        (GPUS, ANY, None, None, "gpu", None, []),
        (GPUS, ANY, "cpu", None, "cpu", None, []),
        (GPUS, ANY, "gpu", [1, 2], "gpu", [1, 2], []),
        (GPUS, listed("cpu"), "gpu", [9], "cpu", None, []),
        (GPUS, listed("cpu", "cuda:0"), None, None, "gpu", None, []),
        (
            GPUS,
            ANY,
            None,
            [1, 4],
            "gpu",
            None,
            ["deviceIds: expected 0 to 3, got [1, 4]; the list is ignored"],
        ),
        (
            (),
            ANY,
            "gpu",
            None,
            "cpu",
            None,
            ["deviceType: gpu was asked for, but there is none (no driver): its workers run on the CPU"],
        ),
        ((), ANY, None, None, "cpu", None, []),
        (
            (),
            ANY,
            None,
            [0],
            "cpu",
            None,
            ["deviceIds: expected none, as there are no GPUs (no driver), got [0]; the list is ignored"],
        ),
    ],
)
def test_torchserves_keys_give_way_with_a_sentence(
    devices: tuple[Device, ...],
    wish: PlacementWish,
    device_type: str | None,
    device_ids: list[int] | None,
    described: str,
    ids: list[int] | None,
    sentences: list[str],
) -> None:
    placer = Placer(devices, "" if devices else "no driver")
    assert placer.check(wish, device_type, device_ids) == sentences
    assert placer.device_type(wish, device_type) == described
    assert placer.device_ids(device_ids) == ids


def test_a_worker_that_follows_another_takes_its_device() -> None:
    placer = Placer(GPUS)
    places = [placer.place(1, ANY) for _ in range(4)]
    successor = placer.place(1, ANY, instead_of=places[2])
    placer.leave(places[2])
    assert successor == places[2]
    assert [placer.workers_on(device) for device in GPUS] == [1, 1, 1, 1]


# ---- least memory


def test_the_device_with_the_least_memory_in_use_is_next() -> None:
    placer = Placer(GPUS)
    look(placer, 8, 3, 5, 30)
    assert placer.place(1, least(4 * GIB)).gpu_id == 1  # 8 7 5 30
    assert placer.place(1, least(4 * GIB)).gpu_id == 2  # 8 7 9 30
    assert placer.place(2, least(2 * GIB)).gpu_id == 1  # 8 9 9 30
    assert placer.place(2, least(2 * GIB)).gpu_id == 0
    assert placer.place(3, least(GIB, "cuda:3", "cuda:2")).gpu_id == 2


def test_what_a_worker_needs_is_reserved_until_the_devices_say_that_it_is_in_use() -> None:
    placer = Placer(GPUS[:2])
    look(placer, 0, 9)
    first = placer.place(1, least(10 * GIB))
    early = placer.look_begins()
    placer.loaded(first)
    placer.look_ends(
        early, {"GPU-0": Usage(2 * GIB, 0, 0), "GPU-1": Usage(9 * GIB, 0, 0)}
    )  # began before it had loaded
    assert placer.place(2, least(GIB)).gpu_id == 1  # 12 against 9
    look(placer, 10, 11)
    assert placer.place(3, least(GIB)).gpu_id == 0  # 10 against 12, and not 20


def test_a_worker_that_died_is_still_expected() -> None:
    placer = Placer(GPUS[:1])
    look(placer, 0)
    place = placer.place(1, listed("cuda:0", memory_bytes=30 * GIB))
    placer.loaded(place)
    look(placer, 30)
    placer.lost(place)
    look(placer, 0)
    with pytest.raises(OutOfResources):
        placer.place(2, listed("cuda:0", memory_bytes=11 * GIB))
    placer.leave(place)
    assert placer.place(2, listed("cuda:0", memory_bytes=11 * GIB)).gpu_id == 0


def test_memory_that_a_worker_declared_and_does_not_use_yet_stays_its_own() -> None:
    placer = Placer(GPUS[:1])
    look(placer, 0)
    placer.loaded(placer.place(1, listed("cuda:0", memory_bytes=30 * GIB)))
    look(placer, 2)
    with pytest.raises(OutOfResources):
        placer.place(2, listed("cuda:0", memory_bytes=11 * GIB))


def test_workers_that_do_not_say_what_they_need_are_spread_while_they_load() -> None:
    placer = Placer(GPUS)
    look(placer, 2, 1, 0, 3)
    assert gpu_ids([placer.place(1, least()) for _ in range(6)]) == [2, 1, 0, 3, 2, 1]


def test_the_cpu_is_the_last_resort_of_least_memory() -> None:
    placer = Placer(GPUS[:1])
    look(placer, 10)
    wish = least(20 * GIB, "cpu", "cuda:0")
    assert [placer.place(1, wish).device for _ in range(3)] == ["cuda:0", "cpu", "cpu"]


# ---- room


def test_round_robin_passes_over_devices_without_room() -> None:
    placer = Placer(GPUS)
    look(placer, 0, 35, 0, 0)
    wish = PlacementWish(memory_bytes=16 * GIB)
    assert gpu_ids([placer.place(1, wish) for _ in range(6)]) == [0, 2, 3, 0, 2, 3]
    with pytest.raises(OutOfResources):
        placer.place(1, wish)


def test_a_refusal_for_memory_shows_every_device_and_its_verdict() -> None:
    blind = Device(4, "GPU-4", "GB10", "gpu", 0)
    placer = Placer((*GPUS, blind))
    number = placer.look_begins()
    placer.look_ends(
        number,
        {"GPU-0": Usage(0, 0, 0), "GPU-1": Usage(30 * GIB, 0, 0), "GPU-2": Usage(0, 0, 0), "GPU-4": Usage(0, 0, 0)},
    )
    placer.place(1, listed("cuda:2", memory_bytes=25 * GIB))
    with pytest.raises(OutOfResources) as refused:
        placer.place(2, listed("cuda:1", "cuda:2", "cuda:3", "cuda:4", memory_bytes=20 * GIB))
    assert refused.value.http_status == 507
    assert str(refused.value).splitlines() == [
        "No device has room for a worker that needs 20.0 GiB (placement.memory):",
        "device  name       total     used      reserved  needed    verdict",
        "cuda:0  A100 no 0  40.0 GiB  0.0 GiB   0.0 GiB   20.0 GiB  not asked for",
        "cuda:1  A100 no 1  40.0 GiB  30.0 GiB  0.0 GiB   20.0 GiB  10.0 GiB short",
        "cuda:2  A100 no 2  40.0 GiB  0.0 GiB   25.0 GiB  20.0 GiB  5.0 GiB short",
        "cuda:3  A100 no 3  40.0 GiB  0.0 GiB   0.0 GiB   20.0 GiB  does not answer",
        "cuda:4  GB10       0.0 GiB   0.0 GiB   0.0 GiB   20.0 GiB  has no memory of its own",
    ]


def test_a_refusal_that_is_short_of_little_does_not_say_nothing() -> None:
    placer = Placer(GPUS[:1])
    look(placer, 30)
    with pytest.raises(OutOfResources, match="3 MiB short"):
        placer.place(1, PlacementWish(memory_bytes=10 * GIB + 3 * (1 << 20)))


def test_a_refusal_takes_no_room() -> None:
    placer = Placer(GPUS)
    look(placer, 0, 0, 0, 0)
    with pytest.raises(OutOfResources):
        placer.place(1, PlacementWish(memory_bytes=41 * GIB))
    assert [placer.workers_on(device) for device in GPUS] == [0, 0, 0, 0]


def test_devices_that_there_are_not_are_refused_with_those_that_there_are() -> None:
    placer = Placer((*GPUS[:2], *SLICES[:1]))
    with pytest.raises(InvalidModel) as refused:
        placer.check(listed("cuda:1", "cuda:7", "GPU-cut"), None, None)
    assert refused.value.http_status == 400
    assert str(refused.value).splitlines() == [
        "devices: expected devices of this server, got cuda:7, GPU-cut. Its devices are:",
        "device  uuid   name         total     verdict",
        "cuda:0  GPU-0  A100 no 0    40.0 GiB  not in the list",
        "cuda:1  GPU-1  A100 no 1    40.0 GiB  in the list",
        "cuda:4  MIG-4  A100 MIG 1g  5.0 GiB   a slice of GPU-cut, which is in MIG mode: name the slice",
    ]
    with pytest.raises(InvalidModel):
        placer.place(1, listed("cuda:7"))


def test_a_server_without_gpus_says_so_and_why() -> None:
    with pytest.raises(InvalidModel) as refused:
        Placer((), "NVML: Driver Not Loaded").check(listed("cuda:0", "cpu"), None, None)
    assert str(refused.value) == (
        "devices: expected devices of this server, got cuda:0. It has no GPUs: NVML: Driver Not Loaded."
    )


# ---- whatever happens

KEYS = st.integers(1, 3)
NAMES = [f"cuda:{index}" for index in range(6)] + [device.uuid for device in (*GPUS, *SLICES)] + ["cpu"]
WISHES = st.builds(
    PlacementWish,
    st.lists(st.sampled_from(NAMES), max_size=4).map(tuple),
    st.sampled_from(["round_robin", "least_memory"]),
    st.sampled_from([0, GIB, 4 * GIB, 50 * GIB]),
)
STEPS = st.lists(
    st.tuples(KEYS, st.sampled_from(["grow", "grow", "shrink", "load", "die", "look"]), st.integers(0, 99))
)


@given(wishes=st.tuples(WISHES, WISHES, WISHES), ids=st.lists(st.integers(0, 6), max_size=3), steps=STEPS)
def test_nobody_is_placed_where_it_did_not_ask_and_nothing_is_left_of_those_who_left(
    wishes: tuple[PlacementWish, ...], ids: list[int], steps: list[tuple[int, str, int]]
) -> None:
    placer = Placer((*GPUS, *SLICES))
    look(placer, 0, 1, 2, 3, 4, 5)
    places: list[tuple[int, Place]] = []
    for key, step, pick in steps:
        wish = wishes[key - 1]
        if step == "grow":
            try:
                place = placer.place(key, wish, None, ids)
            except OutOfResources:
                continue
            check_asked_for(placer, wish, ids, place)
            places.append((key, place))
        elif step == "look":
            look(placer, *[pick % 7 + index for index in range(6)])
        elif places:
            at = pick % len(places)
            if step == "shrink":
                placer.leave(places.pop(at)[1])
            else:
                (placer.loaded if step == "load" else placer.lost)(places[at][1])
        for each in (None, *placer.devices):
            own = [key for key, place in places if placer.device_of(place) == each]
            assert placer.workers_on(each) == len(own)
            assert all(placer.workers_on(each, key) == own.count(key) for key in (1, 2, 3))
    for _, place in places:
        placer.leave(place)
        placer.leave(place)  # and a second time does nothing
    look(placer, 0, 0, 0, 0, 0, 0)
    assert [placer.workers_on(each) for each in (None, *placer.devices)] == [0] * 7
    assert placer.place(1, PlacementWish(memory_bytes=40 * GIB)).gpu_id == 0  # nothing is reserved


def check_asked_for(placer: Placer, wish: PlacementWish, ids: list[int], place: Place) -> None:
    device = placer.device_of(place)
    if wish.devices:
        names = {"cpu"} if device is None else {f"cuda:{device.index}", device.uuid}
        assert names & set(wish.devices)
    elif ids and max(ids) < 6:
        assert device is not None and device.index in ids
    else:
        assert device is not None
    if device is not None and (device.kind == "mig" or place.visible == device.uuid):
        assert (place.device, place.gpu_id, place.visible) == ("cuda:0", 0, device.uuid)
    elif device is not None:
        assert (place.device, place.gpu_id) == (f"cuda:{device.index}", device.index)


@given(
    numbers=st.lists(st.sampled_from([f"cuda:{index}" for index in range(6)]), min_size=1, max_size=6),
    others=st.lists(st.integers(0, 5), max_size=10),
    count=st.integers(0, 20),
)
def test_within_a_version_with_a_list_no_device_is_two_workers_ahead(
    numbers: list[str], others: list[int], count: int
) -> None:
    placer = Placer((*GPUS, *SLICES))
    for index in others:
        placer.place(9, listed(f"cuda:{index}"))
    for _ in range(count):
        placer.place(1, listed(*numbers))
        workers = [placer.workers_on(device, 1) for device in placer.devices if f"cuda:{device.index}" in numbers]
        assert max(workers) - min(workers) <= 1


@given(keys=st.lists(KEYS, max_size=30))
def test_among_all_versions_without_a_list_no_device_is_two_workers_ahead(keys: list[int]) -> None:
    placer = Placer(GPUS)
    for key in keys:
        placer.place(key, ANY)
        workers = [placer.workers_on(device) for device in GPUS]
        assert max(workers) - min(workers) <= 1

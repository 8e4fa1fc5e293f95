"""Workers get the devices that their version asks for, on a machine that a file describes: four GPUs, and a fifth cut in two."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pynvml
import pytest

from ringserve.server.testing import ServerProcess, wait_until

GIB = 1 << 30
GPUS = [
    {
        "uuid": f"GPU-{number}",
        "name": "A100",
        "memory_bytes_total": 40 * GIB,
        "utilization_gpu": 5,
        "utilization_memory": 6,
    }
    for number in range(4)
]
SLICES = [{"uuid": f"MIG-{number}", "name": "A100 MIG 1g.5gb", "memory_bytes_total": 5 * GIB} for number in range(2)]
CUT = {"uuid": "GPU-4", "name": "A100", "memory_bytes_total": 40 * GIB, "mig": SLICES}
WHOLE = "GPU-0,GPU-1,GPU-2,GPU-3"
MakeArchive = Callable[..., Path]


class Machine:
    """The file, and what the workers saw."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "devices.json"
        self.seen = folder / "seen"
        self.seen.mkdir()
        self.use(0, 0, 0, 0)

    def use(self, *used_gib: int) -> None:
        gpus = [{**gpu, "memory_bytes_used": used * GIB} for gpu, used in zip(GPUS, used_gib, strict=True)]
        fresh = self.file.with_suffix(".new")
        fresh.write_text(json.dumps([*gpus, CUT]))
        fresh.rename(self.file)

    @property
    def env(self) -> dict[str, str]:
        return {"RINGSERVE_DEVICES": str(self.file), "PLACED_DIR": str(self.seen)}

    def seen_by(self, worker: dict[str, Any]) -> tuple[int | None, str | None]:
        seen = json.loads((self.seen / str(worker["pid"])).read_text())
        assert seen["order"] == "PCI_BUS_ID"
        return seen["gpu_id"], seen["visible"]


@pytest.fixture(scope="module", autouse=True)
def no_devices_of_the_test_run() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        patch.delenv("CUDA_DEVICE_ORDER", raising=False)
        yield


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    return Machine(tmp_path_factory.mktemp("machine"))


@pytest.fixture(scope="module")
def placed_store(archive: MakeArchive, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("placement") / "store"
    configs = {
        "any": "",
        "two": "deviceType: gpu\ndeviceIds: [2, 3]\n",
        "listed": "devices: [cuda:1, MIG-1, GPU-3]\n",
        "on_cpu": "deviceType: cpu\n",
        "least": "placement: {policy: least_memory, memory: 4GiB}\n",
        "worn": "devices: [cuda:2, cuda:3]\nrecycle: {max_requests: 1}\n",
        "unknown": "devices: [cuda:0, cuda:9, GPU-4]\n",
        "large": "devices: [cuda:0, MIG-0]\nplacement: {memory: 30GiB}\n",
    }
    for name, config in configs.items():
        archive(store, name, "placed.py:handle", config=config)
    return store


@pytest.fixture(scope="module")
def placing(machine: Machine, placed_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("placing")
    server = ServerProcess(placed_store, models=(), env=machine.env, folder=folder)
    with server:
        yield server
    assert server.wait(1) == 0, server.log
    assert server.remains() == []


@pytest.fixture(scope="module")
def api(placing: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=placing.management_url, timeout=60, trust_env=False) as client:
        yield client


@contextmanager
def registered(api: httpx.Client, name: str, workers: int) -> Iterator[list[dict[str, Any]]]:
    """Its workers, as describe shows them; afterwards it is unregistered."""
    answer = api.post("/models", params={"url": f"{name}.mar", "initial_workers": workers, "synchronous": "true"})
    assert answer.status_code == 200, answer.text
    try:
        yield workers_of(api, name)
    finally:
        assert api.delete(f"/models/{name}").status_code == 200


def describe(api: httpx.Client, name: str) -> dict[str, Any]:
    described: dict[str, Any] = api.get(f"/models/{name}").json()[0]
    return described


def workers_of(api: httpx.Client, name: str) -> list[dict[str, Any]]:
    workers: list[dict[str, Any]] = describe(api, name)["workers"]
    return workers


def test_workers_land_on_one_device_after_the_other(api: httpx.Client, machine: Machine) -> None:
    """Beside slices CUDA shows no whole GPUs: those are shown without them, each slice alone."""
    with registered(api, "any", 6) as workers:
        assert [machine.seen_by(each) for each in workers] == [
            *((number, WHOLE) for number in range(4)),
            (0, "MIG-0"),
            (0, "MIG-1"),
        ]
        assert [each["device"] for each in workers] == ["cuda:0", "cuda:1", "cuda:2", "cuda:3", "MIG-0", "MIG-1"]
        assert describe(api, "any")["deviceType"] == "gpu"


def test_describe_shows_the_memory_of_the_device_now(api: httpx.Client, machine: Machine) -> None:
    with registered(api, "two", 3) as workers:
        described = describe(api, "two")
        assert (described["deviceType"], described["deviceIds"]) == ("gpu", [2, 3])
        assert [machine.seen_by(each)[0] for each in workers] == [2, 3, 2]
        machine.use(0, 0, 7, 0)
        wait_until(lambda: workers_of(api, "two")[0]["deviceMemoryUsed"] == 7 * GIB, 20, "the new figure")
        worker = workers_of(api, "two")[0]
        machine.use(0, 0, 0, 0)
        assert worker["gpu"] is True
        assert worker["deviceMemoryTotal"] == 40 * GIB
        assert worker["gpuUsage"] == (
            "gpuId::2 utilization.gpu [%]::5 % utilization.memory [%]::6 % memory.used [MiB]::7168 MiB"
        )


def test_our_own_list_names_devices_by_number_and_by_uuid(api: httpx.Client, machine: Machine) -> None:
    with registered(api, "listed", 4) as workers:
        seen = [machine.seen_by(each) for each in workers]
        assert seen == [(1, WHOLE), (0, "MIG-1"), (0, "GPU-3"), (1, WHOLE)]
        assert [each["device"] for each in workers] == ["cuda:1", "MIG-1", "cuda:3", "cuda:1"]


def test_on_the_cpu_there_is_no_gpu_id_and_nothing_hidden(api: httpx.Client, machine: Machine) -> None:
    with registered(api, "on_cpu", 1) as workers:
        assert machine.seen_by(workers[0]) == (None, None)
        assert (workers[0]["gpu"], workers[0]["gpuUsage"]) == (False, "N/A")
        assert "device" not in workers[0]
        assert describe(api, "on_cpu")["deviceType"] == "cpu"


def test_the_device_with_the_least_memory_in_use_comes_first(api: httpx.Client, machine: Machine) -> None:
    machine.use(30, 20, 10, 20)
    try:
        answer = api.post("/models", params={"url": "least.mar", "initial_workers": 2, "synchronous": "true"})
        assert answer.status_code == 200, answer.text
        # The slices are empty: 4 GiB fit once into each, and then GPU 2 has the least in use.
        assert [each["device"] for each in workers_of(api, "least")] == ["MIG-0", "MIG-1"]
        grown = api.put("/models/least", params={"min_worker": 4, "synchronous": "true"})
        assert grown.status_code == 200, grown.text
        assert [each["device"] for each in workers_of(api, "least")][2:] == ["cuda:2", "cuda:2"]
    finally:
        assert api.delete("/models/least").status_code == 200
        machine.use(0, 0, 0, 0)


@pytest.mark.parametrize("synchronous", ["true", "false"])
def test_devices_that_there_are_not_are_refused_with_a_table(api: httpx.Client, synchronous: str) -> None:
    answer = api.post("/models", params={"url": "unknown.mar", "initial_workers": 1, "synchronous": synchronous})
    assert answer.status_code == 400
    error = answer.json()
    assert error["type"] == "InvalidModelException"
    lines = error["message"].splitlines()
    assert lines[0] == "devices: expected devices of this server, got cuda:9, GPU-4. Its devices are:"
    assert [line.split()[0] for line in lines[1:]] == ["device", *(f"cuda:{number}" for number in range(6))]
    assert lines[2].endswith("in the list")
    assert lines[6].endswith("a slice of GPU-4, which is in MIG mode: name the slice")
    assert api.get("/models/unknown").status_code == 404


def test_a_version_for_which_there_is_no_room_is_refused_and_nothing_is_left(
    api: httpx.Client, machine: Machine, placing: ServerProcess
) -> None:
    machine.use(15, 0, 0, 0)
    answer = api.post("/models", params={"url": "large.mar", "initial_workers": 1, "synchronous": "true"})
    machine.use(0, 0, 0, 0)
    assert answer.status_code == 507, answer.text
    message = answer.json()["message"]
    assert "needs 30.0 GiB" in message
    assert "5.0 GiB short" in message
    assert "25.0 GiB short" in message
    assert message.count("not asked for") == 4
    assert api.get("/models/large").status_code == 404
    assert placing.workers() == []


def test_a_worker_for_which_there_is_no_room_leaves_those_that_have_some(api: httpx.Client) -> None:
    with registered(api, "large", 1) as workers:
        answer = api.put("/models/large", params={"min_worker": 2, "synchronous": "true"})
        assert answer.status_code == 507, answer.text
        assert "5.0 GiB" in answer.json()["message"]
        assert [each["id"] for each in workers_of(api, "large")] == [workers[0]["id"]]


def test_a_killed_worker_comes_back_on_its_device(api: httpx.Client, machine: Machine) -> None:
    with registered(api, "any", 4) as workers:
        os.kill(workers[2]["pid"], signal.SIGKILL)

        def back() -> bool:
            worker = workers_of(api, "any")[2]
            return worker["pid"] not in (-1, workers[2]["pid"]) and worker["status"] == "READY"

        wait_until(back, 30, "the next process")
        again = workers_of(api, "any")[2]
        assert machine.seen_by(again) == (2, WHOLE)
        assert again["device"] == "cuda:2"


def test_a_worker_that_replaces_a_worn_one_gets_its_device(api: httpx.Client, placing: ServerProcess) -> None:
    """As if the worn one were gone already: otherwise replacements gather on the first devices."""
    with registered(api, "worn", 2) as workers:
        before = {each["pid"] for each in workers}
        for _ in range(3):
            answer = httpx.get(f"{placing.inference_url}/predictions/worn", trust_env=False)
            assert answer.status_code == 200, answer.text

            def replaced(before: set[int] = before) -> bool:
                now = workers_of(api, "worn")
                return {each["pid"] for each in now} != before and all(each["status"] == "READY" for each in now)

            wait_until(replaced, 30, "a fresh worker")
            workers = workers_of(api, "worn")
            before = {each["pid"] for each in workers}
            assert sorted(each["device"] for each in workers) == ["cuda:2", "cuda:3"]


def test_the_servers_own_visible_devices_count_and_their_number_is_that_of_workers(
    start_server: Callable[..., ServerProcess], archive: MakeArchive, tmp_path: Path
) -> None:
    """`number_of_gpu` caps them; with `default_workers_per_model=0` there is a worker for each."""
    machine = Machine(tmp_path)
    store = tmp_path / "own" / "store"
    archive(store, "placed", "placed.py:handle")
    config = {"number_of_gpu": 2, "default_workers_per_model": 0}
    server = start_server(store, config=config, env={**machine.env, "CUDA_VISIBLE_DEVICES": "3,1,0"})
    assert "device 0: GPU-3, A100, 40.0 GiB" in server.log

    def workers() -> list[dict[str, Any]]:
        described = httpx.get(f"{server.management_url}/models/placed", trust_env=False).json()
        found: list[dict[str, Any]] = described[0]["workers"]
        return found

    wait_until(lambda: [each["status"] for each in workers()] == ["READY"] * 2, 30, "two workers")
    assert [machine.seen_by(each) for each in workers()] == [(0, "3,1,0"), (1, "3,1,0")]
    assert [each["device"] for each in workers()] == ["cuda:0", "cuda:1"]


def test_a_devices_file_that_is_wrong_keeps_the_server_from_starting(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.file.write_text('[{"uuid": "GPU-0", "name": "A100", "memory_bytes_total": "lots"}]')
    server = ServerProcess(tmp_path, models=(), env=machine.env, folder=tmp_path / "server")
    server.launch()
    assert server.wait(30) == 1
    assert f"RINGSERVE_DEVICES: {machine.file}: expected a JSON array of GPUs" in server.log
    assert "Expected `int`, got `str` - at `$[0].memory_bytes_total`" in server.log
    assert server.remains() == []


def _gpus() -> int:
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return 0
    count = int(pynvml.nvmlDeviceGetCount())
    pynvml.nvmlShutdown()
    return count


@pytest.mark.skipif(not _gpus(), reason="NVML finds no GPU here")
def test_a_real_gpu_is_found_given_to_a_worker_and_described(
    start_server: Callable[..., ServerProcess], archive: MakeArchive, tmp_path: Path
) -> None:
    store = tmp_path / "own" / "store"
    archive(store, "placed", "placed.py:handle", config="placement: {policy: least_memory, memory: 64MiB}\n")
    machine = Machine(tmp_path)
    server = start_server(store, env={"PLACED_DIR": str(machine.seen)})

    def described() -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{server.management_url}/models/placed", trust_env=False).json()[0]
        return found

    wait_until(lambda: described()["workers"][0]["status"] == "READY", 60, f"a worker\n{server.log}")
    worker = described()["workers"][0]
    assert described()["deviceType"] == "gpu"
    gpu_id, _ = machine.seen_by(worker)
    assert gpu_id is not None
    assert worker["gpu"] is True
    assert 0 <= worker["deviceMemoryUsed"] < worker["deviceMemoryTotal"]
    assert f"memory.used [MiB]::{worker['deviceMemoryUsed'] // (1 << 20)} MiB" in worker["gpuUsage"]

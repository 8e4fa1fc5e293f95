"""Memory that NVIDIA's client shares with the server, over REST and gRPC: what it may do, and what it may do to it meanwhile."""

import contextlib
import os
import signal
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.http as http_client
from tritonclient import utils
from tritonclient.utils import InferenceServerException, shared_memory

from ringserve.server.testing import SHM, ServerProcess, wait_until
from tests.e2e.triton_apis import Api, output_in, placed, regions

WAIT_S = 30.0
ROW = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
WORDS = np.array([[b"one", b"", b"\xffthree"]], object)
ONE = ROW[:1]
QUEUED = 24  # more than there are slabs, so that some are read from their region only when the first is through
FRAMED = "backend: python\nbatchSize: 1\ninputs:\n  - {{name: x, dtype: {0}, shape: [-1]}}\noutputs:\n  - {{name: y, dtype: {0}, shape: [-1]}}\n"
MIRROR = """
class Mirror:
    def predict(self, inputs):
        return {{"y": inputs["x"]}}
"""
# Answers once the file `go` is there, and leaves `begun` before it waits.
GATED = """
import time
from pathlib import Path

FOLDER = Path({folder!r})


class Gated:
    def predict(self, inputs):
        (FOLDER / "begun").touch()
        end = time.monotonic() + 30
        while not (FOLDER / "go").exists() and time.monotonic() < end:
            time.sleep(0.005)
        return {{"y": inputs["x"]}}
"""


class Gate:
    """Of the model `gated`: closed, it keeps its request until it is opened."""

    def __init__(self, folder: Path) -> None:
        self._begun, self._go = folder / "begun", folder / "go"

    @contextlib.contextmanager
    def closed(self) -> Iterator[None]:
        self._begun.unlink(missing_ok=True)
        self._go.unlink(missing_ok=True)
        try:
            yield
        finally:
            self._go.touch()

    def wait(self) -> None:
        wait_until(self._begun.exists, WAIT_S, "a request in the model")

    def open(self) -> None:
        self._go.touch()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared-memory")


@pytest.fixture(scope="module")
def gate(folder: Path) -> Gate:
    return Gate(folder)


@pytest.fixture(scope="module")
def server(folder: Path, archive: Callable[..., Path], sums_config: str) -> Iterator[ServerProcess]:
    store = folder / "store"
    archive(store, "sums", "sums.py", config=sums_config)
    archive(store, "mirror", "mirror.py", source=MIRROR.format(), config=FRAMED.format("float32"))
    archive(store, "words", "words.py", source=MIRROR.format(), config=FRAMED.format("bytes"))
    archive(store, "gated", "gated.py", source=GATED.format(folder=str(folder)), config=FRAMED.format("float32"))
    config = {"frontends": 2, "default_workers_per_model": 1}
    server = ServerProcess(store, config=config, grpc=True)
    with server:
        yield server
        log = server.log
    assert server.remains() == []
    assert "Traceback" not in log


@pytest.fixture(scope="module")
def rest(server: ServerProcess) -> Api:
    return Api(http_client, server.inference_url.removeprefix("http://"))


@pytest.fixture(scope="module")
def grpc(server: ServerProcess) -> Api:
    return Api(grpc_client, server.grpc_address)


@pytest.fixture(params=["rest", "grpc"])
def api(request: pytest.FixtureRequest) -> Api:
    found: Api = request.getfixturevalue(request.param)
    return found


@contextlib.contextmanager
def connected(*apis: Api) -> Iterator[Any]:
    """A client of each."""
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(api.client()) for api in apis]
        yield clients[0] if len(clients) == 1 else clients


def path(handle: Any) -> Path:
    """The client's object, as the kernel sees it."""
    found: Path = SHM / handle._shm_key.lstrip("/")
    return found


def ask(
    api: Api, client: Any, model: str, array: np.ndarray, *, sent: str = "", wanted: str = "", **options: Any
) -> Any:
    """x in the region `sent`, y into the region `wanted`."""
    given = api.input("x", array)
    # How much there is in the region is what numpy would send.
    nbytes = len(utils.serialize_byte_tensor(array).item()) if array.dtype == object else array.nbytes
    outputs = api.outputs("y")
    if sent:
        placed(given, sent, nbytes)
    if wanted:
        placed(outputs[0], wanted, options.pop("room", nbytes))
    return client.infer(model, [given], outputs=outputs, **options)


def in_parallel(pool: ThreadPoolExecutor, api: Api, *words: Any, **options: Any) -> "Future[Any]":
    """The same by a client of its own, which one thread may use."""

    def call() -> Any:
        with api.client() as client:
            return ask(api, client, *words, **options)

    return pool.submit(call)


# ---- what it is for


@pytest.mark.parametrize("registered_over", ["rest", "grpc"])
def test_what_is_registered_over_one_protocol_is_there_for_both(
    registered_over: str, rest: Api, grpc: Api, server: ServerProcess
) -> None:
    first, second = (rest, grpc) if registered_over == "rest" else (grpc, rest)
    with connected(first, second) as (registering, asking), regions(registering, source=12, target=12) as handles:
        shared_memory.set_shared_memory_region(handles["source"], [ONE])
        result = ask(second, asking, "mirror", ONE, sent="source", wanted="target")
        assert output_in(result, "y", handles["target"]).tolist() == ONE.tolist()
        # Each new connection is some front end's.
        for _ in range(8):
            with connected(rest) as client:
                again = ask(rest, client, "mirror", ONE, sent="source")
                assert again.as_numpy("y").tolist() == ONE.tolist()


def test_inputs_and_outputs_of_fixed_rows_lie_at_offsets_of_one_region(api: Api) -> None:
    with connected(api) as client, regions(client, all=4 * ROW.nbytes) as handles:
        sizes = ROW.nbytes
        shared_memory.set_shared_memory_region(handles["all"], [ROW])
        shared_memory.set_shared_memory_region(handles["all"], [10 * ROW], offset=sizes)
        inputs = [placed(api.input(name, ROW), "all", sizes, n * sizes) for n, name in enumerate(("left", "right"))]
        outputs = [placed(each, "all", sizes, (n + 2) * sizes) for n, each in enumerate(api.outputs("sum", "double"))]
        result = client.infer("sums", inputs, outputs=outputs)
        assert output_in(result, "sum", handles["all"], 2 * sizes).tolist() == (11 * ROW).tolist()
        assert output_in(result, "double", handles["all"], 3 * sizes).tolist() == (2 * ROW).tolist()


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_a_region_goes_beside_what_is_sent(binary: bool, rest: Api) -> None:
    with connected(rest) as client, regions(client, some=ROW.nbytes, target=ROW.nbytes) as handles:
        shared_memory.set_shared_memory_region(handles["some"], [ROW])
        inputs = [rest.input("left", 2 * ROW, binary_data=binary), placed(rest.input("right", ROW), "some", ROW.nbytes)]
        outputs = [
            placed(http_client.InferRequestedOutput("sum"), "target", ROW.nbytes),
            http_client.InferRequestedOutput("double", binary_data=binary),
        ]
        result = client.infer("sums", inputs, outputs=outputs)
        assert output_in(result, "sum", handles["target"]).tolist() == (3 * ROW).tolist()
        assert result.as_numpy("double").tolist() == (4 * ROW).tolist()


def test_a_region_goes_beside_raw_contents(grpc: Api) -> None:
    with connected(grpc) as client, regions(client, some=ROW.nbytes) as handles:
        shared_memory.set_shared_memory_region(handles["some"], [ROW])
        inputs = [placed(grpc.input("left", ROW), "some", ROW.nbytes), grpc.input("right", 2 * ROW)]
        result = client.infer("sums", inputs)
        assert result.as_numpy("sum").tolist() == (3 * ROW).tolist()


def test_texts_travel_by_region_with_their_lengths(api: Api) -> None:
    nbytes = len(utils.serialize_byte_tensor(WORDS).item())
    with connected(api) as client, regions(client, source=nbytes, target=64) as handles:
        shared_memory.set_shared_memory_region(handles["source"], [utils.serialize_byte_tensor(WORDS)])
        result = ask(api, client, "words", WORDS, sent="source", wanted="target", room=64)
        assert output_in(result, "y", handles["target"]).tolist() == WORDS.tolist()


def test_an_output_without_room_is_refused(api: Api) -> None:
    with connected(api) as client, regions(client, target=64) as handles:
        with pytest.raises(InferenceServerException, match="should be at least 24 bytes to hold the results"):
            ask(api, client, "mirror", ROW.reshape(1, 6), wanted="target", room=8)
        assert path(handles["target"]).read_bytes() == bytes(64)


# ---- whose it is


def test_an_object_of_the_servers_own_is_refused(api: Api, server: ServerProcess) -> None:
    with connected(api) as client, pytest.raises(InferenceServerException, match="reserved prefix 'ringserve-'"):
        client.register_system_shared_memory("theirs", f"/ringserve-{server.pid}-0", 16)


def test_without_a_gpu_memory_of_one_cannot_be_registered_and_unregistering_it_is_harmless(
    server: ServerProcess, rest: Api, grpc: Api
) -> None:
    body = {"raw_handle": {"b64": "A" * 86 + "=="}, "device_id": 1023, "byte_size": 16}  # no machine has so many
    url = f"{server.inference_url}/v2/cudasharedmemory"
    refused = httpx.post(f"{url}/region/gpu/register", json=body, trust_env=False)
    assert (refused.status_code, "failed to register CUDA shared memory region 'gpu'" in refused.text) == (400, True)
    assert httpx.post(f"{url}/unregister", trust_env=False).status_code == 200
    with connected(rest, grpc) as (over_rest, over_grpc):
        assert over_rest.get_cuda_shared_memory_status() == []
        assert len(over_grpc.get_cuda_shared_memory_status().regions) == 0


# ---- what may happen meanwhile


def test_a_region_that_is_unregistered_under_way_still_gets_its_answer(api: Api, gate: Gate) -> None:
    with connected(api) as client, regions(client, source=12, target=12) as handles, ThreadPoolExecutor(1) as pool:
        shared_memory.set_shared_memory_region(handles["source"], [ONE])
        with gate.closed():
            answer = in_parallel(pool, api, "gated", ONE, sent="source", wanted="target")
            gate.wait()
            client.unregister_system_shared_memory()
            with pytest.raises(InferenceServerException, match="Unable to find shared memory region: 'source'"):
                ask(api, client, "mirror", ONE, sent="source")
            gate.open()
            assert output_in(answer.result(WAIT_S), "y", handles["target"]).tolist() == ONE.tolist()


def test_a_region_that_is_truncated_while_requests_wait_is_the_fault_of_their_client(
    api: Api, gate: Gate, server: ServerProcess
) -> None:
    before = server.processes()
    with connected(api) as client, regions(client, source=12) as handles, ThreadPoolExecutor(QUEUED) as pool:
        shared_memory.set_shared_memory_region(handles["source"], [ONE])
        with gate.closed():
            answers = [in_parallel(pool, api, "gated", ONE, sent="source")]
            gate.wait()
            answers += [in_parallel(pool, api, "gated", ONE, sent="source") for _ in range(QUEUED - 1)]
            os.truncate(path(handles["source"]), 0)
            gate.open()
            outcomes = [_outcome(each) for each in answers]
        assert outcomes[0] == ONE.tolist()
        assert {str(each) for each in outcomes[1:]} <= {str(ONE.tolist()), "shorter"}
        with pytest.raises(InferenceServerException, match="'source' is shorter than when it was registered"):
            ask(api, client, "mirror", ONE, sent="source")
    assert server.processes() == before


def _outcome(answer: "Future[Any]") -> object:
    try:
        return answer.result(WAIT_S).as_numpy("y").tolist()
    except InferenceServerException as error:
        assert "shared memory region 'source' is shorter than when it was registered" in str(error)
        return "shorter"


def test_a_region_that_is_truncated_before_the_answer_is_written_is_not_made_longer(
    api: Api, gate: Gate, server: ServerProcess
) -> None:
    before = server.processes()
    with connected(api) as client, regions(client, target=12) as handles, ThreadPoolExecutor(1) as pool:
        with gate.closed():
            answer = in_parallel(pool, api, "gated", ONE, wanted="target")
            gate.wait()
            os.truncate(path(handles["target"]), 4)
            gate.open()
            with pytest.raises(InferenceServerException, match="'target' is shorter than when it was registered"):
                answer.result(WAIT_S)
        assert path(handles["target"]).stat().st_size == 4
        assert ask(api, client, "mirror", ONE).as_numpy("y").tolist() == ONE.tolist()
    assert server.processes() == before


@pytest.mark.parametrize("killed", ["front_ends", "grpc_front_ends"])
def test_the_successor_of_a_front_end_that_was_killed_knows_the_regions(
    killed: str, rest: Api, grpc: Api, server: ServerProcess
) -> None:
    api = rest if killed == "front_ends" else grpc
    with connected(grpc if api is rest else rest) as other, regions(other, source=12) as handles:
        shared_memory.set_shared_memory_region(handles["source"], [ONE])
        before = getattr(server, killed)()
        for pid in before:
            os.kill(pid, signal.SIGKILL)

        def successors() -> bool:
            now = getattr(server, killed)()
            return len(now) == len(before) and not set(now) & set(before)

        wait_until(successors, WAIT_S, "other front ends")

        def answers() -> bool:
            with contextlib.suppress(InferenceServerException, OSError), connected(api) as client:
                return bool(client.is_model_ready("mirror"))
            return False

        wait_until(answers, WAIT_S, "the model in the successors")
        for _ in range(8):
            with connected(api) as client:
                found = ask(api, client, "mirror", ONE, sent="source").as_numpy("y")
                assert found.tolist() == ONE.tolist()


# ---- servers of their own


def test_where_clients_may_not_share_memory_they_are_told(
    start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    config = {"allow_client_shm": "false"}
    server = start_server(tmp_path / "store", models=(), config=config, grpc=True)
    apis = (Api(http_client, server.inference_url.removeprefix("http://")), Api(grpc_client, server.grpc_address))
    for api in apis:
        with connected(api) as client:
            with pytest.raises(InferenceServerException, match="Client shared memory is disabled") as refused:
                client.register_system_shared_memory("mine", "/mine", 16)
            assert refused.value.status() in ("501", "StatusCode.UNIMPLEMENTED")
            status = client.get_system_shared_memory_status()
            assert len(status if api is apis[0] else status.regions) == 0
            said = client.get_server_metadata()
            assert "system_shared_memory" not in (said["extensions"] if api is apis[0] else said.extensions)


def test_the_objects_of_clients_outlive_the_server(start_server: Callable[..., ServerProcess], tmp_path: Path) -> None:
    server = start_server(tmp_path / "store", models=())
    key = f"/mine_{uuid.uuid4().hex}"
    handle = shared_memory.create_shared_memory_region("mine", key, 64)
    try:
        with connected(Api(http_client, server.inference_url.removeprefix("http://"))) as client:
            client.register_system_shared_memory("mine", key, 64)
        assert server.stop() == 0
        assert path(handle).stat().st_size == 64
    finally:
        shared_memory.destroy_shared_memory_region(handle)

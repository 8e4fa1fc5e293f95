"""What the example scripts of NVIDIA's client do, with the models of examples/open_inference: each test stands for one or several of
them, over REST, gRPC or both, and for their variants with asyncio.

The scripts are those of github.com/triton-inference-server/client, src/python/examples. Those that need a trained network
(image_client and its like) or a GPU (cudashm) are left out.
"""

import asyncio
import queue
import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
import tritonclient.grpc as grpc_client
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http_client
import tritonclient.http.aio as http_aio
from tritonclient import utils
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException, shared_memory

from ringserve.server.testing import ServerProcess
from tests.e2e.triton_apis import (
    LEFT,
    RIGHT,
    Addresses,
    Api,
    check_add_sub,
    check_texts,
    every_type,
    output_in,
    placed,
    regions,
    texts,
)

MODELS = Path(__file__).parents[2] / "examples" / "open_inference" / "models"
WAIT_S_MAX = 60.0
VALUES = [11, 7, 5, 3, 2, 0, 1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One that serves a copy of all of them, by name, as a test changes which."""
    store = tmp_path_factory.mktemp("examples") / "models"
    shutil.copytree(MODELS, store)
    # As the scripts expect it of Triton: its name, and models that come and go by the repository API.
    config = {"model_control_mode": "explicit", "load_model_names": "*", "server_id": "triton"}
    with ServerProcess(store, models=(), config=config, flags=("--ncs",), grpc=True) as running:
        yield running
    assert running.remains() == []


@pytest.fixture(scope="module")
def at(server: ServerProcess) -> Addresses:
    return Addresses(server.inference_url.removeprefix("http://"), server.grpc_address)


@pytest.fixture(params=["http", "grpc"])
def api(request: pytest.FixtureRequest, at: Addresses) -> Api:
    """Each of them."""
    return Api(http_client, at.http) if request.param == "http" else Api(grpc_client, at.grpc)


# ---- health, metadata, control


def test_health_and_metadata(api: Api) -> None:
    """simple_http_health_metadata, simple_grpc_health_metadata."""
    with api.client() as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("simple")
        said = client.get_server_metadata()
        assert (said["name"] if api.module is http_client else said.name) == "triton"
        said = client.get_model_metadata("simple")
        assert (said["name"] if api.module is http_client else said.name) == "simple"
        with pytest.raises(InferenceServerException, match="Request for unknown model"):
            client.get_model_metadata("wrong_model_name")


def test_health_and_metadata_with_asyncio(at: Addresses) -> None:
    """simple_http_aio_health_metadata, simple_grpc_aio_health_metadata."""

    async def ask(client: Any) -> None:
        async with client:
            assert await client.is_server_live()
            assert await client.is_server_ready()
            assert await client.is_model_ready("simple")
            assert await client.get_server_metadata() and await client.get_model_metadata("simple")
            with pytest.raises(InferenceServerException, match="Request for unknown model"):
                await client.get_model_metadata("wrong_model_name")

    async def both() -> None:
        await ask(http_aio.InferenceServerClient(at.http))
        await ask(grpc_aio.InferenceServerClient(at.grpc))

    asyncio.run(both())


def test_models_are_loaded_and_unloaded(api: Api) -> None:
    """simple_http_model_control, simple_grpc_model_control, with the control of a file's name that the latter has."""
    name = "simple_fp16"  # which no other test asks for
    with api.client() as client:
        index = client.get_model_repository_index()
        assert len(index if api.module is http_client else index.models) == len(list(MODELS.iterdir()))
        client.load_model(name)
        assert client.is_model_ready(name)
        with pytest.raises(InferenceServerException, match="failed to load"):
            client.load_model(name, config='"parameters": {"config": {{"max_batch_size": "16"}}}')
        client.load_model(name, config='{"max_batch_size":"16"}')
        config = client.get_model_config(name)
        found = config["max_batch_size"] if api.module is http_client else config.config.max_batch_size
        assert found == 16
        client.unload_model(name)
        assert not client.is_model_ready(name)
        with pytest.raises(InferenceServerException):
            client.load_model(name, config="{}", files={"file:" + "A" * 256: b"a"})
        assert client.is_server_live()
        with pytest.raises(InferenceServerException, match="failed to load"):
            client.load_model("wrong_model_name")
        client.load_model(name)  # as it was


# ---- infer


@pytest.mark.parametrize("compression", [None, "gzip", "deflate"])
def test_infer_over_rest(at: Addresses, compression: str | None) -> None:
    """simple_http_infer_client: JSON and binary mixed, with and without outputs, compressed both ways, and a wrong name."""
    inputs = [http_client.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    inputs[0].set_data_from_numpy(LEFT, binary_data=False)
    inputs[1].set_data_from_numpy(RIGHT, binary_data=True)
    outputs = [
        http_client.InferRequestedOutput("OUTPUT0", binary_data=True),
        http_client.InferRequestedOutput("OUTPUT1", binary_data=False),
    ]
    options: dict[str, Any] = {
        "query_params": {"test_1": 1, "test_2": 2},
        "request_compression_algorithm": compression,
        "response_compression_algorithm": compression,
    }
    with http_client.InferenceServerClient(at.http) as client:
        for wanted in (outputs, None):
            check_add_sub(client.infer("simple", inputs, outputs=wanted, **options))
        assert len(client.get_inference_statistics("simple")["model_stats"]) == 1
        with pytest.raises(InferenceServerException) as caught:
            client.infer("wrong_model_name", inputs, outputs=outputs)
        assert caught.value.message().startswith("Request for unknown model")


def test_infer_over_grpc(at: Addresses) -> None:
    """simple_grpc_infer_client, _custom_args_, _keepalive_: headers, compression, channel arguments, and a wrong name."""
    api = Api(grpc_client, at.grpc)
    inputs = [api.input("INPUT0", LEFT), api.input("INPUT1", RIGHT)]
    outputs = api.outputs("OUTPUT0", "OUTPUT1")
    keepalive = grpc_client.KeepAliveOptions(keepalive_time_ms=60_000, keepalive_permit_without_calls=False)
    made: tuple[dict[str, Any], ...] = (
        {},
        {"keepalive_options": keepalive},
        {"channel_args": [("grpc.lb_policy_name", "pick_first"), ("grpc.max_send_message_length", 1 << 24)]},
    )
    for options in made:
        with grpc_client.InferenceServerClient(at.grpc, **options) as client:
            for compression in (None, "gzip", "deflate"):
                results = client.infer(
                    "simple", inputs, outputs=outputs, client_timeout=WAIT_S_MAX, headers={"test": "1"}, compression_algorithm=compression
                )  # fmt: skip
                check_add_sub(results)
            check_add_sub(client.infer("simple", inputs))
            assert len(client.get_inference_statistics("simple").model_stats) == 1
            with pytest.raises(InferenceServerException) as caught:
                client.infer("wrong_model_name", inputs, outputs=outputs)
            assert caught.value.message().startswith("Request for unknown model")


def test_infer_without_waiting(at: Addresses) -> None:
    """simple_http_async_infer_client, simple_grpc_async_infer_client: several requests on their way."""
    rest, rpc = Api(http_client, at.http), Api(grpc_client, at.grpc)
    with http_client.InferenceServerClient(at.http, concurrency=4) as client:
        inputs = [rest.input("INPUT0", LEFT), rest.input("INPUT1", RIGHT)]
        asked = [client.async_infer("simple", inputs) for _ in range(8)]
        for each in asked:
            check_add_sub(each.get_result())
    answers: queue.Queue[Any] = queue.Queue()
    with rpc.client() as client:
        inputs = [rpc.input("INPUT0", LEFT), rpc.input("INPUT1", RIGHT)]
        for _ in range(8):
            client.async_infer("simple", inputs, callback=lambda result, error: answers.put(error or result))
        for _ in range(8):
            check_add_sub(answers.get(timeout=WAIT_S_MAX))


def test_infer_with_asyncio(at: Addresses) -> None:
    """simple_http_aio_infer_client, simple_grpc_aio_infer_client, and theirs of texts."""

    async def ask(api: Api) -> None:
        async with api.client() as client:
            inputs = [api.input("INPUT0", LEFT), api.input("INPUT1", RIGHT)]
            outputs = api.outputs("OUTPUT0", "OUTPUT1")
            for results in await asyncio.gather(*[client.infer("simple", inputs, outputs=outputs) for _ in range(4)]):
                check_add_sub(results)
            inputs = [api.input("INPUT0", texts(LEFT)), api.input("INPUT1", texts(RIGHT))]
            check_texts(await client.infer("simple_string", inputs))
            with pytest.raises(InferenceServerException, match="Request for unknown model"):
                await client.infer("wrong_model_name", inputs)

    async def both() -> None:
        await ask(Api(http_aio, at.http))
        await ask(Api(grpc_aio, at.grpc))

    asyncio.run(both())


def test_texts(api: Api) -> None:
    """simple_http_string_infer_client, simple_grpc_string_infer_client: of numbers, and of anything."""
    with api.client() as client:
        inputs = [api.input("INPUT0", texts(LEFT)), api.input("INPUT1", texts(RIGHT))]
        check_texts(client.infer("simple_string", inputs, outputs=api.outputs("OUTPUT0", "OUTPUT1")))
        odd = np.array([[b"", b"\0\xff", "grüße".encode(), b"x" * 70_000]], object)
        results = client.infer("simple_identity", [api.input("INPUT0", odd)], outputs=api.outputs("OUTPUT0"))
        assert results.as_numpy("OUTPUT0").tolist() == odd.tolist()


def test_a_client_for_each_request(api: Api) -> None:
    """memory_growth_test."""
    for _ in range(10):
        with api.client() as client:
            results = client.infer("custom_identity_int32", [api.input("INPUT0", LEFT)], outputs=api.outputs("OUTPUT0"))
        answer = results.as_numpy("OUTPUT0")
        assert (answer.dtype, answer.tolist()) == (LEFT.dtype, LEFT.tolist())


@pytest.mark.parametrize("binary", [True, False])
def test_every_datatype_comes_back(api: Api, binary: bool) -> None:
    """Those that JSON can say also as JSON."""
    json_can = api.module is not http_client or binary
    arrays = {name: array for name, array in every_type().items() if json_can or name not in ("FP16", "BF16", "STRING")}
    if api.module is http_client:
        inputs = [api.input(f"IN_{name}", array, binary_data=binary) for name, array in arrays.items()]
    else:
        inputs = [api.input(f"IN_{name}", array) for name, array in arrays.items()]
    with api.client() as client:
        results = client.infer("identity_of_types", inputs)
    for name, array in arrays.items():
        answer = results.as_numpy(f"OUT_{name}")
        assert (answer.dtype, answer.tolist()) == (array.dtype, array.tolist()), name


def test_a_model_that_completes_its_configuration(api: Api) -> None:
    """Its config.pbtxt names nothing but the backend."""
    with api.client() as client:
        results = client.infer("completing", [api.input("X", np.array([[1, 2, 3]], np.float32))])
        assert results.as_numpy("HALF").tolist() == [[0.5, 1, 1.5]]
        config = client.get_model_config("completing", **({} if api.module is http_client else {"as_json": True}))
    assert config.get("config", config)["max_batch_size"] == 4


# ---- gRPC without the client


class Content(NamedTuple):
    """Tensors in the message itself."""

    model: str
    datatype: str
    field: str
    left: list[Any]
    right: list[Any]


NUMBERS = [int(each) for each in LEFT.ravel()]
CONTENTS = (
    Content("simple", "INT32", "int_contents", NUMBERS, [1] * 16),
    Content("simple_int8", "INT8", "int_contents", NUMBERS, [1] * 16),
    Content("simple_string", "BYTES", "bytes_contents", [str(each).encode() for each in NUMBERS], [b"1"] * 16),
)


@pytest.mark.parametrize("content", CONTENTS, ids=lambda each: each.model)
def test_tensors_in_the_message(at: Addresses, content: Content) -> None:
    """grpc_client and grpc_explicit_{int,int8,byte}_content_client, with the wrong version that these end with."""
    request = service_pb2.ModelInferRequest(model_name=content.model, id="my request id")
    for name, values in (("INPUT0", content.left), ("INPUT1", content.right)):
        tensor = request.inputs.add(name=name, datatype=content.datatype, shape=[1, 16])
        getattr(tensor.contents, content.field).extend(values)
    for name in ("OUTPUT0", "OUTPUT1"):
        request.outputs.add(name=name)
    with grpc.insecure_channel(at.grpc) as channel:
        answer = (stub := service_pb2_grpc.GRPCInferenceServiceStub(channel)).ModelInfer(request)
        assert [(each.name, list(each.shape)) for each in answer.outputs] == [
            ("OUTPUT0", [1, 16]),
            ("OUTPUT1", [1, 16]),
        ]
        if content.datatype == "BYTES":
            found = [utils.deserialize_bytes_tensor(each).astype(int).tolist() for each in answer.raw_output_contents]
        else:
            dtype = utils.triton_to_np_dtype(content.datatype)
            found = [np.frombuffer(each, dtype).tolist() for each in answer.raw_output_contents]
        assert found == [[each + 1 for each in NUMBERS], [each - 1 for each in NUMBERS]]
        request.model_version = "wrong_specification"
        with pytest.raises(grpc.RpcError, match="version from specified version string 'wrong_specification'"):
            stub.ModelInfer(request)


# ---- sequences


def expected_of(first: int, values: Sequence[int], sequence_id: int, *, oldest: bool) -> list[int]:
    """What the models of numbers answer to a sequence."""
    answers = [first + 1, *values]
    return [*answers[:-1], answers[-1] + (sequence_id if oldest else 0)]


def expected_sums(first: int, values: Sequence[int], sequence_id: int) -> list[int]:
    """What the model of sums answers."""
    sums = np.cumsum([first, *values]).tolist()
    return [*sums[:-1], sums[-1] + sequence_id]


def the_sequences(oldest: bool, offset: int) -> list[tuple[str, int | str, list[int], list[int]]]:
    """Model, id, values and answers of the three that the scripts send."""
    model = "simple_dyna_sequence" if oldest else "simple_sequence"
    first, second = 1000 + 2 * offset, 1001 + 2 * offset
    negative = [-each for each in VALUES]
    found: list[tuple[str, int | str, list[int], list[int]]] = [
        (model, first, [0, *VALUES], expected_of(0, VALUES, first, oldest=oldest)),
        (model, second, [100, *negative], expected_of(100, negative, second, oldest=oldest)),
    ]
    if oldest:
        number = 1002 + offset
        sums = expected_sums(20, negative, number)
        return [*found, ("simple_string_dyna_sequence", str(number), [20, *negative], sums)]
    return [*found, (model, str(uuid.uuid4()), [20, *negative], expected_of(20, negative, 0, oldest=False))]


@pytest.mark.parametrize("oldest", [False, True])
def test_sequences_one_request_after_the_other(api: Api, oldest: bool) -> None:
    """simple_http_sequence_sync_infer_client, simple_grpc_sequence_sync_infer_client, also with --dyna."""
    offset = 0 if api.module is http_client else 100
    with api.client() as client:
        for model, sequence_id, values, expected in the_sequences(oldest, offset):
            answers = []
            for at, value in enumerate(values):
                inputs = [api.input("INPUT", np.array([[value]], np.int32))]
                marks = {"sequence_start": at == 0, "sequence_end": at == len(values) - 1}
                results = client.infer(model, inputs, outputs=api.outputs("OUTPUT"), sequence_id=sequence_id, **marks)
                answers.append(results.as_numpy("OUTPUT").item())
            assert answers == expected


@pytest.mark.parametrize("oldest", [False, True])
def test_sequences_in_a_stream(at: Addresses, oldest: bool) -> None:
    """simple_grpc_sequence_stream_infer_client, also with --dyna: three at the same time."""
    api, answers = Api(grpc_client, at.grpc), queue.Queue[Any]()
    sequences = the_sequences(oldest, 200)
    with api.client() as client:
        client.start_stream(callback=lambda result, error: answers.put(error or result))
        for index, (model, sequence_id, values, _) in enumerate(sequences):
            for place, value in enumerate(values):
                client.async_stream_infer(
                    model,
                    [api.input("INPUT", np.array([[value]], np.int32))],
                    outputs=api.outputs("OUTPUT"),
                    request_id=f"{index}_{place}",
                    sequence_id=sequence_id,
                    sequence_start=place == 0,
                    sequence_end=place == len(values) - 1,
                )
        found: list[list[int]] = [[] for _ in sequences]
        for _ in range(sum(len(values) for _, _, values, _ in sequences)):
            answer = answers.get(timeout=WAIT_S_MAX)
            assert not isinstance(answer, Exception), answer
            found[int(answer.get_response().id.split("_")[0])].append(answer.as_numpy("OUTPUT").item())
    assert found == [expected for *_, expected in sequences]


def test_sequences_with_asyncio(at: Addresses) -> None:
    """simple_grpc_aio_sequence_stream_infer_client."""
    api = Api(grpc_aio, at.grpc)
    sequences = the_sequences(False, 300)

    async def requests() -> Any:
        for index, (model, sequence_id, values, _) in enumerate(sequences):
            for place, value in enumerate(values):
                yield {
                    "model_name": model,
                    "inputs": [api.input("INPUT", np.array([[value]], np.int32))],
                    "outputs": api.outputs("OUTPUT"),
                    "request_id": f"{index}_{place}",
                    "sequence_id": sequence_id,
                    "sequence_start": place == 0,
                    "sequence_end": place == len(values) - 1,
                }

    async def ask() -> list[list[int]]:
        found: list[list[int]] = [[] for _ in sequences]
        async with api.client() as client:
            async for result, error in client.stream_infer(requests()):
                assert error is None
                found[int(result.get_response().id.split("_")[0])].append(result.as_numpy("OUTPUT").item())
        return found

    assert asyncio.run(ask()) == [expected for *_, expected in sequences]


# ---- any number of answers


def test_a_decoupled_model(at: Addresses) -> None:
    """simple_grpc_custom_repeat: one response for each element, and then, where it is asked for, an empty one that says it is over."""
    api, answers = Api(grpc_client, at.grpc), queue.Queue[Any]()
    inputs = [
        api.input("IN", np.arange(100, 110, dtype=np.int32)),
        api.input("DELAY", np.ones(10, np.uint32)),
        api.input("WAIT", np.array([1], np.uint32)),
    ]
    with api.client() as client:
        client.start_stream(callback=lambda result, error: answers.put(error or result))
        client.async_stream_infer("repeat_int32", inputs, outputs=api.outputs("OUT"))
        found = [answers.get(timeout=WAIT_S_MAX).as_numpy("OUT").tolist() for _ in range(10)]
        assert found == [[100 + index] for index in range(10)]
        nothing = [api.input("IN", np.array([0], np.int32))]
        client.async_stream_infer("square_int32", nothing, request_id="none", enable_empty_final_response=True)
        last = answers.get(timeout=WAIT_S_MAX).get_response()
        assert (last.id, len(last.outputs)) == ("none", 0)
        assert last.parameters["triton_final_response"].bool_param
        two = [api.input("IN", np.array([2], np.int32))]
        client.async_stream_infer("square_int32", two, enable_empty_final_response=True)
        found = [answers.get(timeout=WAIT_S_MAX).get_response() for _ in range(3)]
        assert [each.parameters["triton_final_response"].bool_param for each in found] == [False, False, True]


# ---- shared memory


def test_shared_memory(api: Api) -> None:
    """simple_http_shm_client, simple_grpc_shm_client: both inputs in one region, both outputs in another."""
    nbytes = LEFT.nbytes
    with api.client() as client, regions(client, input_data=2 * nbytes, output_data=2 * nbytes) as handles:
        shared_memory.set_shared_memory_region(handles["input_data"], [LEFT[0]])
        shared_memory.set_shared_memory_region(handles["input_data"], [RIGHT[0]], offset=nbytes)
        made = [api.module.InferInput(f"INPUT{n}", [1, 16], "INT32") for n in (0, 1)]
        inputs = [placed(each, "input_data", nbytes, n * nbytes) for n, each in enumerate(made)]
        wanted = api.outputs("OUTPUT0", "OUTPUT1")
        outputs = [placed(each, "output_data", nbytes, n * nbytes) for n, each in enumerate(wanted)]
        results = client.infer("simple", inputs, outputs=outputs)
        found = [output_in(results, f"OUTPUT{n}", handles["output_data"], n * nbytes).tolist() for n in (0, 1)]
        assert found == [(LEFT + RIGHT).tolist(), (LEFT - RIGHT).tolist()]
        status = client.get_system_shared_memory_status()
        assert len(status if api.module is http_client else status.regions) == 2


def test_texts_in_shared_memory(api: Api) -> None:
    """simple_http_shm_string_client, simple_grpc_shm_string_client."""
    sides = [utils.serialize_byte_tensor(texts(each)) for each in (LEFT, RIGHT)]
    answers = [utils.serialize_byte_tensor(texts(each)) for each in (LEFT + RIGHT, LEFT - RIGHT)]
    sizes = {f"input{n}": utils.serialized_byte_size(sides[n]) for n in (0, 1)}
    sizes |= {f"output{n}": utils.serialized_byte_size(answers[n]) for n in (0, 1)}
    with api.client() as client, regions(client, **sizes) as handles:
        inputs, outputs = [], []
        for n in (0, 1):
            shared_memory.set_shared_memory_region(handles[f"input{n}"], [sides[n]])
            tensor, wanted = api.module.InferInput(f"INPUT{n}", [1, 16], "BYTES"), api.outputs(f"OUTPUT{n}")[0]
            inputs.append(placed(tensor, f"input{n}", sizes[f"input{n}"]))
            outputs.append(placed(wanted, f"output{n}", sizes[f"output{n}"]))
        results = client.infer("simple_string", inputs, outputs=outputs)
        found = [output_in(results, f"OUTPUT{n}", handles[f"output{n}"]).tolist() for n in (0, 1)]
        assert found == [texts(LEFT + RIGHT).tolist(), texts(LEFT - RIGHT).tolist()]


def test_tensors_are_used_again_with_and_without_shared_memory(api: Api) -> None:
    """reuse_infer_objects_client: the same objects, in regions, in the message, and in regions again."""
    nbytes = LEFT.nbytes
    names = ("INPUT0", "INPUT1", "OUTPUT0", "OUTPUT1")
    inputs = [api.module.InferInput(name, [1, 16], "INT32") for name in names[:2]]
    outputs = [api.module.InferRequestedOutput(name) for name in names[2:]]
    with api.client() as client, regions(client, **dict.fromkeys(names, nbytes)) as handles:
        for name, array in zip(names, (LEFT, RIGHT), strict=False):
            shared_memory.set_shared_memory_region(handles[name], [array[0]])
        for in_memory in (True, False, True):
            if in_memory:
                for name, tensor in zip(names, (*inputs, *outputs), strict=True):
                    tensor.set_shared_memory(name, nbytes)
            else:
                inputs[0].set_data_from_numpy(LEFT)
                inputs[1].set_data_from_numpy(RIGHT * 2)
                for wanted in outputs:
                    wanted.unset_shared_memory()
            results = client.infer("simple", inputs, outputs=outputs)
            if in_memory:
                found = [output_in(results, name, handles[name]).tolist() for name in names[2:]]
                assert found == [(LEFT + RIGHT).tolist(), (LEFT - RIGHT).tolist()]
            else:
                check_add_sub(results, right=RIGHT * 2)

import asyncio
import threading
from typing import Any

import grpc
import grpc.aio
import numpy as np
import orjson
import pytest

from ringserve.backends.contract import Batch, TensorResult
from ringserve.protocol.errors import BadRequest, PredictionFailed, RingServeError
from ringserve.protocol.grpc import open_inference_pb2 as pb
from ringserve.protocol.grpc import torchserve_open_inference_pb2 as torchserve
from ringserve.protocol.grpc.torchserve_open_inference_pb2_grpc import (
    GRPCInferenceServiceStub as TorchServeStub,
)
from ringserve.protocol.tensor import ANY, Signature, TensorSpec
from ringserve.server.open_inference.errors import DECOUPLED_GRPC
from ringserve.server.served_model import ServedModel
from tests.server.rpc.rpc_rig import refused, request_of, serving, until

INT4 = np.arange(4, dtype="<i4")
TYPED = Signature((TensorSpec("x", "int32", (4,)),), (TensorSpec("y", "int32", (4,)),))
FRAMED = Signature((TensorSpec("x", "int32", (ANY,)),), (TensorSpec("y", "int32", (ANY,)),))
DECOUPLED = Signature(FRAMED.inputs, FRAMED.outputs, batches=False, decoupled=True)
ALONE = Signature(FRAMED.inputs, FRAMED.outputs, batches=False)


def doubled(batch: Batch) -> None:
    batch.outputs["y"][:] = batch.inputs["x"] * 2


def framed(batch: Batch) -> None:
    for call in batch.calls:
        batch.results.append(TensorResult({"y": call.inputs["x"] + 1}, {"n": 7, "s": "word", "half": 0.5, "yes": True}))


def each_alone(batch: Batch) -> None:
    """One answer per element, a refusal for a negative one."""
    for row, call in enumerate(batch.calls):
        for value in call.inputs["x"].ravel().tolist():
            said: Any = BadRequest("negative") if value < 0 else {"y": np.array([value], "i4")}
            batch.control.send(row, said, final=value < 0)
            if value < 0:
                return
        batch.control.send(row, None, final=True)


def numbers(*values: int, id: str = "", parameters: Any = ()) -> pb.ModelInferRequest:
    message = request_of(("x", "INT32", [len(values)], np.array(values, "<i4").tobytes()), id=id)
    for name, value in parameters:
        message.parameters[name].bool_param = value
    return message


def test_a_tensor_goes_in_and_out_as_its_bytes() -> None:
    async def talk() -> None:
        async with serving(TYPED, doubled) as rig:
            response = await rig.stub.ModelInfer(request_of(("x", "INT32", [1, 4], INT4.tobytes()), id="7"))
            assert (response.model_name, response.model_version, response.id) == ("m", "1", "7")
            assert [(each.name, each.datatype, list(each.shape)) for each in response.outputs] == [
                ("y", "INT32", [1, 4])
            ]
            assert list(response.raw_output_contents) == [(INT4 * 2).tobytes()]
            typed = pb.ModelInferRequest(model_name="m", model_version="1")
            typed.inputs.add(name="x", datatype="INT32", shape=[2, 4]).contents.int_contents.extend(range(8))
            response = await rig.stub.ModelInfer(typed)
            assert list(response.raw_output_contents) == [(np.arange(8, dtype="<i4") * 2).tobytes()]
            assert not response.outputs[0].HasField("contents")

    asyncio.run(talk())


def test_a_large_tensor_and_its_answer_arrive_whole() -> None:
    async def talk() -> None:
        async with serving(FRAMED, framed, region=1 << 20) as rig:
            values = np.arange(100_000, dtype="<i4")
            response = await rig.stub.ModelInfer(request_of(("x", "INT32", [1, 100_000], values.tobytes())))
            assert response.raw_output_contents[0] == (values + 1).tobytes()
            given = {
                name: getattr(each, each.WhichOneof("parameter_choice")) for name, each in response.parameters.items()
            }
            assert given == {"n": 7, "s": "word", "half": 0.5, "yes": True}

    asyncio.run(talk())


def test_torchserves_name_of_the_service_answers_in_typed_contents() -> None:
    async def talk() -> None:
        async with serving(TYPED, doubled) as rig, grpc.aio.insecure_channel(rig.address) as channel:
            stub: Any = TorchServeStub(channel)
            assert (await stub.ServerLive(torchserve.ServerLiveRequest())).live
            assert (await stub.ModelReady(torchserve.ModelReadyRequest(name="m"))).ready
            wanted = torchserve.ModelInferRequest(model_name="m")
            wanted.inputs.add(name="x", datatype="INT32", shape=[1, 4]).contents.int_contents.extend(range(4))
            response = await stub.ModelInfer(wanted)
            assert list(response.outputs[0].contents.int_contents) == (INT4 * 2).tolist()
            metadata = await stub.ModelMetadata(torchserve.ModelMetadataRequest(name="m"))
            assert [(each.name, each.datatype, list(each.shape)) for each in metadata.inputs] == [
                ("x", "INT32", [-1, 4])
            ]
            unknown = stub.ModelInfer(torchserve.ModelInferRequest(model_name="no"))
            assert await refused(unknown) == ("NOT_FOUND", "Request for unknown model: 'no' is not found")

    asyncio.run(talk())


def test_metadata_readiness_and_configuration_are_told() -> None:
    config = {
        "name": "m",
        "max_batch_size": 8,
        "input": [{"name": "x", "data_type": "TYPE_INT32", "dims": [4]}],
        "dynamic_batching": {"max_queue_delay_microseconds": 100},
        "of_a_later_version": 1,
    }

    async def talk() -> None:
        shown = ServedModel(orjson.dumps(config), "python", 8)
        async with serving(TYPED, doubled, shown=shown) as rig:
            stub = rig.stub
            assert (await stub.ServerLive(pb.ServerLiveRequest())).live
            assert (await stub.ServerReady(pb.ServerReadyRequest())).ready
            assert (await stub.ModelReady(pb.ModelReadyRequest(name="m", version="1"))).ready
            server = await stub.ServerMetadata(pb.ServerMetadataRequest())
            assert (server.name, server.version, list(server.extensions)) == ("ringserve", "9.9", ["classification"])
            model = await stub.ModelMetadata(pb.ModelMetadataRequest(name="m"))
            assert (model.name, list(model.versions), model.platform) == ("m", ["1"], "python")
            assert [(each.name, each.datatype, list(each.shape)) for each in model.outputs] == [("y", "INT32", [-1, 4])]
            found = (await stub.ModelConfig(pb.ModelConfigRequest(name="m"))).config
            assert (found.name, found.max_batch_size, list(found.input[0].dims)) == ("m", 8, [4])
            assert found.dynamic_batching.max_queue_delay_microseconds == 100
            for call, kind in (
                (stub.ModelReady, pb.ModelReadyRequest),
                (stub.ModelMetadata, pb.ModelMetadataRequest),
                (stub.ModelConfig, pb.ModelConfigRequest),
            ):
                assert await refused(call(kind(name="no"))) == (
                    "NOT_FOUND",
                    "Request for unknown model: 'no' is not found",
                )
                assert (await refused(call(kind(name="m", version="x"))))[0] == "INVALID_ARGUMENT"
                if call is stub.ModelReady:
                    assert not (await call(kind(name="m", version="7"))).ready
                    continue
                assert await refused(call(kind(name="m", version="7"))) == (
                    "NOT_FOUND",
                    "Request for unknown model: 'm' version 7 is not found",
                )

    asyncio.run(talk())


def test_faults_are_statuses_with_the_protocols_sentences() -> None:
    def failing(batch: Batch) -> None:
        raise PredictionFailed("it went wrong")

    async def talk() -> None:
        async with serving(TYPED, failing) as rig:
            data = INT4.tobytes()
            for message, said in (
                (pb.ModelInferRequest(model_name="no"), ("NOT_FOUND", "Request for unknown model: 'no' is not found")),
                (
                    request_of(("x", "FP32", [1, 4], data), id="q"),
                    (
                        "INVALID_ARGUMENT",
                        "[request id: q] inference input 'x' data-type is 'FP32', but model 'm' expects 'INT32'",
                    ),
                ),
                (
                    request_of(("x", "INT32", [1, 4], data[:-1])),
                    (
                        "INVALID_ARGUMENT",
                        "[request id: <id_unknown>] input byte size mismatch for input 'x' for model 'm'. Expected 16, got 15",
                    ),
                ),
                (request_of(("x", "INT32", [1, 4], data)), ("INTERNAL", "it went wrong")),
            ):
                code, details = await refused(rig.stub.ModelInfer(message))
                assert (code, details) == said
            down = ("UNAVAILABLE", "The management API does not answer: the server is starting or going down.")
            assert await refused(rig.stub.ModelStatistics(pb.ModelStatisticsRequest())) == down

    asyncio.run(talk())


def test_a_model_whose_answers_need_a_stream_is_refused_before_it_runs() -> None:
    async def talk() -> None:
        async with serving(DECOUPLED, each_alone) as rig:
            assert await refused(rig.stub.ModelInfer(numbers(1))) == ("UNIMPLEMENTED", DECOUPLED_GRPC)
            assert rig.worker.model.batches == []

    asyncio.run(talk())


# ---- streams


async def streamed(
    rig: Any, *messages: pb.ModelInferRequest, metadata: Any = None
) -> list[pb.ModelStreamInferResponse]:
    call = rig.stub.ModelStreamInfer(iter(messages), metadata=metadata)
    return [response async for response in call]


def said(responses: list[pb.ModelStreamInferResponse]) -> list[tuple[str, object, bool]]:
    """Id, elements or error, and whether it is the last one, of each response."""
    found: list[tuple[str, object, bool]] = []
    for each in responses:
        inner = each.infer_response
        values: object = [np.frombuffer(raw, "<i4").tolist() for raw in inner.raw_output_contents]
        found.append((inner.id, each.error_message or values, inner.parameters["triton_final_response"].bool_param))
    return found


def test_answers_on_a_stream_come_in_the_order_of_their_requests_also_errors() -> None:
    async def talk() -> None:
        async with serving(ALONE, framed) as rig:
            found = await streamed(
                rig,
                numbers(1, id="a"),
                pb.ModelInferRequest(model_name="no", id="b"),
                numbers(2, 3, id="c"),
                pb.ModelInferRequest(model_name="m", model_version="9", id="d"),
                numbers(),
            )
            assert said(found) == [
                ("a", [[2]], True),
                ("b", "Request for unknown model: 'no' is not found", True),
                ("c", [[3, 4]], True),
                ("d", "Request for unknown model: 'm' version 9 is not found", True),
                ("", [[]], True),
            ]
            inner = found[3].infer_response
            assert (inner.model_name, inner.model_version, list(inner.outputs)) == ("m", "9", [])

    asyncio.run(talk())


def test_a_decoupled_model_says_as_much_as_it_likes() -> None:
    async def talk() -> None:
        async with serving(DECOUPLED, each_alone) as rig:
            wanted = [("triton_enable_empty_final_response", True)]
            assert said(await streamed(rig, numbers(5, 6, id="d"))) == [("d", [[5]], False), ("d", [[6]], False)]
            assert said(await streamed(rig, numbers(5, id="d", parameters=wanted))) == [
                ("d", [[5]], False),
                ("d", [], True),
            ]
            assert said(await streamed(rig, numbers())) == []
            assert said(await streamed(rig, numbers(parameters=wanted))) == [("", [], True)]
            assert said(await streamed(rig, numbers(1, -1, 2, id="n"))) == [
                ("n", [[1]], False),
                ("n", "negative", True),
            ]
            both = said(await streamed(rig, numbers(1, 2, id="p"), numbers(3, 4, id="q")))
            assert [each for each in both if each[0] == "p"] == [("p", [[1]], False), ("p", [[2]], False)]
            assert [each for each in both if each[0] == "q"] == [("q", [[3]], False), ("q", [[4]], False)]

    asyncio.run(talk())


def test_a_client_that_wants_a_status_gets_that_of_the_first_error() -> None:
    async def talk() -> None:
        async with serving(DECOUPLED, each_alone) as rig:
            metadata = (("triton_grpc_error", "true"),)
            call = rig.stub.ModelStreamInfer(iter((numbers(1, -1, id="n"),)), metadata=metadata)
            first = await call.read()
            assert said([first]) == [("n", [[1]], False)]
            assert await refused(call.read()) == ("INVALID_ARGUMENT", "negative")
            call = rig.stub.ModelStreamInfer(metadata=metadata)  # the client goes on talking
            await call.write(pb.ModelInferRequest(model_name="no"))
            assert (await refused(call.read()))[0] == "NOT_FOUND"
            assert said(await streamed(rig, numbers(3))) == [("", [[3]], False)]

    asyncio.run(talk())


def test_what_came_before_the_error_is_answered_before_the_status() -> None:
    async def talk() -> None:
        async with serving(ALONE, framed) as rig:
            bad = pb.ModelInferRequest(model_name="no")
            for _ in range(20):
                messages = (numbers(1, id="a"), numbers(2, id="b"), bad, numbers(3, id="c"))
                call = rig.stub.ModelStreamInfer(iter(messages), metadata=(("triton_grpc_error", "true"),), timeout=30)
                assert said([await call.read(), await call.read()]) == [("a", [[2]], True), ("b", [[3]], True)]
                assert (await refused(call.read()))[0] == "NOT_FOUND"

    asyncio.run(talk())


def test_a_message_that_cannot_be_parsed_ends_the_stream() -> None:
    broken = b"\x0a\xff"

    async def talk() -> None:
        async with serving(ALONE, framed) as rig, grpc.aio.insecure_channel(rig.address) as channel:
            untyped: Any = channel
            call = untyped.stream_stream("/inference.GRPCInferenceService/ModelStreamInfer")(iter((broken,)))
            assert (await refused(call.read()))[0] == "INVALID_ARGUMENT"
            one = untyped.unary_unary("/inference.GRPCInferenceService/ModelInfer")
            assert (await refused(one(broken)))[0] == "INVALID_ARGUMENT"

    asyncio.run(talk())


class Gate:
    """Holds a model until it is opened."""

    def __init__(self) -> None:
        self.opened, self.entered = threading.Event(), threading.Event()
        self.cancelled: list[bool] = []

    def __call__(self, batch: Batch) -> None:
        self.entered.set()
        assert self.opened.wait(30)
        self.cancelled += [batch.control.cancelled(row) for row in range(len(batch.calls))]
        framed(batch)


def test_a_cancelled_call_frees_its_row_and_tells_the_model() -> None:
    async def talk() -> None:
        gate = Gate()
        async with serving(ALONE, gate, rows=1, slabs=2) as rig:
            calls = [rig.stub.ModelInfer(numbers(number)) for number in range(6)]
            await until(lambda: gate.entered.is_set() and len(rig.pendings) == 6)
            for call in calls:
                call.cancel()
            await until(lambda: all(pending.cancelled() for pending in rig.pendings))
            gate.opened.set()
            await until(lambda: rig.worker.free == (2, 2))
            assert gate.cancelled == [True]
            assert len(rig.worker.model.batches) == 1

    asyncio.run(talk())


def test_a_deadline_takes_the_request_back() -> None:
    async def talk() -> None:
        gate = Gate()
        async with serving(ALONE, gate, rows=1, slabs=2) as rig:
            call = rig.stub.ModelInfer(numbers(1), timeout=0.2)
            assert (await refused(call))[0] == "DEADLINE_EXCEEDED"
            await until(lambda: rig.pendings[0].done())
            gate.opened.set()
            await until(lambda: rig.worker.free == (2, 2))

    asyncio.run(talk())


def test_a_cancelled_stream_takes_all_its_requests_back() -> None:
    async def talk() -> None:
        gate = Gate()
        async with serving(ALONE, gate, rows=1, slabs=2, capacity=10) as rig:
            call = rig.stub.ModelStreamInfer()
            for number in range(5):
                await call.write(numbers(number))
            await until(lambda: gate.entered.is_set() and len(rig.pendings) == 5)
            call.cancel()
            await until(lambda: all(pending.cancelled() for pending in rig.pendings))
            gate.opened.set()
            await until(lambda: rig.worker.free == (2, 2))
            assert len(rig.worker.model.batches) == 1

    asyncio.run(talk())


def test_a_stream_is_read_no_further_than_its_answers_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringserve.server.rpc.streams.STREAM_REQUESTS_MAX", 3)

    async def talk() -> None:
        gate = Gate()
        async with serving(ALONE, gate, rows=1, slabs=2) as rig:
            call = rig.stub.ModelStreamInfer(iter([numbers(number, id=str(number)) for number in range(20)]))
            await until(lambda: gate.entered.is_set() and len(rig.pendings) == 3)
            another = await rig.stub.ModelReady(
                pb.ModelReadyRequest(name="m")
            )  # whatever else had come would have been read by now
            assert another.ready
            assert len(rig.pendings) == 3
            gate.opened.set()
            assert [response.infer_response.id async for response in call] == [str(number) for number in range(20)]

    asyncio.run(talk())


def test_an_error_that_is_none_of_ours_is_internal() -> None:
    class Odd(RingServeError):
        status = 599

    def odd(batch: Batch) -> None:
        raise Odd("odd")

    async def talk() -> None:
        async with serving(TYPED, odd) as rig:
            code, _ = await refused(rig.stub.ModelInfer(request_of(("x", "INT32", [1, 4], INT4.tobytes()))))
            assert code == "INTERNAL"

    asyncio.run(talk())

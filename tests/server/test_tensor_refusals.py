"""One request whose tensors are none, or one answer that is none, fails alone: the worker and the requests beside it go on."""

import struct
from typing import Any

import numpy as np
import pytest

from ringserve.backends.contract import Batch, ContractBroken, TensorCall, TensorResult
from ringserve.protocol.errors import RingServeError
from ringserve.protocol.request import Tensor
from ringserve.protocol.tensor import ANY, Signature, TensorSpec
from ringserve.server.tensor_calls import Framing
from tests.server.tensor_rig import far, play, served, tensor, values

TEXTS = TensorSpec("t", "bytes", (ANY,))
ECHO = Signature((TEXTS,), (TEXTS,))
WIDE = TensorSpec("w", "float32", (ANY, ANY))


def refused(answer: object) -> bool:
    """Whether it is the client that is told what is wrong with its request."""
    return isinstance(answer, RingServeError) and answer.http_status == 400


def echo(batch: Batch) -> None:
    batch.outputs = {"t": batch.inputs["t"]}


@pytest.mark.parametrize("data", [b"\xff" * 5, b"ab", struct.pack("<I", 1) + b"a" + struct.pack("<I", 0)])
def test_elements_that_a_client_spoils_in_its_own_memory_fail_its_request_only(data: bytes) -> None:
    async def scenario() -> None:
        async with served(ECHO, echo) as version:
            spoiled = far(Tensor("t", "BYTES", (1, 1), data))
            sent = [version.send(each) for each in (tensor("t", [["a"]]), spoiled, tensor("t", [["b"]]))]
            found = await version.answered(*sent)
            assert refused(found[1])
            assert [values(each)["t"] for each in found[::2]] == [[[b"a"]], [[b"b"]]]

    play(scenario)


@pytest.mark.parametrize("decoupled", [False, True])
def test_an_empty_tensor_of_a_shape_that_no_array_has_is_refused(decoupled: bool) -> None:
    signature = Signature((WIDE,), (WIDE,), batches=False, decoupled=decoupled)

    def run(batch: Batch) -> None:
        raise AssertionError("nothing is left to run")

    async def scenario() -> None:
        async with served(signature, run) as version:
            (found,) = await version.answered(version.send(Tensor("w", "FP32", (0, 2**62), b"")))
            assert refused(found)
            assert version.model.batches == []

    play(scenario)


@pytest.mark.parametrize("answer", [[["a"], ["b", "c"]], np.array([["\ud800"]], object), np.array([["\ud800"]])])
def test_an_answer_that_is_no_array_of_bytes_breaks_the_contract(answer: Any) -> None:
    with pytest.raises(ContractBroken, match='Output "t"'):
        Framing(ECHO).reply(TensorCall("", {}), {"t": answer}, None)


def test_an_answer_that_cannot_be_written_fails_its_request_only() -> None:
    def run(batch: Batch) -> None:
        batch.results = [
            TensorResult({"t": np.array([["\ud800" if b"bad" in call.inputs["t"] else "good"]], object)})
            for call in batch.calls
        ]

    async def scenario() -> None:
        async with served(ECHO, run) as version:
            found = await version.answered(*[version.send(tensor("t", [[text]])) for text in ("a", "bad", "b")])
            assert isinstance(found[1], RingServeError)
            assert [values(each)["t"] for each in found[::2]] == [[[b"good"]], [[b"good"]]]

    play(scenario)

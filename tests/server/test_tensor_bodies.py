"""Models of declared tensors that are asked in plain bodies, and handlers that are asked in tensors."""

from typing import Any

import numpy as np
import orjson
import pytest

from ringserve.backends.contract import Batch, Reply
from ringserve.protocol.errors import BadRequest, PredictionFailed
from ringserve.protocol.request import Answer, FormPart
from ringserve.protocol.tensor import ANY, Signature, TensorSpec
from tests.server.tensor_rig import FRAMED, double, play, served, tensor, values, x_of


class TestPlainBodies:
    def test_json_is_one_row_in_and_out(self) -> None:
        async def scenario() -> None:
            async with served(FRAMED, double) as version:
                sent = [
                    version.post(b'{"x": [1, 2, 3]}', "application/json"),
                    version.post(b"[4]", "application/json"),
                    version.post(np.array([5, 6], "float32").tobytes()),
                    version.post(b"", parts=[FormPart("x", "application/json", b"[7]")]),
                    version.post(b"[8]", "application/json", binary=True),
                ]
                answers = await version.answered(*sent)
                bodies = [answer.body for answer in answers if isinstance(answer, Answer)]
                assert bodies[:4] == [b"[2.0,4.0,6.0]", b"[8.0]", b"[10.0,12.0]", b"[14.0]"]
                assert bodies[4] == np.array([16], "float32").tobytes()
                assert answers[0].content_type == "application/json"  # type: ignore[union-attr]

        play(scenario)

    def test_texts_and_numbers_have_their_places(self) -> None:
        signature = Signature(
            (TensorSpec("t", "bytes", (2,)), TensorSpec("h", "bfloat16", (ANY, 2), optional=True)),
            (TensorSpec("t", "bytes", (2,)), TensorSpec("h", "bfloat16", (ANY, 2)), TensorSpec("f", "float16", ())),
            batches=False,
        )

        def run(batch: Batch) -> None:
            outputs = dict(batch.inputs)
            batch.outputs = {**outputs, "f": np.array(0.5, "float16")}

        async def scenario() -> None:
            async with served(signature, run) as version:
                sent = version.post('{"t": ["ä", ""], "h": [[1.5, 2], [3, 4]]}'.encode(), "application/json")
                (answer,) = await version.answered(sent)
                assert isinstance(answer, Answer)
                assert orjson.loads(answer.body) == {"t": ["ä", ""], "h": [[1.5, 2.0], [3.0, 4.0]], "f": 0.5}

        play(scenario)

    @pytest.mark.parametrize(
        ("body", "content_type", "text"),
        [
            (b"[", "application/json", "does not parse"),
            (b'{"y": 1}', "application/json", "Inputs: expected x, got y"),
            (b'{"x": "a"}', "application/json", "float32 values, got a string"),
            (b'{"x": [[1], [2, 3]]}', "application/json", "unequal lengths"),
            (b'{"x": [[1]]}', "application/json", r"expected shape \[-1\], got \[1, 1\]"),
            (b'{"x": [1e39]}', "application/json", "float32 values, got"),
            (b"12345", "", "expected the bytes of x float32"),
        ],
    )
    def test_what_is_no_input_is_refused(self, body: bytes, content_type: str, text: str) -> None:
        async def scenario() -> None:
            async with served(FRAMED, double) as version:
                with pytest.raises(BadRequest, match=text):
                    version.post(body, content_type)
                assert version.waiting == 0

        play(scenario)


class TestHandlers:
    """Models that declare nothing get the document that TorchServe's gRPC makes."""

    def test_tensors_come_as_a_document_and_go_as_one(self) -> None:
        seen: list[Any] = []

        def run(batch: Batch) -> None:
            document = orjson.loads(bytes(batch.requests[0].parts[0].data))
            seen.append((batch.requests[0], document))
            outputs = [{"name": "y", "datatype": "INT32", "shape": [1, 2], "data": [[3, 4]]}]
            outputs.append({"name": "t", "datatype": "BYTES", "shape": [1], "data": ["ä"]})
            batch.replies[:] = [Reply(orjson.dumps({"id": "1", "outputs": outputs}), "application/json")]

        async def scenario() -> None:
            async with served(Signature(), run) as version:
                sent = version.send(x_of(1), tensor("t", [b"\xff"]), parameters={"p": 1}, model="m")
                (answer,) = await version.answered(sent)
                assert values(answer) == {"y": [[3, 4]], "t": ["ä".encode()]}

        play(scenario)
        ((request, document),) = seen
        assert document == {
            "id": "id",
            "model_name": "m",
            "inputs": [
                {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.0, 1.0]},
                {"name": "t", "shape": [1], "datatype": "BYTES", "data": ["/w=="]},
            ],
            "parameters": {"p": 1},
        }
        assert request.headers["content-type"] == "application/json"

    @pytest.mark.parametrize(
        "reply",
        [
            Reply(b"no json"),
            Reply(b"[]", "application/json"),
            Reply(b'{"outputs": 1}'),
            Reply(b'{"outputs": [{"name": "y"}]}'),
            Reply(b'{"outputs": [{"name": "y", "datatype": "INT33", "data": [1]}]}'),
            Reply(b'{"outputs": [{"name": "y", "datatype": "INT32", "shape": [2], "data": [1]}]}'),
            Reply(b'{"outputs": [{"name": "y", "datatype": "BYTES", "shape": [1], "data": [1]}]}'),
            Reply(b'{"outputs": [{"name": "y", "datatype": "INT32", "shape": ["a"], "data": [1]}]}'),
            Reply(b"broken", status=500),
        ],
    )
    def test_what_is_no_document_of_tensors_is_the_handlers_failure(self, reply: Reply) -> None:
        def run(batch: Batch) -> None:
            batch.replies[:] = [reply]

        async def scenario() -> None:
            async with served(Signature(), run) as version:
                (found,) = await version.answered(version.send(x_of(1)))
                assert isinstance(found, PredictionFailed)

        play(scenario)

    def test_a_plain_request_is_answered_as_ever(self) -> None:
        def run(batch: Batch) -> None:
            batch.replies[:] = [Reply(b"plain", "text/plain; charset=utf-8")]

        async def scenario() -> None:
            async with served(Signature(), run) as version:
                (answer,) = await version.answered(version.post(b"x"))
                assert isinstance(answer, Answer)
                assert (answer.body, answer.tensors) == (b"plain", None)

        play(scenario)

"""One flat object in, one out: keys that are inputs are tensors, all others parameters."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from ringserve.protocol.datatypes import BYTES, join_elements
from ringserve.protocol.errors import BadRequest, PredictionFailed
from ringserve.protocol.request import Tensor
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.open_inference.call import InferCall, InferResult
from ringserve.server.open_inference.checks import Declaration
from ringserve.server.open_inference.events import WAITING_MAX, Events
from ringserve.server.open_inference.generate import ONE_RESPONSE, generate_call, generated, only_one
from ringserve.server.served_model import ServedModel

SPECS = (
    TensorSpec("T", "bytes", (1,)),
    TensorSpec("N", "int32", (1, -1), optional=True),
    TensorSpec("F", "float32", (-1, -1), optional=True),
    TensorSpec("P", "float32", (2,), optional=True),
)
BATCHING = Declaration("m", Signature(SPECS), ServedModel())
WHOLE = Declaration("m", Signature(SPECS, batches=False), ServedModel())


def call(said: object, declaration: Declaration = BATCHING) -> InferCall:
    return generate_call(declaration, "m", "1", said if isinstance(said, bytes) else json.dumps(said).encode())


def test_keys_are_tensors_by_name_and_parameters_otherwise() -> None:
    said = {"N": [1, 2, 3], "T": "é", "id": "7", "parameters": {"a": 1, "b": "x"}, "c": True, "T2": 1.5}
    found = call(said)
    assert found.id == "7"
    assert found.parameters == {"a": 1, "b": "x", "c": True, "T2": 1.5}
    assert [(each.name, each.datatype, each.shape, bytes(each.data)) for each in found.inputs] == [
        ("N", "INT32", (1, 1, 3), np.array([1, 2, 3], np.int32).tobytes()),
        ("T", BYTES, (1, 1), join_elements(["é".encode()])),
    ]


@pytest.mark.parametrize(
    ("key", "value", "batching", "whole"),
    [
        ("T", "a", (1, 1), (1,)),
        ("T", ["a", "b"], (2, 1), None),
        ("T", [], (0, 1), None),
        ("N", 1, (1, 1, 1), (1, 1)),
        ("N", [], (1, 1, 0), (1, 0)),
        ("F", [1, 2, 3], (1, 3, 1), (3, 1)),
        ("P", [1, 2], (1, 2), (2,)),
        ("P", [1, 2, 3, 4], (2, 2), None),
        ("P", [1, 2, 3], None, None),
    ],
)
def test_shapes_follow_from_the_declaration(
    key: str, value: object, batching: tuple[int, ...] | None, whole: tuple[int, ...] | None
) -> None:
    for declaration, expected in ((BATCHING, batching), (WHOLE, whole)):
        if expected is None:
            with pytest.raises(
                BadRequest, match=f"The schema can not convert input '{key}' to tensor with proper shape"
            ):
                call({key: value}, declaration)
        else:
            assert call({key: value}, declaration).inputs[0].shape == expected


@pytest.mark.parametrize(
    ("said", "text"),
    [
        ({"T": 1}, "attempt to access JSON non-string as string"),
        ({"T": None}, "attempt to access JSON non-string as string"),
        ({"T": {}}, "attempt to access JSON non-string as string"),
        ({"N": "x"}, "attempt to access JSON non-signed-integer as signed-integer"),
        ({"id": 1}, "Unable to parse 'id'"),
        ({"parameters": 1}, "Expected JSON object for keyword: 'parameters'"),
        ({"parameters": {"a": []}}, "parameter 'a' has invalid type"),
        ({"x": [1]}, "parameter 'x' has invalid type. It should be either 'int', 'bool', or 'string'."),
        (b'{"T": "a", "T": "b"}', "[request id: <id_unknown>] input 'T' already exists in request"),
        ([], "attempt to get members for non-object"),
        (b"", "failed to parse the request JSON buffer"),
    ],
)
def test_what_is_wrong_is_said(said: object, text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        call(said)
    assert text in caught.value.message


def test_a_name_twice_is_refused_only_where_it_is_a_key() -> None:
    assert call(b'{"T": "\\"T\\": T", "parameters": {"T": 1}}').parameters == {"T": 1}


def test_an_answer_is_flat_and_one_element_stands_alone() -> None:
    outputs = (
        Tensor("one", BYTES, (1, 1), join_elements([b"x"])),
        Tensor("two", "FP32", (2,), np.array([1, np.nan], np.float32).tobytes()),
        Tensor("none", "INT32", (0,), b""),
    )
    said = generated(InferResult("m", "1", "7", outputs, {"p": True})).decode()
    assert said.replace("NaN", "9") == json.dumps(
        {"id": "7", "model_name": "m", "model_version": "1", "p": True, "one": "x", "two": [1.0, 9], "none": []},
        separators=(",", ":"),
    )


def result(*numbers: int, final: bool = False) -> InferResult:
    outputs = tuple(Tensor("y", "INT8", (1,), bytes([number])) for number in numbers)
    return InferResult("m", "1", "", outputs, {}, final)


async def of(*results: InferResult | Exception) -> AsyncIterator[InferResult]:
    for each in results:
        if isinstance(each, Exception):
            raise each
        yield each


@pytest.mark.parametrize(
    ("results", "fits"),
    [
        ((result(1, final=True),), True),
        ((result(1), result(final=True)), True),
        ((result(1), result(2, final=True)), False),
        ((result(final=True),), False),
        ((), False),
    ],
)
def test_generate_gives_the_only_answer(results: tuple[InferResult, ...], fits: bool) -> None:
    if fits:
        assert asyncio.run(only_one(of(*results))) == result(1)._replace(final=results[0].final)
    else:
        with pytest.raises(BadRequest, match=ONE_RESPONSE):
            asyncio.run(only_one(of(*results)))


def error_text(error: BaseException) -> bytes:
    return json.dumps({"error": str(error)}).encode()


async def sent_of(results: AsyncIterator[InferResult]) -> list[Any]:
    events = Events(results, error_text)
    changed = asyncio.Event()
    await events.begin()
    events.on_change = changed.set
    found: list[Any] = []
    while True:
        changed.clear()
        while (part := events.next()) is not None:
            assert part.startswith(b"data: ")
            assert part.endswith(b"\n\n")
            found.append(json.loads(part[6:]).get("y", "error"))
        if events.ended:
            events.close()
            return found
        await changed.wait()


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ([result(1), result(2), result(final=True)], [1, 2]),
        ([result(final=True)], []),
        ([], []),
        ([result(1), PredictionFailed("no")], [1, "error"]),
        ([result(1), ValueError("no")], [1, "error"]),
        ([result(at) for at in range(99)], list(range(99))),
    ],
)
def test_each_answer_is_an_event(results: list[Any], expected: list[Any]) -> None:
    assert asyncio.run(sent_of(of(*results))) == expected


def test_what_fails_before_the_first_answer_is_no_event() -> None:
    with pytest.raises(PredictionFailed):
        asyncio.run(sent_of(of(PredictionFailed("no"))))


def test_a_client_that_reads_nothing_stops_the_model_and_one_that_leaves_ends_it() -> None:
    async def run() -> tuple[int, bool]:
        made, over = 0, asyncio.Event()

        async def endless() -> AsyncIterator[InferResult]:
            nonlocal made
            try:
                while True:
                    made += 1
                    yield result(1)
            finally:
                over.set()

        events = Events(endless(), error_text)
        await events.begin()
        for _ in range(9):
            await asyncio.sleep(0)
        before = made
        events.close()
        await asyncio.wait_for(over.wait(), 5)
        return before, events.next() is None

    assert asyncio.run(run()) == (WAITING_MAX, True)

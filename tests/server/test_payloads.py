"""Requests into slab rows and out again, and refusals that name the input, what was expected and what came."""

import math
import os
import tracemalloc
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.errors import BadRequest
from ringserve.protocol.payload import Part
from ringserve.protocol.request import FormPart, InferRequest
from ringserve.protocol.tensor import ITEM_BYTES, Signature, TensorSpec
from ringserve.server.payloads import BytesEncoder, BytesPayload, TypedEncoder, TypedPayload, read_requests
from ringserve.shm.lane import Lane, create_lane
from ringserve.shm.layout import (
    ROW_CANCELLED,
    ROW_DEADLINE_NS,
    ROW_FLAGS,
    ROW_ID,
    ROW_PARCEL_BYTES,
    LaneShape,
    Tensor,
)
from ringserve.shm.segment import Segment
from ringserve.shm.spool import Spool

FIXED_DTYPES = sorted(ITEM_BYTES.keys() - {"bfloat16"})
ROWS = 4
REGION = 1 << 16


def lane_of(signature: Signature, region: int = REGION) -> Lane:
    tensors = (Tensor(spec.name, spec.dtype, spec.shape, spec.row_bytes) for spec in signature.inputs)
    shape = LaneShape(1, ROWS, tuple(tensors), (), region, 64)
    segment = create_lane(shape)
    lane = Lane.attach(os.dup(segment.fd), shape)
    segment.close()
    return lane


def no_parcel() -> Segment:
    raise AssertionError("no parcel was announced")


texts = st.text(max_size=12)
form_parts = st.builds(FormPart, texts, texts, st.binary(max_size=100))
requests = st.builds(
    InferRequest,
    request_id=texts,
    content_type=texts,
    headers=st.dictionaries(texts, texts, max_size=4),
    body=st.binary(max_size=300),
    parts=st.none() | st.lists(form_parts, max_size=4),
    placed=st.none(),
    tensors=st.none(),
    query=st.lists(form_parts, max_size=3),
)


def expected_parts(request: InferRequest) -> list[tuple[str, str, bytes]]:
    """Of the query and the body, or the form, which wins where both have a name."""
    own = [FormPart("body", request.content_type, bytes(request.body))] if request.parts is None else request.parts
    by_name = {part.name: part for part in (*request.query, *own)}
    return [(part.name, part.content_type, part.data) for part in by_name.values()]


@given(st.lists(requests, min_size=1, max_size=ROWS), st.lists(st.booleans(), min_size=ROWS, max_size=ROWS), st.data())
def test_any_requests_come_out_of_a_slab_as_they_went_in(
    sent: list[InferRequest], by_parcel: list[bool], data: st.DataObject
) -> None:
    """Read as one batch or as two, the second beginning in the middle of the slab."""
    lane = lane_of(Signature())
    slab, used, parcels = lane.slabs[0], 0, []
    for row, request in enumerate(sent):
        payload = BytesEncoder().encode(request)
        if by_parcel[row]:
            parcel = payload.to_parcel()
            assert isinstance(parcel, Segment)
            parcels.append(parcel)
        payload.write(slab, row, used, row + 10, 1000 + row)
        used += 0 if by_parcel[row] else payload.slab_bytes()
    cut = data.draw(st.integers(0, len(sent)))
    receive_parcel = iter(parcels).__next__
    received, opened = read_requests(slab, 0, cut, receive_parcel)
    later, opened_later = read_requests(slab, cut, len(sent) - cut, receive_parcel)
    received += later
    assert opened + opened_later == parcels
    assert slab.table[: len(sent), ROW_ID].tolist() == [row + 10 for row in range(len(sent))]
    assert slab.table[: len(sent), ROW_DEADLINE_NS].tolist() == [row + 1000 for row in range(len(sent))]
    for request, found in zip(sent, received, strict=True):
        assert (found.request_id, found.headers) == (request.request_id, request.headers)
        assert [(part.name, part.content_type, bytes(part.data)) for part in found.parts] == expected_parts(request)
        assert all(part.data.readonly for part in found.parts)
    del received, later, found
    for each in parcels:
        each.close()
    lane.close()


def written_in_pieces(places: list[memoryview], body: bytes) -> None:
    at = 0
    for place in places:
        place[:] = body[at : at + len(place)]
        at += len(place)
    assert at == len(body)


@given(requests.filter(lambda request: request.parts is None))
def test_a_row_that_is_opened_for_a_body_to_come_reads_as_if_it_had_been_there(request: InferRequest) -> None:
    lane = lane_of(Signature())
    payload = BytesEncoder().expect(request._replace(body=b""), len(request.body))
    assert payload.slab_bytes() == BytesEncoder().encode(request).slab_bytes()
    written_in_pieces(payload.open(lane.slabs[0], 2, 64, 7, 0), bytes(request.body))
    (found,), _ = read_requests(lane.slabs[0], 2, 1, no_parcel)
    assert [(part.name, part.content_type, bytes(part.data)) for part in found.parts] == expected_parts(request)
    assert (found.request_id, found.headers) == (request.request_id, request.headers)
    del found
    lane.close()


@given(requests.filter(lambda request: request.parts is None))
def test_a_spooled_body_reads_as_if_it_had_been_in_the_slab(request: InferRequest) -> None:
    lane = lane_of(Signature())
    spool = Spool(None)
    spool.write(request.body)
    payload = BytesEncoder().encode_spooled(request._replace(body=b""), spool)
    assert payload.slab_bytes() > len(lane.slabs[0].bytes_in)
    assert payload.to_parcel() is spool
    assert payload.to_parcel() is spool, "asked again where the first slab had no room"
    payload.write(lane.slabs[0], 0, 0, 7, 0)
    parcel = Segment.attach(os.dup(spool.fd))
    (found,), _ = read_requests(lane.slabs[0], 0, 1, lambda: parcel)
    assert [(part.name, part.content_type, bytes(part.data)) for part in found.parts] == expected_parts(request)
    del found
    parcel.close()
    spool.close()
    lane.close()


def test_a_cancelled_row_reads_as_an_empty_request_whatever_lies_there() -> None:
    lane = lane_of(Signature())
    slab = lane.slabs[0]
    slab.table[:, :] = 2**40  # nothing here can be read as a request
    slab.table[:, ROW_PARCEL_BYTES] = 0
    slab.table[:, ROW_FLAGS] = ROW_CANCELLED
    BytesEncoder().encode(InferRequest("a", "", {}, b"body")).write(slab, 1, 0, 1, 0)
    found, _ = read_requests(slab, 0, 3, no_parcel)
    assert [request.request_id for request in found] == ["", "a", ""]
    assert [len(request.parts) for request in found] == [0, 1, 0]
    found.clear()
    lane.close()


@given(st.lists(form_parts, min_size=1, max_size=3))
def test_what_a_query_brings_lies_behind_a_spooled_form(query: list[FormPart]) -> None:
    lane, spool = lane_of(Signature()), Spool(None)
    spool.write(b"first-second")
    placed = (Part("a", "", 0, 5), Part("b", "image/png", 6, 6))
    request = InferRequest("", "", {}, b"", placed=placed, query=query)
    payload = BytesEncoder().encode_spooled(request, spool)
    payload.to_parcel()
    payload.write(lane.slabs[0], 0, 0, 7, 0)
    parcel = Segment.attach(os.dup(spool.fd))
    (found,), _ = read_requests(lane.slabs[0], 0, 1, lambda: parcel)
    expected = {part.name: part.data for part in query} | {"a": b"first", "b": b"second"}
    assert {part.name: bytes(part.data) for part in found.parts} == expected
    del found
    parcel.close()
    spool.close()
    lane.close()


@pytest.mark.parametrize("how", ["encode", "expect"])
def test_a_model_that_declares_its_inputs_explains_nothing_and_takes_no_query(how: str) -> None:
    encoder = TypedEncoder(spec_of("int8", 2))
    ask: Callable[[InferRequest], object] = encoder.encode if how == "encode" else lambda each: encoder.expect(each, 2)
    request = InferRequest("", "", {}, b"ab", query=(FormPart("model_name", "", b"m"),))
    assert isinstance(ask(request), TypedPayload)
    with pytest.raises(BadRequest, match=r"^Explanation: expected a model with a handler, got one that declares"):
        ask(request._replace(headers={"explain": "True"}))


@given(st.integers(0, 5000), st.integers(0, 5000))
def test_a_body_starts_a_cache_line_and_the_next_row_too(head_bytes: int, body_bytes: int) -> None:
    payload = BytesPayload(b"h" * head_bytes, (b"b" * body_bytes,), body_bytes)
    assert payload.slab_bytes() % 64 == 0
    assert head_bytes + body_bytes <= payload.slab_bytes() < head_bytes + body_bytes + 2 * 64


@st.composite
def typed_rows(draw: st.DrawFn) -> tuple[Signature, list[list[np.ndarray]]]:
    """A signature, and for each row one array per input."""
    specs = []
    for number in range(draw(st.integers(1, 3))):
        shape = tuple(draw(st.lists(st.integers(1, 4), max_size=3)))
        specs.append(TensorSpec(f"input-{number}", draw(st.sampled_from(FIXED_DTYPES)), shape))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = [
        [np.asarray(random.integers(0, 2, spec.shape) * random.integers(0, 100)).astype(spec.dtype) for spec in specs]
        for _ in range(draw(st.integers(1, ROWS)))
    ]
    return Signature(tuple(specs)), rows


@given(typed_rows(), st.sampled_from(["raw", "json", "parts", "json parts"]))
def test_typed_rows_of_any_type_and_shape_are_arrays_of_the_slab(
    case: tuple[Signature, list[list[np.ndarray]]], form: str
) -> None:
    """Raw bytes, JSON by name and forms mean the same."""
    signature, rows = case
    lane = lane_of(signature, 0)
    encoder = TypedEncoder(signature)
    for row, arrays in enumerate(rows):
        names = [spec.name for spec in signature.inputs]
        content_type = "application/json" if "json" in form else ""
        as_bytes = [orjson.dumps(array.tolist()) if "json" in form else array.tobytes() for array in arrays]
        if "parts" in form:
            parts = [FormPart(name, content_type, data) for name, data in zip(names, as_bytes, strict=True)]
            request = InferRequest("", "multipart/form-data", {}, b"", parts[::-1])
        elif form == "json":
            body = orjson.dumps(dict(zip(names, (array.tolist() for array in arrays), strict=True)))
            request = InferRequest("", "application/json; charset=utf-8", {}, body)
        else:
            request = InferRequest("", "", {}, b"".join(as_bytes))
        payload = encoder.encode(request)
        assert payload.slab_bytes() == 0
        payload.write(lane.slabs[0], row, 0, row + 1, 0)
    for number in range(len(signature.inputs)):
        expected = np.stack([arrays[number] for arrays in rows])
        assert np.array_equal(lane.slabs[0].inputs[number][: len(rows)], expected)
    lane.close()


@given(typed_rows())
def test_typed_rows_whose_bodies_come_in_place_are_the_same_arrays(
    case: tuple[Signature, list[list[np.ndarray]]],
) -> None:
    """One place for each input, in declared order."""
    signature, rows = case
    lane = lane_of(signature, 0)
    encoder = TypedEncoder(signature)
    request = InferRequest("", "application/octet-stream", {}, b"")
    for row, arrays in enumerate(rows):
        body = b"".join(array.tobytes() for array in arrays)
        payload = encoder.expect(request, len(body))
        assert payload is not None
        written_in_pieces(payload.open(lane.slabs[0], row, 0, row + 1, 0), body)
        with pytest.raises(BadRequest, match=f"^Body: expected {len(body)} bytes .*, got {len(body) + 1} bytes"):
            encoder.expect(request, len(body) + 1)
    for number in range(len(signature.inputs)):
        expected = np.stack([arrays[number] for arrays in rows])
        assert np.array_equal(lane.slabs[0].inputs[number][: len(rows)], expected)
    lane.close()


def test_json_for_arrays_is_read_before_it_is_a_row() -> None:
    request = InferRequest("", "application/json; charset=utf-8", {}, b"")
    assert TypedEncoder(spec_of("int8", 1)).expect(request, 5) is None


def test_a_typed_body_that_was_spooled_is_a_row_and_its_spool_is_closed() -> None:
    spool = Spool(None)
    spool.write(b"[1, 2]")
    encoder = TypedEncoder(spec_of("int8", 2))
    payload = encoder.encode_spooled(InferRequest("", "application/json", {}, b""), spool)
    assert isinstance(payload, TypedPayload)
    assert [bytes(buffer) for buffer in payload.buffers] == [b"\x01\x02"]
    assert spool.fd == -1


def spec_of(dtype: str, *shape: int) -> Signature:
    return Signature((TensorSpec("x", dtype, shape),))


def json_row(signature: Signature, text: bytes) -> Any:
    payload = TypedEncoder(signature).encode(InferRequest("", "application/json", {}, text))
    spec = signature.inputs[0]
    return np.frombuffer(payload.buffers[0], spec.dtype).reshape(spec.shape).tolist()


@pytest.mark.parametrize(
    ("signature", "text", "value"),
    [
        (spec_of("float32", 2), b"[1, 2.5]", [1.0, 2.5]),
        (spec_of("float32", 2, 2), b"[1, 2, 3, 4]", [[1.0, 2.0], [3.0, 4.0]]),
        (spec_of("float32", 2, 1), b"[[1], [2]]", [[1.0], [2.0]]),
        (spec_of("int64"), b"-9223372036854775808", -(2**63)),
        (spec_of("uint64"), b"18446744073709551615", 2**64 - 1),
        (spec_of("int8", 2), b"[-128, 127]", [-128, 127]),
        (spec_of("bool", 2), b"[true, false]", [True, False]),
        (spec_of("uint64", 2), b"[true, false]", [1, 0]),
        (spec_of("float16"), b"true", 1.0),
        (spec_of("float32", 1), b'{"x": [1]}', [1.0]),
        (spec_of("float16"), b"65504", 65504.0),
        (spec_of("float64"), b"1e308", 1e308),
    ],
)
def test_json_values_that_fit(signature: Signature, text: bytes, value: object) -> None:
    assert json_row(signature, text) == value


@pytest.mark.parametrize(
    ("signature", "text", "sentence"),
    [
        (spec_of("float32", 2), b"[1, 2, 3]", "Input x: expected shape [2], got [3]."),
        (spec_of("float32", 2, 2), b"[[1, 2, 3, 4]]", "Input x: expected shape [2, 2], got [1, 4]."),
        (spec_of("float32"), b"[[1]]", "Input x: expected shape [], got [1, 1]."),
        (spec_of("float32", 2), b"[[1], [1, 2]]", "Input x: expected x float32[2], got lists of unequal lengths."),
        (spec_of("int8", 2), b"[1, 128]", "Input x: expected int8 values, got 128."),
        (spec_of("uint8", 2), b"[-1, 1]", "Input x: expected uint8 values, got -1."),
        (spec_of("int64", 1), b"[9223372036854775808]", "Input x: expected int64 values, got 9223372036854775808."),
        (spec_of("int32", 2), b"[1, 1.5]", "Input x: expected int32 values, got 1.5."),
        (spec_of("float32", 1), b"[1e39]", "Input x: expected float32 values, got 1e+39."),
        (spec_of("float16", 2), b"[1, -70000]", "Input x: expected float16 values, got -70000."),
        (spec_of("bool", 2), b"[0, 1]", "Input x: expected bool values, got 0."),
        (spec_of("float32", 2), b'["a", "b"]', "Input x: expected float32 values, got a string."),
        (spec_of("float32", 2), b"[1, null]", "Input x: expected float32 values, got null."),
        (spec_of("float32", 2), b"[1, {}]", "Input x: expected float32 values, got an object."),
        (spec_of("float32", 1), b'{"y": [1]}', "Inputs: expected x, got y."),
        (spec_of("float32", 1), b"{}", "Inputs: expected x, got none."),
        (spec_of("float32", 1), b"[NaN]", "Body: expected JSON, got a document that does not parse"),
        (spec_of("float32", 1), b"", "Body: expected JSON, got a document that does not parse"),
    ],
)
def test_json_that_does_not_fit_is_refused_in_a_sentence(signature: Signature, text: bytes, sentence: str) -> None:
    with pytest.raises(BadRequest) as caught:
        json_row(signature, text)
    assert caught.value.message.startswith(sentence)


@pytest.mark.parametrize("around", [b"%b", b'{"x": %b}', b"[%b]"])
def test_texts_take_no_more_memory_than_they_have_characters(around: bytes) -> None:
    """An array of texts would have room for the longest in every place."""
    body = around % orjson.dumps([""] * 10_000 + ["x" * 10_000])
    tracemalloc.start()
    try:
        with pytest.raises(BadRequest, match=r"^Input x: expected float32 values, got a string\.$"):
            json_row(spec_of("float32", 10_001), body)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_quotes_in_the_name_of_an_input_are_no_texts() -> None:
    spec = Signature((TensorSpec('a"b', "int8", (1,)),))
    assert json_row(spec, b'{"a\\"b": [3]}') == [3]


TWO = Signature((TensorSpec("a", "uint8", (2,)), TensorSpec("b", "float32", ())))


@pytest.mark.parametrize(
    ("content_type", "body", "parts", "sentence"),
    [
        ("", b"12345", None, "Body: expected 6 bytes (a uint8[2], b float32[]), got 5 bytes."),
        (
            "application/json",
            b"[1]",
            None,
            "Body: expected a JSON object with the inputs a, b, got a list of a number.",
        ),
        ("application/json", b'"text"', None, "Body: expected a JSON object with the inputs a, b, got a string."),
        ("application/json", b'{"a": [1, 2]}', None, "Inputs: expected a, b, got a."),
        ("multipart/form-data", b"", {}, "Inputs: expected a, b, got none."),
        ("multipart/form-data", b"", {"a": b"12", "c": b""}, "Inputs: expected a, b, got a, c."),
        ("multipart/form-data", b"", {"a": b"1", "b": b"1234"}, "Input a: expected 2 bytes (a uint8[2]), got 1 bytes."),
    ],
)
def test_several_inputs_are_refused_by_name(
    content_type: str, body: bytes, parts: Mapping[str, bytes] | None, sentence: str
) -> None:
    listed = None if parts is None else [FormPart(name, "", data) for name, data in parts.items()]
    with pytest.raises(BadRequest) as caught:
        TypedEncoder(TWO).encode(InferRequest("", content_type, {}, body, listed))
    assert caught.value.message == sentence


def test_a_json_part_that_does_not_parse_is_refused_by_name() -> None:
    parts = [FormPart("a", "application/json", b"[1,"), FormPart("b", "", bytes(4))]
    with pytest.raises(BadRequest, match="Input a: expected JSON, got a part that does not parse"):
        TypedEncoder(TWO).encode(InferRequest("", "multipart/form-data", {}, b"", parts))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["x", "y"]), inner, max_size=2),
    max_leaves=8,
)


@given(st.sampled_from(FIXED_DTYPES), st.sampled_from([(), (1,), (2,), (2, 2)]), json_values)
def test_any_json_is_a_row_or_a_refusal(dtype: str, shape: tuple[int, ...], value: object) -> None:
    try:
        payload: TypedPayload = TypedEncoder(spec_of(dtype, *shape)).encode(
            InferRequest("", "application/json", {}, orjson.dumps(value))
        )
    except BadRequest as error:
        assert "expected" in error.message
        assert "got" in error.message
    else:
        assert len(payload.buffers[0]) == ITEM_BYTES[dtype] * math.prod(shape)


@pytest.mark.parametrize("depth", [1, 9, 500])
def test_lists_in_lists_in_lists_are_refused_in_a_short_sentence(depth: int) -> None:
    encoder = TypedEncoder(Signature((TensorSpec("x", "int8", (1,)), TensorSpec("y", "int8", (1,)))))
    body = b"[" * depth + b"]" * depth
    with pytest.raises(BadRequest, match=r"expected a JSON object with the inputs x, y, got") as refused:
        encoder.encode(InferRequest("id", "application/json", {}, body))
    assert len(refused.value.message) < 200

"""Frames say what they were told, and a broken one is never read as another."""

import contextlib
import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.datatypes import BYTES, DATATYPE_BYTES, DATATYPES, join_elements, split_elements
from ringserve.protocol.request import Scalar, Tensor, TensorReply
from ringserve.protocol.tensor_frame import (
    ALIGNMENT,
    PREFIX,
    CallHead,
    FrameBroken,
    FrameError,
    ReplyHead,
    TensorPlace,
    Whole,
    decode_call,
    encode_head,
    frame_bytes,
    parameters_of,
    place,
    read_prefix,
    read_reply,
    write_frame,
)

names = st.text(max_size=8)
parameters = st.dictionaries(
    names, st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(), max_size=4
)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    datatype = draw(st.sampled_from(DATATYPES))
    if datatype == BYTES:
        data = join_elements(
            draw(st.lists(st.binary(max_size=9), min_size=math.prod(shape), max_size=math.prod(shape)))
        )
    else:
        size = DATATYPE_BYTES[datatype] * math.prod(shape)
        data = draw(st.binary(min_size=size, max_size=size))
    return Tensor(draw(names), datatype, shape, data)


def framed(reply: TensorReply) -> bytearray:
    data = [each.data for each in reply.outputs]
    places, body_bytes = place([Whole(each.name, each.datatype, each.shape, len(each.data)) for each in reply.outputs])  # type: ignore[arg-type]
    head = encode_head(ReplyHead(places, dict(reply.parameters), reply.final))
    memory = bytearray(frame_bytes(head, body_bytes))
    write_frame(memoryview(memory), head, places, data, body_bytes)
    return memory


def as_read(reply: TensorReply) -> TensorReply:
    return reply._replace(outputs=tuple(each._replace(data=bytes(each.data)) for each in reply.outputs))  # type: ignore[arg-type]


replies = st.builds(TensorReply, st.lists(tensors(), max_size=4).map(tuple), parameters, st.booleans())


@given(replies)
def test_a_reply_is_read_as_it_was_written_and_aligned(reply: TensorReply) -> None:
    memory = framed(reply)
    found = read_reply(memoryview(memory))
    assert isinstance(found, TensorReply)
    assert as_read(found) == reply
    base = np.frombuffer(memory, np.uint8).ctypes.data
    for tensor in found.outputs:
        if len(tensor.data):  # type: ignore[arg-type]
            at = np.frombuffer(tensor.data, np.uint8).ctypes.data - base  # type: ignore[arg-type]
            assert at % ALIGNMENT == 0


@given(st.lists(replies, max_size=4))
def test_frames_one_after_the_other_are_told_apart(sent: list[TensorReply]) -> None:
    stream = b"".join(framed(reply) for reply in sent)
    found = []
    while stream:
        assert read_prefix(stream[: PREFIX.size - 1], 1 << 30) is None
        prefix = read_prefix(stream, 1 << 30)
        assert prefix is not None
        reply = read_reply(memoryview(stream[: prefix[1]]))
        assert isinstance(reply, TensorReply)
        found.append(as_read(reply))
        stream = stream[prefix[1] :]
    assert found == sent


@given(replies, st.data())
def test_a_spoiled_frame_is_refused_or_stays_within_its_bounds(reply: TensorReply, data: st.DataObject) -> None:
    memory = framed(reply)
    at = data.draw(st.integers(0, len(memory) - 1))
    memory[at] ^= data.draw(st.integers(1, 255))
    try:
        found = read_reply(memoryview(memory))
    except FrameBroken:
        return
    if isinstance(found, TensorReply):
        for tensor in found.outputs:
            assert all(size >= 0 for size in tensor.shape)
            if tensor.datatype != BYTES:
                assert len(tensor.data) == DATATYPE_BYTES[tensor.datatype] * math.prod(tensor.shape)  # type: ignore[arg-type]


@given(st.binary(max_size=200))
def test_any_bytes_are_a_reply_or_refused(data: bytes) -> None:
    for read in (read_reply, decode_call):
        with contextlib.suppress(FrameBroken):
            read(memoryview(data))


@pytest.mark.parametrize(
    "place",
    [
        TensorPlace("x", "FP32", (2,), 0, 4),
        TensorPlace("x", "FP32", (2,), 64, 8),
        TensorPlace("x", "FP32", (-2, -1), 0, 8),
        TensorPlace("x", "FP32", (2,), -8, 8),
        TensorPlace("x", "FP31", (2,), 0, 8),
        TensorPlace("x", "FP31", (0,), 0, 0),
        TensorPlace("x", "BYTES", (1,), 0, 9),
        TensorPlace("x", "UINT8", (2**62, 4), 0, 8),
    ],
    ids=str,
)
def test_a_tensor_outside_of_its_frame_is_refused(place: TensorPlace) -> None:
    head = encode_head(ReplyHead((place,)))
    memory = bytearray(frame_bytes(head, 8))
    write_frame(memoryview(memory), head, (), (), 8)
    with pytest.raises(FrameBroken, match="tensor 'x'"):
        read_reply(memoryview(memory))


@pytest.mark.parametrize("prefix", [(2**63, 0), (0, 2**63), (2**25, 0), (1, 100), (0, 0)])
def test_a_frame_that_announces_what_is_not_there_is_refused(prefix: tuple[int, int]) -> None:
    memory = struct.pack("<QQ", *prefix).ljust(80, b"\0")
    with pytest.raises(FrameBroken):
        read_reply(memoryview(memory))


def test_an_error_takes_the_place_of_a_reply() -> None:
    head = encode_head(ReplyHead((), error=FrameError(503, "prediction_failed", "no \udcff")))
    memory = bytearray(frame_bytes(head, 0))
    write_frame(memoryview(memory), head, (), (), 0)
    assert read_reply(memoryview(memory)) == FrameError(503, "prediction_failed", "no ÿ")


@given(st.lists(st.binary(max_size=9)))
def test_elements_of_bytes_come_back(elements: list[bytes]) -> None:
    assert list(split_elements(join_elements(elements))) == elements


@pytest.mark.parametrize("data", [b"\1", b"\1\0\0\0", b"\xff\xff\xff\xff1"])
def test_elements_that_are_cut_off_are_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="incomplete string"):
        split_elements(data)


@given(parameters, st.integers(0, 2**64 - 1) | st.text())
def test_a_call_says_its_parameters_and_its_sequence(said: dict[str, Scalar], sequence_id: int | str) -> None:
    head = CallHead("r", (TensorPlace("x", "INT8", (1,), 0, 1),), said, ("y",), 3, sequence_id, True, False, {"a": "b"})
    assert decode_call(encode_head(head)) == head
    assert type(decode_call(encode_head(head)).sequence_id) is type(sequence_id)


@pytest.mark.parametrize("value", [None, [1], b"x", {"a": 1}])
def test_a_parameter_is_a_scalar(value: object) -> None:
    with pytest.raises(TypeError, match="parameter 'p'"):
        parameters_of({"p": value})  # type: ignore[dict-item]

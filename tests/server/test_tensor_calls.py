"""The worker's side of tensors: what it makes of the rows of a slab, and which it puts together."""

import math
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.backends.contract import TensorCall, TensorResult
from ringserve.protocol.errors import PredictionFailed
from ringserve.protocol.request import InferRequest, TensorRequest
from ringserve.protocol.tensor import ANY, Signature, TensorSpec
from ringserve.protocol.tensor_frame import FrameError, read_reply
from ringserve.server.bfloat16 import from_bfloat16, to_bfloat16
from ringserve.server.tensor_calls import Framing, compatible, divided, error_reply, groups_of, joined, read_calls
from ringserve.server.tensor_payloads import frame_of
from ringserve.shm.lane import Lane, create_lane
from ringserve.shm.layout import ROW_BYTES, LaneShape
from ringserve.shm.segment import Segment
from ringserve.shm.shm_errors import RingCorrupt
from tests.server.tensor_rig import tensor

SPEC = TensorSpec("y", "float32", (ANY,))
FRAMED = Signature((SPEC,), (SPEC,))


def no_parcel() -> Segment:
    raise RingCorrupt("no parcel was sent")


def call_of(rows: int, columns: int, dtype: str = "float32", name: str = "x") -> TensorCall:
    return TensorCall("", {name: np.zeros((rows, columns), dtype)}, rows)


calls = st.builds(
    call_of, st.integers(1, 5), st.integers(1, 2), st.sampled_from(["float32", "int8"]), st.sampled_from("xz")
)


@given(st.lists(calls, max_size=12), st.integers(1, 6), st.booleans())
def test_groups_hold_every_row_once_and_what_fits_together(
    asked: list[TensorCall], items_max: int, ragged: bool
) -> None:
    signature = Signature((SPEC,), (SPEC,), ragged=ragged)
    groups = groups_of(range(len(asked)), asked, signature, items_max)
    assert sorted(row for group in groups for row in group) == list(range(len(asked)))
    for group in groups:
        assert group == sorted(group)
        items = sum(asked[row].rows for row in group)
        assert items <= items_max or len(group) == 1
        if not ragged:
            assert len({compatible(asked[row]) for row in group}) == 1


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5))
def test_what_was_joined_is_divided_again(rows: list[int]) -> None:
    asked = [TensorCall("", {"x": np.full((count, 3), at)}, count) for at, count in enumerate(rows)]
    results = divided(joined(asked), asked, has_rows=True)
    for call, result in zip(asked, results, strict=True):
        assert isinstance(result, TensorResult)
        assert (result.outputs["x"] == call.inputs["x"]).all()
        assert result.outputs["x"].shape == call.inputs["x"].shape


@given(st.data())
def test_a_spoiled_row_is_refused_or_read_within_its_bounds(data: st.DataObject) -> None:
    shape = LaneShape(1, 1, (), (), 4096, 64)
    segment = create_lane(shape)
    lane = Lane(segment, shape)
    slab = lane.slabs[0]
    try:
        inputs = (tensor("x", np.arange(6, dtype="float32").reshape(2, 3)), tensor("t", [[b"ab"], [b""]]))
        request = InferRequest("id", "", {}, b"", tensors=TensorRequest(inputs))
        payload = frame_of(request, TensorRequest(inputs))
        payload.write(slab, 0, 0, 1, 0)
        if data.draw(st.booleans()):
            at = data.draw(st.integers(0, payload.slab_bytes() - 1))
            slab.bytes_in[at] ^= data.draw(st.integers(1, 255))
        else:
            word = data.draw(st.integers(3, 6))
            struct.pack_into("<Q", slab.memory, word * 8, data.draw(st.integers(0, 2**64 - 1)))
            assert word * 8 < ROW_BYTES
        try:
            (call,), refused, parcels = read_calls(slab, 0, 1, True, no_parcel)
        except RingCorrupt:
            return
        assert parcels == []
        if refused:
            assert call is None
            return
        assert call is not None
        for array in call.inputs.values():
            assert array.nbytes <= 4096
            assert math.prod(array.shape) == array.size
        del call
    finally:
        del slab
        lane.close()


def test_an_error_is_a_frame_of_its_own() -> None:
    found = read_reply(memoryview(error_reply(PredictionFailed("m" * 20_000)).to_bytes()))
    assert isinstance(found, FrameError)
    assert (found.status, found.code, len(found.message)) == (503, "prediction_failed", 8192)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 0), "float32"),
        np.zeros((2, 3), ">f4") + 1,
        np.asfortranarray(np.arange(6, dtype="float32").reshape(2, 3)),
        np.arange(12, dtype="float32").reshape(2, 6)[:, ::2],
    ],
    ids=["empty", "big-endian", "column-major", "strided"],
)
def test_arrays_of_any_layout_are_written_row_major(array: np.ndarray) -> None:
    reply = read_reply(memoryview(Framing(FRAMED).reply(TensorCall("", {}, 2), {"y": array}, None).to_bytes()))
    assert not isinstance(reply, FrameError)
    (output,) = reply.outputs
    assert (output.datatype, output.shape) == ("FP32", array.shape)
    assert np.frombuffer(output.data, "<f4").reshape(output.shape).tolist() == array.tolist()  # type: ignore[arg-type]


@given(st.floats(width=32))
def test_bfloat16_is_the_nearest_and_its_own_image(number: float) -> None:
    (bits,) = to_bfloat16([number])
    (back,) = from_bfloat16(np.array([bits]))
    if math.isnan(number):
        assert math.isnan(back)
        return
    assert to_bfloat16([back])[0] == bits
    if math.isfinite(back) and abs(number) > 2.0**-126:
        assert abs(float(back) - number) <= abs(number) * 2.0**-8

"""Whatever clients and workers do in whatever order: every request in tensors has one outcome, which is its own, and nothing is left."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.backends.contract import Batch, TensorResult
from ringserve.protocol.errors import BadRequest, PredictionFailed, QueueFull, WorkerLost
from ringserve.protocol.request import Answer, InferRequest, Tensor, TensorRequest
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.inflight import Pending
from ringserve.server.landing import Landing, copy_into
from tests.server.tensor_rig import Served, served, tensor, values

FIXED = (TensorSpec("x", "int32", (2,)),), (TensorSpec("y", "int32", (2,)),)
TYPED, RAGGED = Signature(*FIXED), Signature(*FIXED, ragged=True)
FRAMED = Signature((TensorSpec("x", "int32", (-1,)),), (TensorSpec("y", "int32", (-1,)),))
RAISES = 13

steps = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(1, 7), st.sampled_from(["here", "far", "gone", "raising"])),
        st.tuples(st.just("land"), st.integers(1, 2), st.sampled_from(["part", "whole", "broken off"])),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("work")),
        st.tuples(st.just("settle")),
        st.tuples(st.just("die"), st.booleans()),
    ),
    max_size=30,
)


class Region:
    """A client's memory."""

    def __init__(self, data: bytes, *, gone: bool) -> None:
        self.data, self.gone, self.nbytes = data, gone, len(data)

    def read_into(self, memory: memoryview) -> None:
        if self.gone:
            raise BadRequest("gone")
        memory[:] = self.data

    def part(self, offset: int, nbytes: int) -> "Region":
        return Region(self.data[offset : offset + nbytes], gone=self.gone)


def run(batch: Batch) -> None:
    for array in batch.inputs.values() if batch.inputs else [call.inputs["x"] for call in batch.calls]:
        if (array == RAISES).any():
            raise ValueError("thirteen")
    if not batch.calls:
        batch.outputs["y"][:] = batch.inputs["x"] + 1
    else:
        batch.results += [TensorResult({"y": call.inputs["x"] + 1}) for call in batch.calls]


class Clients:
    """What they have asked for, and what must come of it."""

    def __init__(self, version: Served) -> None:
        self.version = version
        self.asked: list[tuple[Pending, np.ndarray, str]] = []
        self.landings: list[tuple[Landing, np.ndarray]] = []
        self.workers_died = False
        self._number = 100

    def _array(self, rows: int, kind: str) -> np.ndarray:
        self._number += 2 * rows
        array = np.arange(self._number, self._number + 2 * rows, dtype="int32").reshape(rows, 2)
        if kind == "raising":
            array[-1, -1] = RAISES
        return array

    def send(self, rows: int, kind: str) -> None:
        array = self._array(rows, kind)
        sent = tensor("x", array)
        if kind in ("far", "gone"):
            sent = sent._replace(data=Region(array.tobytes(), gone=kind == "gone"))
        try:
            self.asked.append((self.version.send(sent), array, kind))
        except QueueFull:
            assert self.version.waiting + rows > 20

    def land(self, rows: int, kind: str) -> None:
        array = self._array(rows, "here")
        tensors = TensorRequest((Tensor("x", "INT32", array.shape, b""),))
        try:
            landing = self.version.dispatcher.land_tensors(
                InferRequest("", "", {}, b"", tensors=tensors), [array.nbytes]
            )
        except QueueFull:
            return
        if landing is None:
            return
        copy_into(landing, array.tobytes()[:5])
        if kind == "part":
            self.landings.append((landing, array))
        elif kind == "broken off":
            landing.abandon()
        else:
            self._commit(landing, array)

    def _commit(self, landing: Landing, array: np.ndarray) -> None:
        copy_into(landing, array.tobytes()[5:])
        try:
            self.asked.append((landing.commit(), array, "here"))
        except QueueFull:
            assert self.version.waiting == 20

    def finish(self) -> None:
        """What is arriving arrives."""
        for landing, array in self.landings:
            self._commit(landing, array)
        self.landings.clear()

    def cancel(self, number: int) -> None:
        if number < len(self.asked):
            self.asked[number][0].cancel()

    def check(self) -> None:
        for pending, array, kind in self.asked:
            assert pending.done()
            if pending.cancelled():
                continue
            error = pending.exception()
            if error is None:
                assert kind in ("here", "far")
                answer = pending.result()
                assert values(answer) == {"y": (array + 1).tolist()}
                close(answer)
            else:
                expected = {"gone": BadRequest, "raising": PredictionFailed}.get(kind, WorkerLost)
                assert isinstance(error, expected) or (isinstance(error, WorkerLost) and self.workers_died)


def close(answer: Answer) -> None:
    if answer.source is not None:
        answer.source.close()


async def played(signature: Signature, script: Sequence[tuple[object, ...]]) -> None:
    async with served(signature, run, rows=4, slabs=3, capacity=20, region=4096) as version:
        clients = Clients(version)
        for word, *told in script:
            match word:
                case "work":
                    await version.answered()
                case "settle":
                    await version.settle()
                case "die":
                    clients.workers_died = True
                    version.replace_worker(began=bool(told[0]))
                case _:
                    getattr(clients, str(word))(*told)
            held = sum(1 for pending, *_ in clients.asked if not pending.done())
            assert version.waiting <= 20
            assert held or version.waiting == 0
        await version.answered()
        clients.finish()
        await version.answered()
        clients.check()


@pytest.mark.parametrize("signature", [TYPED, FRAMED, RAGGED], ids=["typed", "framed", "ragged"])
@given(script=steps)
def test_every_request_has_its_own_outcome_and_nothing_is_left(
    signature: Signature, script: list[tuple[object, ...]]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ringserve.server.intake.LANDED_BYTES_MIN", 1)
        asyncio.run(played(signature, script))

"""Bodies of requests in tensors that arrive where the model will read them."""

from typing import Any

import numpy as np
import pytest

from ringserve.backends.contract import Batch, TensorResult
from ringserve.protocol.errors import BadRequest, NoWorker
from ringserve.protocol.request import InferRequest, Tensor, TensorRequest
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.batching import BatchPolicy
from ringserve.server.dispatch import Dispatcher
from ringserve.server.landing import copy_into
from ringserve.server.limits import Limits
from tests.server.tensor_rig import (
    ANY_Y,
    FRAMED,
    TYPED,
    double,
    double_typed,
    far,
    k_of,
    play,
    served,
    tensor,
    values,
    x_of,
)


def coming(of: Tensor) -> Tensor:
    return of._replace(data=b"")


def size_of(of: Tensor) -> int:
    return len(of.data)  # type: ignore[arg-type]


class TestLanding:
    """Bodies that arrive where the model will read them."""

    @pytest.fixture(autouse=True)
    def _short_bodies_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("ringserve.server.intake.LANDED_BYTES_MIN", 1)

    @staticmethod
    def land(version: Any, *inputs: Tensor, lengths: Any) -> Any:
        tensors = TensorRequest(inputs)
        return version.dispatcher.land_tensors(InferRequest("id", "", {}, b"", tensors=tensors), lengths)

    def test_the_inputs_of_a_typed_request_arrive_in_its_order(self) -> None:
        async def scenario() -> None:
            async with served(TYPED, double_typed) as version:
                k, x = k_of(1), x_of(1)
                landing = self.land(version, coming(k), coming(x), lengths=[4, 8])
                copy_into(landing, bytes(k.data) + bytes(x.data))  # type: ignore[arg-type]
                (answer,) = await version.answered(landing.commit())
                assert values(answer) == {"y": [[0, 2]], "n": [1]}

        play(scenario)

    @pytest.mark.parametrize("ragged", [False, True], ids=["typed", "framed"])
    def test_what_is_here_is_copied_and_what_comes_is_received(self, ragged: bool) -> None:
        signature = Signature(TYPED.inputs, TYPED.outputs, ragged=ragged)

        def run(batch: Batch) -> None:
            if signature.typed:
                double_typed(batch)
            else:
                batch.results += [
                    TensorResult({"y": call.inputs["x"] * 2, "n": call.inputs["k"] + 1}) for call in batch.calls
                ]

        async def scenario() -> None:
            async with served(signature, run) as version:
                x, k = x_of(1, first=5), k_of(1)
                landing = self.land(version, coming(x), far(k), lengths=[8, -1])
                copy_into(landing, bytes(x.data)[:3])  # type: ignore[arg-type]
                fine = version.send(x_of(1), k_of(1))
                await version.answered(fine)
                copy_into(landing, bytes(x.data)[3:])  # type: ignore[arg-type]
                (answer,) = await version.answered(landing.commit())
                assert values(answer) == {"y": [[10, 12]], "n": [1]}
                assert values(fine.result())["y"] == [[0, 2]]

        play(scenario)

    def test_a_framed_request_of_any_size_arrives_in_its_row(self) -> None:
        async def scenario() -> None:
            async with served(FRAMED, double) as version:
                sent = x_of(3, 7)
                landing = self.land(version, coming(sent), lengths=[size_of(sent)])
                assert landing is not None
                copy_into(landing, sent.data)  # type: ignore[arg-type]
                (answer,) = await version.answered(landing.commit())
                assert values(answer) == {"y": (np.arange(21).reshape(3, 7) * 2).tolist()}

        play(scenario)

    def test_what_is_broken_off_leaves_its_row(self) -> None:
        async def scenario() -> None:
            async with served(FRAMED, double) as version:
                landing = self.land(version, coming(x_of(1)), lengths=[8])
                copy_into(landing, b"123")
                assert version.waiting == 0
                landing.abandon()

        play(scenario)

    def test_memory_that_is_gone_is_told_at_once(self) -> None:
        async def scenario() -> None:
            async with served(TYPED, double_typed) as version:
                with pytest.raises(BadRequest, match="gone"):
                    self.land(version, coming(x_of(1)), far(k_of(1), gone=True), lengths=[8, -1])
                (answer,) = await version.answered(version.send(x_of(1), k_of(1)))
                assert values(answer)["n"] == [1]

        play(scenario)

    def test_what_has_no_row_of_its_own_is_received_elsewhere(self) -> None:
        text = Signature((TensorSpec("x", "bytes", (1,)),), (ANY_Y,))

        async def scenario() -> None:
            async with served(TYPED, double_typed) as version:
                assert self.land(version, coming(x_of(2)), coming(k_of(2)), lengths=[16, 8]) is None
            async with served(FRAMED, double, region=4096) as version:
                assert self.land(version, coming(x_of(1, 2000)), lengths=[8000]) is None
            async with served(Signature(), double) as version:
                assert self.land(version, coming(x_of(1)), lengths=[8]) is None
            async with served(text, double) as version:
                assert self.land(version, tensor("x", [[b"a"]])._replace(data=b""), lengths=[5]) is None

        play(scenario)

    @pytest.mark.parametrize(("signature", "lengths"), [(TYPED, [8, 3]), (FRAMED, [9])], ids=["typed", "framed"])
    def test_bytes_that_are_not_the_tensors_need_not_come(self, signature: Signature, lengths: Any) -> None:
        async def scenario() -> None:
            async with served(signature, double) as version:
                inputs = [coming(x_of(1)), coming(k_of(1))][: len(lengths)]
                with pytest.raises(BadRequest, match="bytes"):
                    self.land(version, *inputs, lengths=lengths)

        play(scenario)


def test_before_a_worker_has_said_what_it_takes_there_is_nobody_for_tensors() -> None:
    async def scenario() -> None:
        dispatcher = Dispatcher("m", BatchPolicy(4), Limits(10))
        dispatcher.set_serviceable(True)
        assert not dispatcher.opened
        with pytest.raises(NoWorker):
            dispatcher.submit(InferRequest("", "", {}, b"", tensors=TensorRequest((x_of(1),))))
        assert dispatcher.waiting == 0

    play(scenario)

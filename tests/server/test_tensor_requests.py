"""Requests in tensors, from the dispatcher to the model and back, for every kind of declaration."""

import sys
from typing import Any

import numpy as np
import pytest

from ringserve.backends.contract import Batch, Reply, TensorResult
from ringserve.protocol.errors import BadRequest, Internal, PredictionFailed, QueueFull
from ringserve.protocol.request import Answer
from ringserve.protocol.tensor import ANY, Signature, TensorSpec
from ringserve.server.replies import write_replies
from ringserve.server.tensor_rows import JoinedPending
from tests.server.tensor_rig import (
    ANY_X,
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


class TestTyped:
    @pytest.mark.parametrize("rows", [1, 2, 4])
    def test_as_many_rows_are_taken_as_the_batch_dimension_says(self, rows: int) -> None:
        async def scenario() -> None:
            async with served(TYPED, double_typed) as version:
                pending = version.send(k_of(rows), x_of(rows))
                assert isinstance(pending, JoinedPending) is (rows > 1)
                assert version.waiting in (0, rows)
                (answer,) = await version.answered(pending)
                expected = {
                    "y": (np.arange(2 * rows).reshape(rows, 2) * 2).tolist(),
                    "n": list(range(1, rows + 1)),
                }
                assert values(answer) == expected
                assert [batch.rows for batch in version.model.batches] == [rows]

        play(scenario)

    def test_rows_of_several_requests_are_one_batch(self) -> None:
        async def scenario() -> None:
            async with served(TYPED, double_typed, rows=8) as version:
                pendings = [version.send(x_of(rows, first=rows), k_of(rows)) for rows in (3, 1, 4)]
                answers = await version.answered(*pendings)
                assert [batch.rows for batch in version.model.batches] == [8]
                assert [values(answer)["n"] for answer in answers] == [[1, 2, 3], [1], [1, 2, 3, 4]]
                assert values(answers[1])["y"] == [[2, 4]]

        play(scenario)

    def test_a_request_whose_rows_have_no_room_together_waits_for_the_next_slab(self) -> None:
        async def scenario() -> None:
            async with served(TYPED, double_typed, attached=False) as version:
                pendings = [version.send(x_of(3), k_of(3)) for _ in range(3)]
                version.attach()
                await version.answered(*pendings)
                assert [batch.rows for batch in version.model.batches] == [3, 3, 3]

        play(scenario)

    def test_all_rows_are_let_in_or_none(self) -> None:
        async def scenario() -> None:
            async with served(TYPED, double_typed, capacity=5, attached=False) as version:
                first = version.send(x_of(3), k_of(3))
                with pytest.raises(QueueFull):
                    version.send(x_of(3), k_of(3))
                assert version.waiting == 3
                second = version.send(x_of(2), k_of(2))
                version.attach()
                answers = await version.answered(first, second)
                assert [len(values(answer)["n"]) for answer in answers] == [3, 2]

        play(scenario)

    def test_more_rows_than_slabs_have_leave_in_several_batches(self) -> None:
        async def scenario() -> None:
            async with served(TYPED, double_typed, slabs=2, capacity=40) as version:
                (answer,) = await version.answered(version.send(x_of(19), k_of(19)))
                assert values(answer)["n"] == list(range(1, 20))
                assert sum(batch.rows for batch in version.model.batches) == 19

        play(scenario)

    def test_who_leaves_takes_all_rows_along(self) -> None:
        async def scenario() -> None:
            async with served(TYPED, double_typed, attached=False) as version:
                leaving, staying = version.send(x_of(6), k_of(6)), version.send(x_of(2), k_of(2))
                assert leaving.cancel()
                assert version.waiting == 2
                version.attach()
                (answer,) = await version.answered(staying)
                assert values(answer)["n"] == [1, 2]
                assert sum(batch.rows for batch in version.model.batches) == 2

        play(scenario)

    def test_who_leaves_while_rows_are_executed_is_not_answered(self) -> None:
        async def scenario() -> None:
            async with served(TYPED, double_typed) as version:
                pending = version.send(x_of(3), k_of(3))
                await version.settle()
                assert pending.cancel()
                await version.answered()
                assert version.model.batches == []

        play(scenario)

    def test_the_first_row_that_fails_fails_the_request_and_no_other(self) -> None:
        def run(batch: Batch) -> None:
            if 1 in batch.inputs["k"]:
                raise ValueError("one")
            double_typed(batch)

        async def scenario() -> None:
            async with served(TYPED, run) as version:
                failing = version.send(x_of(3), k_of(3))
                fine = version.send(x_of(1), k_of(1))
                found = await version.answered(failing, fine)
                assert isinstance(found[0], PredictionFailed)
                assert values(found[1])["n"] == [1]

        play(scenario)

    def test_only_the_outputs_that_are_wanted_are_in_the_answer(self) -> None:
        async def scenario() -> None:
            async with served(TYPED, double_typed) as version:
                pendings = [version.send(x_of(rows), k_of(rows), outputs=("n",)) for rows in (1, 2)]
                answers = await version.answered(*pendings)
                assert [list(values(answer)) for answer in answers] == [["n"], ["n"]]

        play(scenario)

    def test_a_long_answer_is_a_view_of_the_slab_until_it_is_closed(self) -> None:
        wide = (1 << 17,)
        signature = Signature((TensorSpec("x", "uint8", wide),), (TensorSpec("y", "uint8", wide),))

        def run(batch: Batch) -> None:
            batch.outputs["y"][:] = 255 - batch.inputs["x"]

        async def scenario() -> None:
            async with served(signature, run) as version:
                data = np.arange(1 << 17, dtype="uint8")[None]
                (answer,) = await version.answered(version.send(tensor("x", data)))
                assert isinstance(answer, Answer)
                assert answer.tensors is not None and answer.source is not None
                assert isinstance(answer.tensors.outputs[0].data, memoryview)
                assert version.free == (3, 4)
                assert values(answer) == {"y": (255 - data).tolist()}
                answer.source.close()

        play(scenario)

    def test_what_lies_in_a_clients_memory_is_copied_to_the_rows(self) -> None:
        async def scenario() -> None:
            async with served(TYPED, double_typed) as version:
                pendings = [version.send(far(x_of(rows)), k_of(rows)) for rows in (1, 3)]
                answers = await version.answered(*pendings)
                assert [values(answer)["y"][-1] for answer in answers] == [[0, 2], [8, 10]]

        play(scenario)

    @pytest.mark.parametrize("rows", [1, 3])
    @pytest.mark.parametrize("before", [0, 4, 20])
    def test_memory_that_is_gone_fails_its_request_only(self, rows: int, before: int) -> None:
        """Also in the backlog, where it is read when there is a slab."""

        async def scenario() -> None:
            async with served(TYPED, double_typed, slabs=2, attached=False) as version:
                first = [version.send(x_of(1), k_of(1)) for _ in range(before)]
                failing = version.send(far(x_of(rows), gone=True), k_of(rows))
                last = version.send(x_of(1), k_of(1))
                version.attach()
                found = await version.answered(*first, failing, last)
                assert isinstance(found[before], BadRequest)
                assert all(values(answer)["n"] == [1] for answer in [*found[:before], found[-1]])

        play(scenario)

    @pytest.mark.parametrize(
        ("inputs", "text"),
        [
            ((x_of(2),), "expected x, k, got x"),
            ((x_of(2), k_of(3)), "one batch dimension"),
            ((x_of(0), k_of(0)), "one batch dimension"),
            ((), "one batch dimension"),
            ((x_of(2, 3), k_of(2)), "Input x: expected 16 bytes"),
            ((x_of(2), k_of(2), tensor("z", np.zeros((2, 1)))), "expected x, k, got x, k, z"),
        ],
        ids=lambda each: each if isinstance(each, str) else "",
    )
    def test_what_is_not_declared_is_refused_and_takes_no_place(self, inputs: Any, text: str) -> None:
        async def scenario() -> None:
            async with served(TYPED, double_typed) as version:
                with pytest.raises(BadRequest, match=text):
                    version.send(*inputs)
                assert version.waiting == 0

        play(scenario)


class TestFramed:
    def test_one_request_is_a_view_of_the_slab(self) -> None:
        async def scenario() -> None:
            async with served(FRAMED, double) as version:
                (answer,) = await version.answered(version.send(x_of(2, 3)))
                assert values(answer) == {"y": [[0, 2, 4], [6, 8, 10]]}
                (batch,) = version.model.batches
                assert not batch.inputs["x"].flags.owndata
                assert batch.inputs["x"] is batch.calls[0].inputs["x"]

        play(scenario)

    def test_requests_that_fit_are_put_next_to_each_other(self) -> None:
        async def scenario() -> None:
            async with served(FRAMED, double, rows=8) as version:
                pendings = [version.send(x_of(rows, columns)) for rows, columns in ((1, 2), (1, 3), (2, 2), (1, 3))]
                answers = await version.answered(*pendings)
                assert [np.shape(values(answer)["y"]) for answer in answers] == [(1, 2), (1, 3), (2, 2), (1, 3)]
                assert [batch.inputs["x"].shape for batch in version.model.batches] == [(3, 2), (2, 3)]
                assert values(answers[2]) == {"y": [[0, 2], [4, 6]]}

        play(scenario)

    def test_no_batch_is_larger_than_its_size(self) -> None:
        async def scenario() -> None:
            async with served(FRAMED, double, rows=4, attached=False) as version:
                pendings = [version.send(x_of(rows)) for rows in (3, 2, 1, 1)]
                version.attach()
                answers = await version.answered(*pendings)
                assert [len(values(answer)["y"]) for answer in answers] == [3, 2, 1, 1]
                assert [len(batch.inputs["x"]) for batch in version.model.batches] == [3, 4]

        play(scenario)

    def test_a_slab_takes_as_many_items_as_a_batch_has(self) -> None:
        """Others than these may go to another worker."""

        async def scenario() -> None:
            async with served(FRAMED, double, rows=4, attached=False) as version:
                pendings = [version.send(x_of(rows)) for rows in (3, 1, 1, 4, 9, 1)]
                assert version.dispatcher._queue.lined_up() == 4
                pendings[2].cancel()
                version.attach()
                answers = await version.answered(*(each for each in pendings if not each.cancelled()))
                assert [len(values(answer)["y"]) for answer in answers] == [3, 1, 4, 9, 1]
                assert [len(batch.inputs["x"]) for batch in version.model.batches] == [4, 4, 9, 1]

        play(scenario)

    def test_without_a_batch_dimension_each_request_is_executed_alone(self) -> None:
        signature = Signature((ANY_X,), (ANY_Y,), batches=False)

        async def scenario() -> None:
            async with served(signature, double, attached=False) as version:
                pendings = [version.send(tensor("x", np.ones(size, "float32"))) for size in (3, 3)]
                version.attach()
                answers = await version.answered(*pendings)
                assert [values(answer) for answer in answers] == [{"y": [2, 2, 2]}] * 2
                assert [batch.rows for batch in version.model.batches] == [1, 1]

        play(scenario)

    def test_a_ragged_model_is_handed_the_requests_apart(self) -> None:
        signature = Signature((ANY_X,), (ANY_Y,), ragged=True)

        def run(batch: Batch) -> None:
            batch.results = [
                TensorResult({"y": call.inputs["x"] * 2}, {"at": at}) for at, call in enumerate(batch.calls)
            ]

        async def scenario() -> None:
            async with served(signature, run, attached=False) as version:
                pendings = [version.send(x_of(rows, columns)) for rows, columns in ((1, 2), (2, 3), (2, 1))]
                version.attach()
                answers = await version.answered(*pendings)
                assert [np.shape(values(answer)["y"]) for answer in answers] == [(1, 2), (2, 3), (2, 1)]
                assert [batch.rows for batch in version.model.batches] == [2, 1], "at most four items"
                assert [answer.tensors.parameters for answer in answers] == [{"at": 0}, {"at": 1}, {"at": 0}]  # type: ignore[union-attr]

        play(scenario)

    def test_a_call_brings_what_the_request_says(self) -> None:
        async def scenario() -> None:
            async with served(FRAMED, double) as version:
                pending = version.send(
                    x_of(2),
                    parameters={"p": 1, "q": "text", "r": True, "s": 0.5},
                    priority=3,
                    sequence_id="s1",
                    sequence_start=True,
                    headers={"a": "b"},
                )
                await version.answered(pending)
                ((call,),) = [batch.calls for batch in version.model.batches]
                assert (call.request_id, call.rows, call.priority) == ("id", 2, 3)
                assert call.parameters == {"p": 1, "q": "text", "r": True, "s": 0.5}
                assert (call.sequence_id, call.sequence_start, call.sequence_end) == ("s1", True, False)
                assert call.headers == {"a": "b"}

        play(scenario)

    @pytest.mark.parametrize(
        ("dtype", "sent"),
        [
            ("bool", np.array([[True, False]])),
            ("uint8", np.array([[0, 255]], "uint8")),
            ("int64", np.array([[-(2**63), 2**63 - 1]], "int64")),
            ("float16", np.array([[0.5, -2]], "float16")),
            ("float64", np.array([[1e300, np.inf]], "float64")),
            ("bytes", np.array([[b"", b"a\0b"]], object)),
        ],
    )
    def test_every_datatype_comes_and_goes(self, dtype: str, sent: np.ndarray) -> None:
        signature = Signature((TensorSpec("x", dtype, (ANY,)),), (TensorSpec("y", dtype, (ANY,)),))
        seen: list[np.ndarray] = []

        def run(batch: Batch) -> None:
            seen.append(batch.inputs["x"].copy())
            batch.outputs = {"y": batch.inputs["x"]}

        async def scenario() -> None:
            async with served(signature, run) as version:
                (answer,) = await version.answered(version.send(tensor("x", sent)))
                assert values(answer) == {"y": sent.tolist()}
                assert seen[0].dtype == sent.dtype
                assert seen[0].tolist() == sent.tolist()

        play(scenario)

    @pytest.mark.parametrize("known", [False, True], ids=["unknown", "by ml_dtypes"])
    def test_numbers_that_numpy_does_not_know_come_as_their_bits(
        self, known: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the model has imported a package that knows them, as numbers."""
        module = pytest.importorskip("ml_dtypes") if known else None
        monkeypatch.delitem(sys.modules, "ml_dtypes", raising=False)
        if known:
            monkeypatch.setitem(sys.modules, "ml_dtypes", module)
        signature = Signature((TensorSpec("x", "bfloat16", (2,)),), (TensorSpec("y", "bfloat16", (2,)),))

        def run(batch: Batch) -> None:
            x = batch.inputs["x"]
            assert x.dtype.name == ("bfloat16" if known else "uint16")
            batch.outputs = {"y": x * x.dtype.type(2) if known else x + 128}

        async def scenario() -> None:
            async with served(signature, run) as version:
                sent = tensor("x", np.array([[0x3F80, 0x4000]], "uint16"), "BF16")
                (answer,) = await version.answered(version.send(sent))
                assert isinstance(answer, Answer)
                assert answer.tensors is not None
                assert answer.tensors.outputs[0].datatype == "BF16"
                assert values(answer) == {"y": [[0x4000, 0x4080]]}, "twice as much"

        play(scenario)

    def test_inputs_may_be_missing_where_they_are_optional(self) -> None:
        signature = Signature((ANY_X, TensorSpec("z", "float32", (1,), optional=True)), (ANY_Y,))

        async def scenario() -> None:
            async with served(signature, double, attached=False) as version:
                without, with_z = version.send(x_of(1)), version.send(x_of(1), tensor("z", np.ones((1, 1), "float32")))
                version.attach()
                await version.answered(without, with_z)
                assert [sorted(batch.inputs) for batch in version.model.batches] == [["x"], ["x", "z"]]

        play(scenario)

    def test_one_offender_fails_alone(self) -> None:
        def run(batch: Batch) -> None:
            if (batch.inputs["x"] == 5).any():
                raise ValueError("five")
            double(batch)

        async def scenario() -> None:
            async with served(FRAMED, run, attached=False) as version:
                pendings = [version.send(x_of(1, first=first)) for first in (0, 4, 8, 12)]
                version.attach()
                found = await version.answered(*pendings)
                assert isinstance(found[1], PredictionFailed)
                assert [values(found[at])["y"] for at in (0, 2, 3)] == [[[0, 2]], [[16, 18]], [[24, 26]]]

        play(scenario)

    @pytest.mark.parametrize(
        ("run", "text"),
        [
            (lambda batch: batch.outputs.update(y=np.zeros((3, 1), "float32")), "expected 2 rows"),
            (lambda batch: batch.outputs.update(z=batch.inputs["x"]), 'Output "z": expected one of y'),
            (lambda batch: batch.outputs.update(y=np.zeros((2, 1), "complex64")), "array of complex64"),
            (lambda batch: batch.outputs.update(y=np.array([[1], [None]], object)), "elements of bytes or str"),
            (lambda batch: batch.results.append(TensorResult({"y": np.zeros((9, 1), "float32")})), "mismatched|2 rows"),
            (lambda batch: batch.results.append(TensorResult({}, {"p": [1]})), "parameter 'p'"),  # type: ignore[dict-item]
            (lambda batch: batch.results.append(TensorResult({}, {"p": 2**70})), "parameters"),
            (lambda batch: None, "expect: 1, got: 0"),
        ],
    )
    def test_what_is_no_answer_fails_its_request(self, run: Any, text: str) -> None:
        async def scenario() -> None:
            async with served(FRAMED, run) as version:
                (found,) = await version.answered(version.send(x_of(2)))
                assert isinstance(found, PredictionFailed)
                with pytest.raises(PredictionFailed, match=text):
                    raise found

        play(scenario)

    def test_an_answer_longer_than_the_region_comes_in_a_parcel(self) -> None:
        def run(batch: Batch) -> None:
            batch.outputs = {"y": np.repeat(batch.inputs["x"], 5000, axis=1)}

        async def scenario() -> None:
            async with served(FRAMED, run, region=8192) as version:
                answers = await version.answered(*[version.send(x_of(1, 2, first)) for first in (0, 7)])
                assert [np.shape(values(answer)["y"]) for answer in answers] == [(1, 10_000)] * 2
                assert values(answers[1])["y"][0][-1] == 8
                del answers

        play(scenario)

    def test_an_answer_over_the_limit_is_refused(self) -> None:
        async def scenario() -> None:
            async with served(FRAMED, double, limit=1000) as version:
                found = await version.answered(version.send(x_of(1, 300)), version.send(x_of(1, 10)))
                assert isinstance(found[0], PredictionFailed)
                assert found[0].http_status == 507
                assert values(found[1])["y"]

        play(scenario)

    def test_a_request_longer_than_the_region_travels_in_a_parcel(self) -> None:
        async def scenario() -> None:
            async with served(FRAMED, double, region=8192) as version:
                near, far_away = version.send(x_of(1, 9000)), version.send(far(x_of(1, 9000, 1)))
                answers = await version.answered(near, far_away)
                assert [values(answer)["y"][0][:2] for answer in answers] == [[0, 2], [2, 4]]

        play(scenario)

    @pytest.mark.parametrize("size", [2, 9000])
    def test_memory_that_is_gone_fails_its_request_only(self, size: int) -> None:
        async def scenario() -> None:
            async with served(FRAMED, double, region=8192, slabs=2, attached=False) as version:
                sent = []
                for first in range(12):
                    sent.append(version.send(x_of(1, first=first)))
                    sent.append(version.send(far(x_of(1, size), gone=True)))
                version.attach()
                found = await version.answered(*sent)
                assert all(isinstance(each, BadRequest) for each in found[1::2])
                assert [values(each)["y"][0][0] for each in found[::2]] == [2 * first for first in range(12)]

        play(scenario)

    def test_a_parameter_that_no_head_can_say_is_refused(self) -> None:
        async def scenario() -> None:
            async with served(FRAMED, double) as version:
                with pytest.raises(BadRequest, match="64 bits"):
                    version.send(x_of(1), parameters={"p": 2**64})

        play(scenario)

    def test_a_worker_that_writes_no_frame_is_not_believed(self) -> None:
        async def scenario() -> None:
            async with served(FRAMED, double) as version:
                pending = version.send(x_of(1))
                await version.settle()
                write = version.execution._written

                def spoil(slab: Any, command: Any, outcomes: Any) -> Any:
                    return write_replies(slab, command, [Reply(b"x" * 40)] * command.rows, 1000)

                version.execution._written = spoil  # type: ignore[method-assign]
                (found,) = await version.answered(pending)
                version.execution._written = write  # type: ignore[method-assign]
                assert isinstance(found, Internal)

        play(scenario)

"""A question to a model, its way to a worker and back."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from ringserve.protocol.errors import OutOfResources, PredictionFailed, WorkerLost
from ringserve.protocol.payload import ErrorRecord
from ringserve.server.asking import Descriptions
from ringserve.server.control import AskDescription, Description
from ringserve.server.describing import TEXT_BYTES_MAX, describe, json_object
from tests.server.worker_bench import BYTES, Bench, Model, benches, echo

ASK = AskDescription(7)


class Described(Model):
    """A model that describes itself by `say`."""

    def __init__(self, say: Callable[[], object]) -> None:
        super().__init__(echo)
        self._say = say

    def describe(self) -> object:
        return self._say()


@pytest.fixture
def bench() -> Iterator[Bench]:
    with benches() as make:
        yield make(BYTES, echo)


def raises(error: BaseException) -> Callable[[], object]:
    def say() -> object:
        raise error

    return say


class _Words(str):
    pass


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, None),
        ({"a": [1, 2.5, None]}, b'{"a":[1,2.5,null]}'),
        ({}, b"{}"),
        ('{"a": 1}', b'{"a":1}'),
        (b'{"a": 1}', b'{"a":1}'),
        (bytearray(b"{}"), b"{}"),
        ({1: "key"}, b'{"1":"key"}'),
        ({"n": float("nan")}, b'{"n":null}'),
        ({"n": np.float32(0.5), "array": np.arange(2)}, b'{"n":0.5,"array":[0,1]}'),
        ({"n": 2**70}, b'{"n":1.1805916207174113e+21}'),
        ({"w": _Words("x")}, b'{"w":"x"}'),
        ([1], b"{}"),
        ("words", b"{}"),
        ("\ud800", b"{}"),
        ("", b"{}"),
        (b"\xff", b"{}"),
        ("null", b"{}"),
        (7, b"{}"),
        ({"bad": 1} | {"nan": 2**70, "x": float("nan")}, b"{}"),
    ],
    ids=repr,
)
def test_an_object_or_the_text_of_one_is_taken_and_anything_else_is_empty(value: object, text: bytes | None) -> None:
    assert json_object(value) == text


@pytest.mark.parametrize("value", [{"x": object()}, {"x": {1, 2}}, '{"x":' * 300 + "1" + "}" * 300])
def test_what_has_no_json_form_is_a_failed_prediction(value: object) -> None:
    with pytest.raises(PredictionFailed, match=r"^Unsupported model output data type\.$"):
        json_object(value)


def test_the_answer_carries_the_token_of_the_question() -> None:
    assert describe(Described(lambda: {"a": 1}), ASK, ()) == Description(7, b'{"a":1}')
    assert describe(Described(lambda: None), ASK, ()) == Description(7, None)


@pytest.mark.parametrize(
    ("say", "code", "message", "status"),
    [
        (raises(ValueError("x")), "prediction_failed", "Prediction failed", 503),
        (raises(SystemExit(1)), "prediction_failed", "Prediction failed", 503),
        (raises(KeyboardInterrupt()), "prediction_failed", "Prediction failed", 503),
        (raises(OutOfResources("Out of resources")), "out_of_resources", "Out of resources", 507),
        (raises(PredictionFailed("no", status=418)), "prediction_failed", "no", 418),
        (lambda: object(), "prediction_failed", "Unsupported model output data type.", 503),
    ],
)
def test_a_model_that_fails_to_describe_itself_is_answered_for(
    say: Callable[[], object], code: str, message: str, status: int
) -> None:
    assert describe(Described(say), ASK, ()) == Description(7, None, ErrorRecord(code, message), status)


def test_a_description_that_is_too_long_is_an_error_with_both_numbers() -> None:
    said = describe(Described(lambda: {"x": "y" * TEXT_BYTES_MAX}), ASK, ())
    assert (said.text, said.status) == (None, 507)
    assert said.error is not None
    assert said.error.message == f"The description has {TEXT_BYTES_MAX + 8} bytes; at most {TEXT_BYTES_MAX} are taken."


def test_front_ends_hear_that_the_worker_is_at_work_while_its_model_describes_itself(bench: Bench) -> None:
    """`left_s` of a front end counts from what the link says."""
    before = time.monotonic_ns()

    def wait_for_pulse() -> object:
        end = time.monotonic() + 20
        while bench.front.commands.taken_ns < before and time.monotonic() < end:
            time.sleep(0.01)
        return {"pulse": bench.front.commands.taken_ns >= before}

    assert describe(Described(wait_for_pulse), ASK, [bench.link]).text == b'{"pulse":true}'


class Asked:
    """Questions to workers, and what was sent for them."""

    def __init__(self) -> None:
        self.descriptions = Descriptions()
        self.sent: list[AskDescription] = []

    def ask(self, worker_id: str = "9000", timeout_s: float = 60) -> "asyncio.Task[bytes | None]":
        return asyncio.ensure_future(self.descriptions.ask(worker_id, self.sent.append, timeout_s))


def on_loop(test: Callable[[Asked], Any]) -> None:
    async def main() -> None:
        await test(Asked())

    asyncio.run(main())


def test_who_asks_while_a_worker_is_asked_shares_its_answer() -> None:
    async def test(asked: Asked) -> None:
        first, second = asked.ask(), asked.ask()
        await asyncio.sleep(0)
        assert asked.sent == [AskDescription(1, 60)]
        asked.descriptions.heard("9000", Description(1, b"{}"))
        assert await first == await second == b"{}"
        third = asked.ask()
        await asyncio.sleep(0)
        asked.descriptions.heard("9000", Description(2, None))
        assert await third is None

    on_loop(test)


def test_the_models_failure_is_the_callers() -> None:
    async def test(asked: Asked) -> None:
        asking = asked.ask()
        await asyncio.sleep(0)
        asked.descriptions.heard("9000", Description(1, None, ErrorRecord("out_of_resources", "Out"), 507))
        with pytest.raises(OutOfResources, match=r"^Out$") as caught:
            await asking
        assert caught.value.http_status == 507

    on_loop(test)


def test_a_worker_that_ends_leaves_nobody_waiting() -> None:
    async def test(asked: Asked) -> None:
        asking, other = asked.ask("9000"), asked.ask("9001")
        await asyncio.sleep(0)
        asked.descriptions.lost("9000", "Worker 9000 ended.")
        asked.descriptions.lost("9000", "again")
        with pytest.raises(WorkerLost, match=r"^Worker 9000 ended\.$"):
            await asking
        asked.descriptions.heard("9000", Description(1, b"{}"))  # of a process that is gone
        asked.descriptions.heard("9001", Description(2, b"{}"))
        assert await other == b"{}"

    on_loop(test)


def test_who_stops_waiting_does_not_take_the_answer_from_others() -> None:
    async def test(asked: Asked) -> None:
        hasty, patient = asked.ask(timeout_s=1e-6), asked.ask()
        with pytest.raises(TimeoutError):
            await hasty
        asked.descriptions.heard("9000", Description(1, b"{}"))
        assert await patient == b"{}"
        forsaken = asked.ask(timeout_s=1e-6)
        with contextlib.suppress(TimeoutError):
            await forsaken
        asked.descriptions.lost("9000", "it ended")  # and nobody hears it

    on_loop(test)

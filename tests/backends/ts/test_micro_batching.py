"""MicroBatching: parts of a batch in several threads, and answers as if there were one."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.backends.contract import Request
from ringserve.backends.handler_backend import HandlerBackend
from ringserve.backends.ts.context import Context
from ringserve.backends.ts.handler_utils.micro_batching import HANDLER_METHODS, MicroBatching
from ringserve.backends.ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ringserve.backends.ts.utils.util import PredictionException

WAIT_S_MAX = 10.0


class Steps:
    """A handler that adds a letter in each step."""

    def preprocess(self, data: list[str]) -> list[str]:
        return [f"{row}p" for row in data]

    def inference(self, data: list[str]) -> list[str]:
        return [f"{row}i" for row in data]

    def postprocess(self, data: list[str]) -> list[str]:
        return [f"{row}o" for row in data]

    def _is_describe(self) -> bool:
        return False

    def _is_explain(self) -> bool:
        return False


@pytest.fixture
def make() -> Iterator[Callable[..., MicroBatching]]:
    """Micro batching whose threads end with the test."""
    made: list[MicroBatching] = []

    def make(handler: Any, *args: Any) -> MicroBatching:
        made.append(MicroBatching(handler, *args))
        return made[-1]

    yield make
    for each in made:
        each.shutdown()
        assert each.thread_groups == {name: [] for name in HANDLER_METHODS}


@given(
    rows=st.lists(st.text(max_size=3), max_size=20),
    size=st.integers(1, 7),
    threads=st.fixed_dictionaries({}, optional={name: st.integers(1, 3) for name in HANDLER_METHODS}),
)
def test_answers_come_in_the_order_of_the_batch(rows: list[str], size: int, threads: dict[str, int]) -> None:
    batching = MicroBatching(Steps(), size, threads)
    try:
        assert batching.handle(rows) == [f"{row}pio" for row in rows]
        assert batching.handle(rows) == [f"{row}pio" for row in rows]
    finally:
        batching.shutdown()


def test_the_steps_of_different_parts_run_at_the_same_time(make: Callable[..., MicroBatching]) -> None:
    """The first part is in `inference` and the second in `preprocess`: both wait for each other."""
    meeting = threading.Barrier(2, timeout=WAIT_S_MAX)

    class Meets(Steps):
        def preprocess(self, data: list[str]) -> list[str]:
            if data == ["b"]:
                meeting.wait()
            return data

        def inference(self, data: list[str]) -> list[str]:
            if data == ["a"]:
                meeting.wait()
            return data

    assert make(Meets()).handle(["a", "b"]) == ["ao", "bo"]


def test_a_step_with_two_threads_takes_two_parts_at_once(make: Callable[..., MicroBatching]) -> None:
    meeting = threading.Barrier(2, timeout=WAIT_S_MAX)

    class Meets(Steps):
        def inference(self, data: list[str]) -> list[str]:
            meeting.wait()
            return data

    assert make(Meets(), 1, {"inference": 2}).handle(["a", "b"]) == ["apo", "bpo"]


@pytest.mark.parametrize("step", HANDLER_METHODS)
def test_what_a_step_raises_is_raised_where_the_batch_waits_and_the_next_batch_works(
    make: Callable[..., MicroBatching], step: str
) -> None:
    """TorchServe's waits for ever."""

    def fail(self: Steps, data: list[str]) -> list[str]:
        if "b" in data[0]:
            raise PredictionException(data[0][0], 422)
        return getattr(Steps, step)(self, data)  # type: ignore[no-any-return]

    batching = make(type("Fails", (Steps,), {step: fail})())
    with pytest.raises(PredictionException, match="b : 422"):
        batching.handle(["a", "b", "c"])
    assert batching.handle(["a", "c"]) == ["apio", "cpio"]


def test_a_step_knows_the_number_of_its_part(make: Callable[..., MicroBatching]) -> None:
    class Numbered(Steps):
        def inference(self, data: list[str]) -> list[Any]:
            return [batching.get_micro_batch_idx()] * len(data)

        def postprocess(self, data: list[Any]) -> list[Any]:
            return data

    batching = make(Numbered(), 2)
    assert batching.handle(["a", "b", "c"]) == [0, 0, 1]
    assert batching.get_micro_batch_idx() is None


def test_parallelism_is_changed_by_setting_it(make: Callable[..., MicroBatching]) -> None:
    batching = make(Steps(), 1, {"inference": 3})
    batching.parallelism = {"preprocess": 2}
    batching.parallelism["inference"] = 9  # a copy
    assert batching.parallelism == {"preprocess": 2, "inference": 3}
    assert [len(threads) for threads in batching.thread_groups.values()] == [2, 3, 1]
    batching.parallelism = {"inference": 1}
    assert [len(threads) for threads in batching.thread_groups.values()] == [2, 1, 1]
    assert batching.handle(["a"]) == ["apio"]


@pytest.mark.parametrize("wrong", [{"inferences": 1}, {"inference": -1}])
def test_a_parallelism_that_cannot_be_is_named(wrong: dict[str, int]) -> None:
    with pytest.raises(
        ValueError, match="parallelism: expected numbers of threads for preprocess, inference, postproc"
    ):
        MicroBatching(Steps(), 1, wrong)


def test_without_threads_nothing_waits_for_ever(make: Callable[..., MicroBatching]) -> None:
    batching = make(Steps(), 1, {"inference": 0})
    with pytest.raises(RuntimeError, match="no thread for inference"):
        batching.handle(["a"])
    batching.shutdown()
    with pytest.raises(RuntimeError, match="no thread for preprocess, inference, postprocess"):
        batching.handle(["a"])


@pytest.mark.parametrize(("hook", "answer"), [("describe", [{"about": 1}]), ("explain", [["ap"], ["a"]])])
def test_descriptions_and_explanations_go_past_the_threads(
    make: Callable[..., MicroBatching], hook: str, answer: Any
) -> None:
    members = {
        f"_is_{hook}": lambda self: True,
        "describe_handle": lambda self: {"about": 1},
        "explain_handle": lambda self, prepared, raw: [prepared, raw],
    }
    context = Context("m", "/m", None, 1, None, "0", metrics=MetricsCacheYamlImpl())
    assert make(type("Hooked", (Steps,), members)())(["a"], context) == answer


SOURCE = """
from ts.handler_utils.micro_batching import MicroBatching
from ts.torch_handler.base_handler import BaseHandler

class Mine(BaseHandler):
    def initialize(self, context):
        self.handle = MicroBatching(self, micro_batch_size=2, parallelism={"inference": 2})

    def preprocess(self, data):
        return [row["body"] for row in data]

    def inference(self, data):
        return [[number * 2, self.handle.get_micro_batch_idx()] for number in data]

    def postprocess(self, data):
        return data
"""


def test_it_stands_for_the_handle_of_a_handler(
    load_handler_backend: Callable[..., HandlerBackend],
    request_of: Callable[..., Request],
    ask: Callable[..., list[Any]],
    body_of: Callable[[Any], Any],
) -> None:
    replies = ask(load_handler_backend(SOURCE), [request_of(number) for number in range(5)])
    assert [body_of(reply) for reply in replies] == [[0, 0], [2, 0], [4, 1], [6, 1], [8, 2]]

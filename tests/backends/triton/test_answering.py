"""Models that answer when they like: by response senders, from threads and from coroutines, once or any number of times."""

import threading
from typing import Any

import pytest

from ringserve.backends.contract import ContractBroken
from ringserve.protocol.errors import PredictionFailed
from tests.backends.triton.models import (
    DECOUPLED,
    FINAL,
    Load,
    Sent,
    call,
    method,
    run,
)

# ---- senders


def test_a_sender_may_answer_in_place_of_the_list(load: Load) -> None:
    """From a thread that goes on after `execute`, too."""
    backend = load(
        method(
            "def answer(sender, array):",
            f"    sender.send(response(array), flags={FINAL})",
            "for r in requests:",
            "    threading.Thread(target=answer, args=(r.get_response_sender(), x(r))).start()",
        )
    )
    assert run(backend, call(1), call(2)) == [[[1]], [[2]]]


def test_a_sender_that_is_dropped_has_given_its_last_answer(load: Load) -> None:
    """Nobody could send another."""
    backend = load(method("requests[0].get_response_sender().send(response(x(requests[0])))", "return [None]"))
    assert run(backend, call(1)) == [[[1]]]


def test_a_sender_refuses_what_cannot_be_sent(load: Load) -> None:
    """In Triton's words; what was sent before stands."""
    backend = load(
        method(
            "sender, said = requests[0].get_response_sender(), []",
            "one = response(x(requests[0]))",
            "for give in (lambda: sender.send(), lambda: sender.send(flags=7), lambda: sender.send('x'), lambda: sender.send(one, 0),",
            "             lambda: sender.send(one), lambda: sender.send(flags=1), lambda: sender.send(flags=1)):",
            "    try: said.append(give())",
            "    except Exception as error: said.append(str(error))",
            "self.said = said",
        )
    )
    assert run(backend, call(1)) == [[[1]]]
    assert backend._model.said == [
        "Inference Response object must be provided when the response flags is set to zero.",
        "Unable to send response. Unsupported flag provided.",
        "send expects a pb_utils.InferenceResponse, got str.",
        None,
        "Unable to send response. Non-decoupled model cannot send more than one response.",
        None,
        "Unable to send response. Response sender has been closed.",
    ]


# ---- coroutines


def test_execute_may_be_a_coroutine(load: Load) -> None:
    """In a thread that stays for the tasks that it begins."""
    backend = load(
        method(
            "import asyncio",
            "await asyncio.sleep(0)",
            "self.threads = [*getattr(self, 'threads', ()), threading.current_thread().name]",
            "return [response(x(r)) for r in requests]",
            head="async def execute(self, requests):",
        )
    )
    assert [run(backend, call(at)) for at in range(2)] == [[[[0]]], [[[1]]]]
    assert backend._model.threads == ["triton-model"] * 2
    backend.close()


def test_a_coroutine_that_raises_fails_its_batch(load: Load) -> None:
    """As a function does."""
    backend = load(method("raise ValueError('boom')", head="async def execute(self, requests):"))
    with pytest.raises(PredictionFailed, match="ValueError: boom"):
        run(backend, call(1))
    backend.close()


def test_tasks_answer_after_execute_has_returned(load: Load) -> None:
    """Each its own request."""
    backend = load(
        method(
            "import asyncio",
            "async def later(sender, array):",
            "    await asyncio.sleep(0)",
            "    sender.send(response(array), flags=1)",
            "self.tasks = [asyncio.create_task(later(r.get_response_sender(), x(r))) for r in requests]",
            head="async def execute(self, requests):",
        ),
        signature=DECOUPLED,
    )
    control = Sent()
    run(backend, call(1), call(2), control=control)
    assert sorted(control.answers) == [(0, {"Y": [[1]]}, True), (1, {"Y": [[2]]}, True)]
    backend.close()


# ---- any number of answers


def sent(load: Load, *lines: str, calls: int = 1, control: Sent | None = None) -> list[tuple[int, Any, bool]]:
    """What a decoupled model sends to these requests, whose sender is `s` and whose response is `a`."""
    body = "\n            ".join(("s, a = r.get_response_sender(), response(x(r))", *lines))
    control = control or Sent()
    run(
        load(method(f"for r in requests:\n            {body}"), signature=DECOUPLED),
        *[call(at) for at in range(calls)],
        control=control,
    )
    return control.answers


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["s.send(a)", "s.send(a, flags=1)"], [({"Y": [[0]]}, False), ({"Y": [[0]]}, True)]),
        (["s.send(a)", "s.send(flags=1)"], [({"Y": [[0]]}, False), (None, True)]),
        (["s.send(flags=1)"], [(None, True)]),
        (["s.send(a)"], [({"Y": [[0]]}, False), (None, True)]),
        (["pass"], [(None, True)]),
    ],
)
def test_a_decoupled_model_sends_what_it_likes(load: Load, lines: list[str], expected: list[Any]) -> None:
    """Its last one says so, or an end without data follows; one that drops its sender has ended."""
    assert sent(load, *lines) == [(0, *each) for each in expected]


def test_a_decoupled_model_may_answer_from_threads(load: Load) -> None:
    """The batch is over when the last of them has said its last."""
    control = Sent()
    answers = sent(load, f"threading.Thread(target=s.send, args=(a, {FINAL})).start()", calls=3, control=control)
    assert sorted(answers) == [(row, {"Y": [[row]]}, True) for row in range(3)]


def test_an_error_is_the_last_that_its_client_reads(load: Load) -> None:
    """The model may go on without harm."""
    error = "pb_utils.InferenceResponse(error=pb_utils.TritonError('mine'))"
    ((_, answer, _),) = sent(load, f"s.send({error})", "s.send(a)", "s.send(flags=1)")
    assert isinstance(answer, PredictionFailed)
    assert answer.message == "mine"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["return [a]"], "Python model 'm_0' is using the decoupled mode and the execute function must return None."),
        (["s.send(a)", "raise ValueError('boom')"], "ValueError: boom"),
    ],
)
def test_a_decoupled_model_that_fails_ends_its_requests(load: Load, lines: list[str], message: str) -> None:
    """Those that have not ended."""
    row, answer, final = sent(load, *lines)[-1]
    assert (row, final) == (0, True)
    assert answer.message == f"Failed to process the request(s) for model 'm_0', message: {message}"


def test_an_answer_that_cannot_be_sent_is_the_models_to_know(load: Load) -> None:
    """The worker has told the client."""
    control = Sent()
    control.refuse = ContractBroken("too long")
    sent(
        load, "try: s.send(a)", "except pb_utils.TritonModelException as error: self.said = str(error)", control=control
    )
    assert control.answers == []


def test_a_model_learns_that_its_client_has_left(load: Load) -> None:
    """From the request and from the sender."""
    control = Sent()
    control.is_cancelled = True
    assert sent(load, "if r.is_cancelled() and s.is_cancelled(): s.send(flags=1)", control=control) == [(0, None, True)]


def test_the_memory_is_the_models_until_its_last_answer(load: Load) -> None:
    """A model that answers later still reads its request."""
    backend = load(
        method(
            "def later(sender, array):",
            "    self.go.wait()",
            "    sender.send(response(array), flags=1)",
            "r = requests[0]",
            "threading.Thread(target=later, args=(r.get_response_sender(), x(r))).start()",
        ),
        method("self.go = threading.Event()", head="def initialize(self, args):"),
        signature=DECOUPLED,
    )
    control = Sent()
    runner = threading.Thread(target=run, args=(backend, call(5)), kwargs={"control": control})
    runner.start()
    assert control.answers == []
    backend._model.go.set()
    runner.join()
    assert control.answers == [(0, {"Y": [[5]]}, True)]

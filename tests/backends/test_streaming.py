"""Answers in parts: handlers that send them, handlers that yield them, and clients that leave meanwhile."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ringserve.backends.contract import Batch, BatchControl, ContractBroken, Reply, Request, check_count
from ringserve.backends.handler_backend import HandlerBackend
from ringserve.protocol.errors import PredictionFailed, RingServeError

Load = Callable[..., HandlerBackend]
RequestOf = Callable[..., Request]
Parts = list[Reply | RingServeError | None]

SEND = "from ts.handler_utils.utils import send_intermediate_predict_response as send\n"
OLDER = "from ts.protocol.otf_message_handler import send_intermediate_predict_response as send\n"
TEXT = "text/plain; charset=utf-8"


class Clients(BatchControl):
    """Who reads the parts of a batch. `leave_after` parts, all of them are gone."""

    def __init__(self, rows: int, leave_after: int = 1000) -> None:
        self.rows = rows
        self.leave_after = leave_after
        self.gone: set[int] = set()
        self.parts: list[Parts] = []

    def cancelled(self, row: int) -> bool:
        return row in self.gone or len(self.parts) >= self.leave_after

    def stream(self, parts: Sequence[Reply | RingServeError | None]) -> bool:
        check_count(self.rows, len(parts))
        self.parts.append(list(parts))
        return not all(self.cancelled(row) for row in range(self.rows))

    def bodies(self) -> list[list[bytes | None]]:
        return [[None if part is None else bytes(part.body) for part in each] for each in self.replies()]  # type: ignore[union-attr]

    def replies(self) -> list[Parts]:
        assert not any(isinstance(part, RingServeError) for each in self.parts for part in each)
        return self.parts


@pytest.fixture
def ask(request_of: RequestOf) -> Callable[..., list[bytes]]:
    """Run one batch; the bodies of the last parts."""

    def run(backend: HandlerBackend, clients: Clients) -> list[bytes]:
        batch = Batch(clients.rows, requests=[request_of(row) for row in range(clients.rows)], control=clients)
        backend.execute(batch)
        assert all(isinstance(reply, Reply) for reply in batch.replies)
        return [bytes(reply.body) for reply in batch.replies if isinstance(reply, Reply)]

    return run


Ask = Callable[..., list[bytes]]


def function(*lines: str, first: str = SEND) -> str:
    body = "\n".join(f"    {line}" for line in lines)
    return f"{first}\ndef handle(data, context):\n    if data is None:\n        return None\n{body}\n"


def call(parts: str) -> str:
    return f"send({parts}, context.request_ids, 'Intermediate Prediction success', 200, context)"


@pytest.mark.parametrize("first", [SEND, OLDER])
def test_what_a_handler_sends_goes_out_before_what_it_returns(load_handler_backend: Load, ask: Ask, first: str) -> None:
    """By TorchServe's function, under both of its names."""
    source = function(call("['a0', 'b0']"), call("[b'a1', {'b': 1}]"), "return ['a2', 'b2']", first=first)
    clients = Clients(2)
    assert ask(load_handler_backend(source), clients) == [b"a2", b"b2"]
    assert clients.bodies() == [[b"a0", b"b0"], [b"a1", b'{\n  "b": 1\n}']]


def test_the_first_part_carries_what_was_set_on_the_context(load_handler_backend: Load, ask: Ask) -> None:
    """By row, as for a whole answer."""
    setting = "context.set_response_status(202, 'later', 1); context.set_response_header(1, 'x-a', 'b')"
    clients = Clients(2)
    ask(load_handler_backend(function(setting, call("['a', 'b']"), "return ['', '']")), clients)
    assert clients.replies() == [[Reply(b"a", TEXT), Reply(b"b", TEXT, 202, "later", {"x-a": "b"})]]


@pytest.mark.parametrize("parts", ["['a']", "['a', 'b', 'c']", "[]"])
def test_a_part_with_a_wrong_count_names_both_numbers(load_handler_backend: Load, ask: Ask, parts: str) -> None:
    """Also when the handler would go on."""
    backend = load_handler_backend(function(call(parts), "return ['a', 'b']"))
    got = len(eval(parts))
    with pytest.raises(ContractBroken, match=rf"^number of batch response mismatched, expect: 2, got: {got}\.$"):
        ask(backend, Clients(2))


def test_a_part_that_is_no_list_is_named(load_handler_backend: Load, ask: Ask) -> None:
    """A text of the right length is no list of parts."""
    with pytest.raises(ContractBroken, match="a list with an element for each row; got a str"):
        ask(load_handler_backend(function(call("'ab'"), "return ['a', 'b']")), Clients(2))


def test_a_part_that_cannot_be_encoded_is_an_error_of_its_row(load_handler_backend: Load, ask: Ask) -> None:
    """The other row reads on."""
    clients = Clients(2)
    ask(load_handler_backend(function(call("[{1, 2}, 'b']"), "return ['', '']")), clients)
    failed, good = clients.parts[0]
    assert isinstance(failed, PredictionFailed)
    assert good == Reply(b"b", TEXT)


def test_a_part_with_an_errors_code_is_that_error_of_every_row(load_handler_backend: Load, ask: Ask) -> None:
    """Instead of the part, as with TorchServe."""
    clients = Clients(2)
    ask(
        load_handler_backend(
            function("send(['a', 'b'], context.request_ids, 'gone', 404, context)", "return ['', '']")
        ),
        clients,
    )
    errors = [part for part in clients.parts[0] if isinstance(part, PredictionFailed)]
    assert [(error.message, error.http_status) for error in errors] == [("gone", 404)] * 2


def test_only_the_first_rank_of_a_model_speaks(
    load_handler_backend: Load, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under torchrun."""
    monkeypatch.setenv("LOCAL_RANK", "1")
    clients = Clients(1)
    assert ask(load_handler_backend(function(call("['a']"), "return ['b']")), clients) == [b"b"]
    assert clients.parts == []


def test_sending_says_when_nobody_reads_any_more(load_handler_backend: Load, ask: Ask) -> None:
    """And raises nothing, which handlers would not expect."""
    source = function("told = []", *[f"told.append({call('[1]')})"] * 3, "return [told]")
    assert ask(load_handler_backend(source), Clients(1, leave_after=2)) == [b"[\n  true,\n  false,\n  false\n]"]


@pytest.mark.parametrize("kind", ["function", "method", "returned"])
def test_what_a_generator_yields_are_the_parts(load_handler_backend: Load, ask: Ask, kind: str) -> None:
    """A function, a method, or a generator that the handler made; each list is one part of every row."""
    body = "yield ['a0', 'b0']\n        yield ['', None]\n        yield [b'a1', 2]"
    source = {
        "function": f"def handle(data, context):\n    if data is not None:\n        {body}\n",
        "method": f"class Mine:\n    def handle(self, data, context):\n        {body}\n",
        "returned": f"class Mine:\n    def parts(self):\n        {body}\n\n    def handle(self, data, context):\n"
        "        return self.parts()\n",
    }[kind]
    clients = Clients(2)
    assert ask(load_handler_backend(source), clients) == [b"", b""]
    assert clients.bodies() == [[b"a0", b"b0"], [b"", None], [b"a1", b"2"]]


def test_what_a_generator_returns_are_the_last_parts(load_handler_backend: Load, ask: Ask) -> None:
    """Also of one that yields nothing."""
    source = (
        "class Mine:\n    def handle(self, data, context):\n        if len(data) == 2:\n            yield ['a', 'b']\n"
    )
    backend = load_handler_backend(source + "        return ['last'] * len(data)\n")
    assert ask(backend, Clients(2)) == [b"last", b"last"]
    clients = Clients(1)
    assert ask(backend, clients) == [b"last"]
    assert clients.parts == []


def test_a_generator_function_loads_its_model_like_any_other(load_handler_backend: Load, ask: Ask) -> None:
    """Called without data, it runs to its first yield."""
    source = (
        "model = []\ndef handle(data, context):\n    if data is None:\n        model.append('loaded')\n        return\n"
        "    yield [model]\n"
    )
    clients = Clients(1)
    ask(load_handler_backend(source), clients)
    assert clients.bodies() == [[b'[\n  "loaded"\n]']]


def test_a_generator_is_closed_at_its_next_yield_when_all_clients_are_gone(
    load_handler_backend: Load, ask: Ask
) -> None:
    """Its `finally` runs, and the model is free for the next batch."""
    source = (
        "class Mine:\n    ended = []\n    def handle(self, data, context):\n"
        "        if data[0]['body'] == 0 and not self.ended:\n            try:\n                while True:\n"
        "                    yield ['more'] * len(data)\n            finally:\n"
        "                self.ended.append(bool(context.cancelled))\n        return [self.ended] * len(data)\n"
    )
    backend = load_handler_backend(source)
    clients = Clients(2, leave_after=3)
    assert ask(backend, clients) == [b"", b""]
    assert len(clients.parts) == 3
    assert ask(backend, Clients(1)) == [b"[\n  true\n]"]


@pytest.mark.parametrize("line", ["1 / 0", "raise SystemExit"])
def test_a_generator_that_raises_fails_its_batch(load_handler_backend: Load, ask: Ask, line: str) -> None:
    """After what it had sent."""
    source = f"class Mine:\n    def handle(self, data, context):\n        yield ['a']\n        {line}\n"
    clients = Clients(1)
    with pytest.raises(PredictionFailed, match=r"^Prediction failed$"):
        ask(load_handler_backend(source), clients)
    assert clients.bodies() == [[b"a"]]


def test_a_generator_that_will_not_be_closed_is_a_failure(load_handler_backend: Load, ask: Ask) -> None:
    """And not the end of the worker."""
    source = (
        "class Mine:\n    def handle(self, data, context):\n        try:\n            yield ['a']\n"
        "        except GeneratorExit:\n            yield ['b']\n"
    )
    with pytest.raises(PredictionFailed):
        ask(load_handler_backend(source), Clients(1, leave_after=1))


def test_a_handler_asks_who_is_still_there(load_handler_backend: Load, ask: Ask, body_of: Any) -> None:
    """As a truth about all rows, or about one."""
    line = "[bool(context.cancelled), len(context.cancelled), context.cancelled[0], context.cancelled[1]]"
    backend = load_handler_backend(function(f"return [{line}] * 2", first=""))
    clients = Clients(2)
    clients.gone = {1}
    assert ask(backend, clients) == [b"[\n  false,\n  2,\n  false,\n  true\n]"] * 2
    clients.gone = {0, 1}
    assert ask(backend, clients) == [b"[\n  true,\n  2,\n  true,\n  true\n]"] * 2


def test_a_failure_that_was_logged_is_not_logged_again(
    load_handler_backend: Load, request_of: RequestOf, caplog: pytest.LogCaptureFixture
) -> None:
    """When the rows of a batch are tried apart."""
    backend = load_handler_backend(function("1 / 0"))
    for is_retry in (False, True, True):
        with pytest.raises(PredictionFailed):
            backend.execute(Batch(1, requests=[request_of(1)], is_retry=is_retry))
    assert caplog.text.count("Traceback") == 1

"""The drawn tree is the tree; an error crosses a process boundary by its code."""

import re

import pytest

from ringserve.protocol import errors
from ringserve.protocol.errors import Internal, RingServeError, error_from

_LINE = re.compile(r"^    (?P<indent>[ │]*)(?:[├└]── )?(?P<name>[A-Z]\w+) *(?P<status>\d{3})?")


def drawn() -> dict[str, tuple[str | None, str | None]]:
    """The docstring's tree: name -> (parent, status where one is drawn)."""
    found: dict[str, tuple[str | None, str | None]] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        depth = (line.index(match["name"]) - 4) // 4
        path[depth:] = [match["name"]]
        found[match["name"]] = (path[depth - 1] if depth else None, match["status"])
    return found


def defined() -> dict[str, type[RingServeError]]:
    members = vars(errors).values()
    return {cls.__name__: cls for cls in members if isinstance(cls, type) and issubclass(cls, RingServeError)}


def test_every_class_is_drawn_and_nothing_else() -> None:
    assert list(drawn()) == list(defined())


@pytest.mark.parametrize("name", defined())
def test_a_class_hangs_where_it_is_drawn_with_the_drawn_status(name: str) -> None:
    parent, status = drawn()[name]
    cls = defined()[name]
    assert cls.__base__ is not None
    assert cls.__base__.__name__ == (parent or "Exception")
    if status is not None:
        assert cls.status == int(status)


@pytest.mark.parametrize("name", [name for name, (_, status) in drawn().items() if status])
def test_an_error_carries_its_answer(name: str) -> None:
    cls = defined()[name]
    error = cls("what happened")
    assert (str(error), error.message, error.http_status) == ("what happened", "what happened", cls.status)
    assert cls("x", status=418).http_status == 418
    assert cls.type.endswith("Exception")
    assert 400 <= cls.status <= 599


@pytest.mark.parametrize("name", defined())
def test_an_error_from_another_process_has_the_same_code_status_and_sentence(name: str) -> None:
    raised = defined()[name]("it happened", status=599)
    received = error_from(raised.code, raised.message, raised.http_status)
    assert (received.code, received.type, received.retryable) == (raised.code, raised.type, raised.retryable)
    assert (received.message, received.http_status) == ("it happened", 599)


def test_an_unknown_code_is_our_own_mistake() -> None:
    assert type(error_from("brand_new", "from a newer worker", 500)) is Internal


def test_only_what_may_succeed_later_is_retryable() -> None:
    retryable = {name for name, cls in defined().items() if cls.retryable}
    without_a_worker = {"NoWorker", "NoTicket", "SequenceRejected"}
    assert retryable == {"WorkerLost", "QueueFull", "QueueTimeout", "ShuttingDown", "RequestTimeout", *without_a_worker}

"""Answers that leave from shared memory: whatever happens to them, their memory is let go, once; and credit is paid back."""

import gc
import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.server.sources import Frame, Held, ReplyStream, Windowed
from ringserve.shm.spool import Spool, Windows


@pytest.fixture
def spool() -> Spool:
    made = Spool(None)
    made.write(bytes(range(256)) * 64)
    made.finish()
    return made


Make = Callable[[Callable[[], None]], Held | Windowed]


@pytest.fixture(params=["held", "windowed"])
def make(request: pytest.FixtureRequest, spool: Spool) -> Make:
    if request.param == "held":
        return lambda let_go: Held(memoryview(bytes(range(256)) * 64), let_go)
    return lambda let_go: Windowed(Windows(spool.fd, 0, spool.size_bytes, 4096), spool.size_bytes, let_go)


class Counted:
    """How often the memory was let go."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self) -> None:
        self.times += 1


def test_all_of_an_answer_can_be_had_and_then_it_is_over(make: Make) -> None:
    let_go = Counted()
    source = make(let_go)
    assert source.length == 256 * 64
    assert b"".join(bytes(part) for part in iter(source.next, None)) == bytes(range(256)) * 64
    assert (source.ended, source.broken, let_go.times) == (True, False, 0)
    source.close()
    source.close()
    assert let_go.times == 1


@pytest.mark.parametrize("taken", [0, 1])
def test_an_answer_that_nobody_wants_is_let_go_when_it_is_forgotten(make: Make, taken: int) -> None:
    """At once, without the collector of cycles."""
    let_go = Counted()
    source = make(let_go)
    for _ in range(taken):
        source.next()
    gc.disable()
    try:
        del source
        assert let_go.times == 1
    finally:
        gc.enable()


def test_an_answer_that_was_closed_is_not_let_go_again_when_it_is_forgotten(make: Make) -> None:
    let_go = Counted()
    source = make(let_go)
    source.next()
    source.close()
    del source
    assert let_go.times == 1


def test_memory_is_let_go_before_whoever_owns_it_is_told() -> None:
    """A segment can be closed only when nobody looks at it."""
    memory = bytearray(10)
    source = Held(memoryview(memory), lambda: memory.clear())
    source.close()
    assert memory == b""


def test_a_windowed_answer_unmaps_what_it_showed(spool: Spool) -> None:
    let_go = Counted()
    source = Windowed(Windows(spool.fd, 100, 10_000, 4096), 10_000, let_go)
    lengths = [len(part) for part in iter(source.next, None)]
    assert (sum(lengths), lengths[0]) == (10_000, 4096 - 100)
    source.close()
    os.fstat(spool.fd)  # the descriptor stays its owner's


# ---- streams


class Client:
    """Counts what its stream says."""

    def __init__(self) -> None:
        self.forsaken = 0
        self.changes = 0
        self.stream = ReplyStream(self._forsake)
        self.stream.on_change = self._change

    def _forsake(self) -> None:
        self.forsaken += 1

    def _change(self) -> None:
        self.changes += 1

    def read(self) -> bytes:
        return b"".join(iter(self.stream.next, None))


def test_a_frame_is_taken_when_all_of_its_pieces_are() -> None:
    taken = Counted()
    frame = Frame(3, taken)
    frame.taken()
    frame.taken()
    assert (frame.left, taken.times) == (1, 0)
    frame.taken()
    assert (frame.left, taken.times) == (0, 1)


def test_a_client_reads_the_parts_in_order_and_each_pays_its_credit() -> None:
    client, taken = Client(), Counted()
    for part in (b"one", b"two"):
        client.stream.feed(part, Frame(1, taken))
    client.stream.finish(b"three")
    assert client.changes == 3
    assert (client.stream.next(), taken.times) == (b"one", 1)
    assert (client.read(), taken.times) == (b"twothree", 2)
    assert (client.stream.ended, client.stream.broken) == (True, False)
    client.stream.close()
    assert client.forsaken == 0


def test_an_empty_part_pays_at_once() -> None:
    client, taken = Client(), Counted()
    client.stream.feed(b"", Frame(1, taken))
    assert (taken.times, client.changes, client.stream.next()) == (1, 0, None)


def test_what_a_client_that_left_has_not_read_pays_too_and_its_worker_is_told() -> None:
    client, taken = Client(), Counted()
    client.stream.feed(b"unread", Frame(1, taken))
    client.stream.close()
    client.stream.close()
    assert (taken.times, client.forsaken) == (1, 1)
    client.stream.feed(b"too late", Frame(1, taken))
    client.stream.finish(b"end")
    assert (taken.times, client.read()) == (2, b"")


def test_a_stream_that_breaks_off_gives_what_it_has() -> None:
    client, taken = Client(), Counted()
    client.stream.feed(b"some", Frame(1, taken))
    client.stream.break_off()
    assert (client.stream.ended, client.stream.broken) == (True, True)
    assert (client.read(), taken.times, client.changes) == (b"some", 1, 2)
    client.stream.close()
    assert client.forsaken == 0, "there is nobody to tell"


def test_a_forgotten_stream_is_a_client_that_left() -> None:
    taken, forsaken = Counted(), Counted()
    stream = ReplyStream(forsaken)
    stream.feed(b"unread", Frame(1, taken))
    del stream
    assert (taken.times, forsaken.times) == (1, 1)


steps = st.lists(st.tuples(st.sampled_from(["feed", "read", "leave", "finish"]), st.integers(0, 2)), max_size=30)


@given(steps)
def test_whatever_clients_do_every_chunk_is_paid_for_once_and_all_when_they_are_done(
    steps: list[tuple[str, int]],
) -> None:
    """Chunks with a piece for each of three clients."""
    clients, paid, sent = [Client() for _ in range(3)], Counted(), 0
    expected: list[list[bytes]] = [[], [], []]
    over = [False] * 3
    for step, number in steps:
        client = clients[number]
        if step == "feed" and not any(over):
            sent += 1
            frame = Frame(3, paid)
            for each, pieces in zip(clients, expected, strict=True):
                each.stream.feed(b"%d" % sent, frame)
                pieces.append(b"%d" % sent)
        elif step == "read" and (part := client.stream.next()) is not None:
            assert part == expected[number].pop(0)
        elif step == "leave":
            client.stream.close()
            expected[number].clear()
        elif step == "finish":
            over[number] = True
            client.stream.finish(b"")
        assert paid.times <= sent
    for client in clients:
        client.read()
        client.stream.close()
    assert paid.times == sent

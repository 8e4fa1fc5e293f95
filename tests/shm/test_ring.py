"""The ring against a queue from the standard library, far past its own length."""

import time
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ringserve.shm.layout import COMMANDS_AT, COMPLETIONS_AT, LINK_BYTES, RING_ENTRIES
from ringserve.shm.ring import Command, Completion, Consumer, Producer
from ringserve.shm.shm_errors import RingCorrupt

words, halves = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)
commands = st.builds(Command, words, halves, halves, halves, halves, halves)


def page() -> memoryview:
    return memoryview(bytearray(LINK_BYTES))


class RingMachine(RuleBasedStateMachine):
    """Any order of pushes and takes; both ends may be made anew from what the memory says."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = page()
        self.producer = Producer(self.memory, COMMANDS_AT, Command)
        self.consumer = Consumer(self.memory, COMMANDS_AT, Command)
        self.expected: deque[Command] = deque()
        self.taken = 0

    @rule(batch=st.lists(commands, min_size=1, max_size=2 * RING_ENTRIES))
    def push(self, batch: list[Command]) -> None:
        for entry in batch:
            room = len(self.expected) < RING_ENTRIES
            assert self.producer.try_push(entry) is room
            if room:
                self.expected.append(entry)

    @precondition(lambda self: self.expected)
    @rule(data=st.data())
    def take(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, len(self.expected)))):
            assert self.consumer.take() == self.expected.popleft()
            self.taken += 1

    @precondition(lambda self: not self.expected)
    @rule()
    def take_what_was_not_announced(self) -> None:
        with pytest.raises(RingCorrupt, match=f"counted entry {self.taken}, the ring ends at {self.taken}"):
            self.consumer.take()

    @rule()
    def look_again(self) -> None:
        self.producer = Producer(self.memory, COMMANDS_AT, Command)
        self.consumer = Consumer(self.memory, COMMANDS_AT, Command)

    @invariant()
    def the_producer_knows_what_was_taken(self) -> None:
        assert self.producer.taken == self.taken


TestRing = RingMachine.TestCase
TestRing.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_full_ring_says_no_and_keeps_what_it_has() -> None:
    memory = page()
    producer, consumer = Producer(memory, COMMANDS_AT, Command), Consumer(memory, COMMANDS_AT, Command)
    pushed = [producer.try_push(Command(n, n, 0, 1, 0, 64)) for n in range(RING_ENTRIES + 1)]
    assert pushed == [True] * RING_ENTRIES + [False]
    assert [consumer.take().sequence for _ in range(RING_ENTRIES)] == list(range(RING_ENTRIES))


def test_the_two_rings_of_a_link_do_not_touch() -> None:
    memory = page()
    there, back = Producer(memory, COMMANDS_AT, Command), Producer(memory, COMPLETIONS_AT, Completion)
    for n in range(RING_ENTRIES):
        assert there.try_push(Command(n, 1, 1, 1, 1, 1))
        assert back.try_push(Completion(n, 2, 2, 2, 2, 2))
    commands, completions = Consumer(memory, COMMANDS_AT, Command), Consumer(memory, COMPLETIONS_AT, Completion)
    for n in range(RING_ENTRIES):
        assert commands.take() == Command(n, 1, 1, 1, 1, 1)
        assert completions.take() == Completion(n, 2, 2, 2, 2, 2)


def test_the_producer_sees_when_the_last_entry_was_taken() -> None:
    """By the clock that both processes share: a worker that executes too long is found by it."""
    memory = page()
    producer, consumer = Producer(memory, COMMANDS_AT, Command), Consumer(memory, COMMANDS_AT, Command)
    assert producer.taken_ns == 0
    times = []
    for n in range(2):
        assert producer.try_push(Command(n, 0, 0, 1, 0, 0))
        before = time.monotonic_ns()
        consumer.take()
        assert before <= producer.taken_ns <= time.monotonic_ns()
        times.append(producer.taken_ns)
    assert producer.taken == 2
    assert times == sorted(times)


def test_a_tail_further_ahead_than_the_ring_is_long_is_refused() -> None:
    """What a broken producer leaves is not read as entries."""
    memory = page()
    consumer = Consumer(memory, COMMANDS_AT, Command)
    memory[COMMANDS_AT : COMMANDS_AT + 8] = (RING_ENTRIES + 1).to_bytes(8, "little")
    with pytest.raises(RingCorrupt):
        consumer.take()

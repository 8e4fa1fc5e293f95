"""The ring against a queue from the standard library, far past its own length."""

from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ringserve.shm.layout import COMMANDS_AT, COMPLETIONS_AT, LINK_BYTES, RING_ENTRIES
from ringserve.shm.ring import Consumer, Entry, Producer
from ringserve.shm.shm_errors import RingCorrupt

words = st.integers(0, 2**64 - 1)
entries = st.builds(Entry, words, words, words, words)


def page() -> memoryview:
    return memoryview(bytearray(LINK_BYTES))


class RingMachine(RuleBasedStateMachine):
    """Any order of pushes and takes; both ends may be made anew from what the memory says."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = page()
        self.producer = Producer(self.memory, COMMANDS_AT)
        self.consumer = Consumer(self.memory, COMMANDS_AT)
        self.expected: deque[Entry] = deque()
        self.taken = 0

    @rule(batch=st.lists(entries, min_size=1, max_size=2 * RING_ENTRIES))
    def push(self, batch: list[Entry]) -> None:
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
        self.producer = Producer(self.memory, COMMANDS_AT)
        self.consumer = Consumer(self.memory, COMMANDS_AT)

    @invariant()
    def the_producer_knows_what_was_taken(self) -> None:
        assert self.producer.taken == self.taken


TestRing = RingMachine.TestCase
TestRing.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_a_full_ring_says_no_and_keeps_what_it_has() -> None:
    memory = page()
    producer, consumer = Producer(memory, COMMANDS_AT), Consumer(memory, COMMANDS_AT)
    assert [producer.try_push(Entry(n, n, 1)) for n in range(RING_ENTRIES + 1)] == [True] * RING_ENTRIES + [False]
    assert [consumer.take().sequence for _ in range(RING_ENTRIES)] == list(range(RING_ENTRIES))


def test_the_two_rings_of_a_link_do_not_touch() -> None:
    memory = page()
    there, back = Producer(memory, COMMANDS_AT), Producer(memory, COMPLETIONS_AT)
    for n in range(RING_ENTRIES):
        assert there.try_push(Entry(n, 1, 1, 1))
        assert back.try_push(Entry(n, 2, 2, 2))
    ends = Consumer(memory, COMMANDS_AT), Consumer(memory, COMPLETIONS_AT)
    for n in range(RING_ENTRIES):
        assert [end.take() for end in ends] == [Entry(n, 1, 1, 1), Entry(n, 2, 2, 2)]


def test_a_tail_further_ahead_than_the_ring_is_long_is_refused() -> None:
    """What a broken producer leaves is not read as entries."""
    memory = page()
    consumer = Consumer(memory, COMMANDS_AT)
    memory[COMMANDS_AT : COMMANDS_AT + 8] = (RING_ENTRIES + 1).to_bytes(8, "little")
    with pytest.raises(RingCorrupt):
        consumer.take()

"""A single-producer, single-consumer ring of fixed entries in shared memory.

`tail` counts what was ever pushed and is written by the producer alone; `head` counts what was ever taken and is written by
the consumer alone. Full is an answer, not an exception. The consumer takes only as many entries as its doorbell counted:
it reads `tail` to check the doorbell, never to learn of an entry.
"""

import time
from collections.abc import Callable
from typing import Generic, NamedTuple, TypeVar

from ringserve.shm.layout import (
    COMMAND,
    COMPLETION,
    ENTRIES_AT,
    ENTRY_BYTES,
    HEAD_AT,
    RING_BYTES,
    RING_ENTRIES,
    STARTED_AT,
    TAIL_AT,
    WORD,
)
from ringserve.shm.shm_errors import RingCorrupt

_MASK = RING_ENTRIES - 1


class Command(NamedTuple):
    """A batch: rows `first` to `first + rows` of a slab. `sequence` numbers the batches of a link from 0. The answers' bytes
    may take `out_bytes` of the slab's outgoing byte region, from `out_at` on."""

    sequence: int
    slab: int
    first: int
    rows: int
    out_at: int
    out_bytes: int


class Completion(NamedTuple):
    """What a worker says about batch `sequence`: that it is finished, or (by `status`) that a chunk of a streamed answer lies
    in the slab's outgoing byte region. A finished one was taken up, began and ended to be executed at the last three times
    (CLOCK_MONOTONIC), of which the last two are 0 when no row of it was wanted. The model was called so often for it (`executions`,
    without what was tried again), with so many `items` in all: rows, or what requests have in their batch dimension."""

    sequence: int
    slab: int
    rows: int
    status: int = 0
    chunk_at: int = 0
    chunk_bytes: int = 0
    executions: int = 0
    items: int = 0
    taken_ns: int = 0
    began_ns: int = 0
    ended_ns: int = 0


Entry = TypeVar("Entry", Command, Completion)
_STRUCTS = {Command: COMMAND, Completion: COMPLETION}


class Producer(Generic[Entry]):
    """The only writer of `tail` and of the entries: one per ring, in one process."""

    def __init__(self, memory: memoryview, ring_at: int, kind: type[Entry]) -> None:
        self._memory = memory
        self._words = memory[ring_at : ring_at + RING_BYTES].cast("Q")
        self._entries_at = ring_at + ENTRIES_AT
        self._tail = self._words[TAIL_AT // WORD]
        self._pack = _STRUCTS[kind].pack_into

    def try_push(self, entry: Entry) -> bool:
        """Append `entry`; False when the ring is full. The caller rings the doorbell afterwards. Raises `RingCorrupt`."""
        head = self._words[HEAD_AT // WORD]  # SYNC slot-free: pairs with Consumer.take
        if not 0 <= self._tail - head <= RING_ENTRIES:
            raise RingCorrupt(f"the consumer says it took {head} entries of {self._tail}")
        if self._tail - head == RING_ENTRIES:
            return False
        self._pack(self._memory, self._entries_at + (self._tail & _MASK) * ENTRY_BYTES, *entry)
        self._tail += 1
        self._words[TAIL_AT // WORD] = self._tail  # SYNC entry-visible: the doorbell follows; pairs with Consumer.take
        return True

    @property
    def taken(self) -> int:
        """How many entries the consumer ever took: after its death, this many batches had been started."""
        return self._words[HEAD_AT // WORD]

    @property
    def taken_ns(self) -> int:
        """When the consumer took the last of them, or last said that it is at work (CLOCK_MONOTONIC); 0 before the first."""
        return self._words[STARTED_AT // WORD]


class Consumer(Generic[Entry]):
    """The only writer of `head`: one per ring, in one process."""

    def __init__(self, memory: memoryview, ring_at: int, kind: type[Entry]) -> None:
        self._memory = memory
        self._words = memory[ring_at : ring_at + RING_BYTES].cast("Q")
        self._entries_at = ring_at + ENTRIES_AT
        self._head = self._words[HEAD_AT // WORD]
        self._make: Callable[..., Entry] = kind
        self._unpack = _STRUCTS[kind].unpack_from

    def take(self) -> Entry:
        """The next entry, which the doorbell has counted. Raises `RingCorrupt` when it is not there."""
        if not 0 < self._words[TAIL_AT // WORD] - self._head <= RING_ENTRIES:
            raise RingCorrupt(
                f"the doorbell counted entry {self._head}, the ring ends at {self._words[TAIL_AT // WORD]}"
            )
        entry = self._make(*self._unpack(self._memory, self._entries_at + (self._head & _MASK) * ENTRY_BYTES))
        self._head += 1
        self._words[STARTED_AT // WORD] = time.monotonic_ns()
        self._words[HEAD_AT // WORD] = self._head  # SYNC slot-free: pairs with Producer.try_push
        return entry

    def touch(self) -> None:
        """The consumer is at work, for somebody else: it has not forgotten what waits here."""
        self._words[STARTED_AT // WORD] = time.monotonic_ns()

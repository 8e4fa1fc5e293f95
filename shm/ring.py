"""A single-producer, single-consumer ring of fixed entries in shared memory.

`tail` counts what was ever pushed and is written by the producer alone; `head` counts what was ever taken and is written by
the consumer alone. Full is an answer, not an exception. The consumer takes only as many entries as its doorbell counted:
it reads `tail` to check the doorbell, never to learn of an entry.
"""

from typing import NamedTuple

from ringserve.shm.layout import ENTRIES_AT, ENTRY, HEAD_AT, RING_BYTES, RING_ENTRIES, TAIL_AT, WORD
from ringserve.shm.shm_errors import RingCorrupt

_MASK = RING_ENTRIES - 1


class Entry(NamedTuple):
    """`sequence` numbers the batches of a link from 0; `status` is 0 for a batch that was executed."""

    sequence: int
    slab: int
    rows: int
    status: int = 0


class Producer:
    """The only writer of `tail` and of the entries: one per ring, in one process."""

    def __init__(self, memory: memoryview, ring_at: int) -> None:
        self._memory = memory
        self._words = memory[ring_at : ring_at + RING_BYTES].cast("Q")
        self._entries_at = ring_at + ENTRIES_AT
        self._tail = self._words[TAIL_AT // WORD]

    def try_push(self, entry: Entry) -> bool:
        """Append `entry`; False when the ring is full. The caller rings the doorbell afterwards."""
        head = self._words[HEAD_AT // WORD]  # SYNC slot-free: pairs with Consumer.take
        assert 0 <= self._tail - head <= RING_ENTRIES
        if self._tail - head == RING_ENTRIES:
            return False
        ENTRY.pack_into(self._memory, self._entries_at + (self._tail & _MASK) * ENTRY.size, *entry)
        self._tail += 1
        self._words[TAIL_AT // WORD] = self._tail  # SYNC entry-visible: the doorbell follows; pairs with Consumer.take
        return True

    @property
    def taken(self) -> int:
        """How many entries the consumer ever took: after its death, this many batches had been started."""
        return self._words[HEAD_AT // WORD]


class Consumer:
    """The only writer of `head`: one per ring, in one process."""

    def __init__(self, memory: memoryview, ring_at: int) -> None:
        self._memory = memory
        self._words = memory[ring_at : ring_at + RING_BYTES].cast("Q")
        self._entries_at = ring_at + ENTRIES_AT
        self._head = self._words[HEAD_AT // WORD]

    def take(self) -> Entry:
        """The next entry, which the doorbell has counted. Raises `RingCorrupt` when it is not there."""
        if not 0 < self._words[TAIL_AT // WORD] - self._head <= RING_ENTRIES:
            raise RingCorrupt(
                f"the doorbell counted entry {self._head}, the ring ends at {self._words[TAIL_AT // WORD]}"
            )
        entry = Entry(*ENTRY.unpack_from(self._memory, self._entries_at + (self._head & _MASK) * ENTRY.size))
        self._head += 1
        self._words[HEAD_AT // WORD] = self._head  # SYNC slot-free: pairs with Producer.try_push
        return entry

"""How many requests of a version may wait: `job_queue_size`, exact over all front ends.

With one front end this is an integer. With more, the counts of all lie in one page of shared memory, a word for each and
written by that one alone. Who wants a place claims it first, by raising its own count, and adds up all counts afterwards; above
the size, it withdraws. Of those who are let in, the one that claimed last has seen the claims of all the others, hence there are
never more than the size.

That needs a claim to be visible before the counts of the others are read, and a processor may let a load overtake an earlier
store. A lock of this process alone, released and taken again, is the fence: a release is never overtaken by the acquire that
follows it. (Measured with two front ends: 0.2 µs a request, of which the fence is 0.07.)

Two claims may meet at the last place and both withdraw. Each then looks again, without a claim of its own, and tries once more
if there is room: the one that withdrew last sees it.
"""

import threading

from ringserve.shm.layout import (
    QUEUE_LINE_WORDS,
    QUEUE_MAGIC,
    check_header,
    queue_count_at,
    queue_front_ends,
    queue_page_bytes,
    write_header,
)
from ringserve.shm.segment import Segment

# Two that meet at the last place part after one or two tries, three sometimes need more than eight; this many take 0.4 ms.
TRIES_MAX = 1000

_fence = threading.Lock()
_fence.acquire()
_release, _acquire = _fence.release, _fence.acquire


class Admission:
    """The places of one version, as one front end sees them. `waiting` is how many it holds itself; only `Admission` writes it."""

    __slots__ = ("_all_counts", "_own_at", "_words", "capacity", "waiting")

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.waiting = 0
        self._words: memoryview | None = None  # of the page, once there are several front ends
        self._all_counts: memoryview | None = None
        self._own_at = 0

    def share(self, page: memoryview, own: int) -> None:
        """From here on the places are counted together with the other front ends, of which this one is number `own`. Keeps the
        memory of `page`. Raises `LayoutMismatch`."""
        check_header(page, QUEUE_MAGIC, 0)
        self._words, self._own_at = page.cast("Q"), queue_count_at(own)
        self._all_counts = _counts(self._words)
        self._words[self._own_at] = self.waiting

    def unshare(self) -> None:
        """Let go of the page, when the version has left and nothing waits."""
        self._words = self._all_counts = None

    @property
    def total(self) -> int:
        """How many wait in all front ends."""
        return self.waiting if self._all_counts is None else sum(self._all_counts)

    def try_enter(self, places: int = 1) -> bool:
        """Take so many places; False, and none taken, when there are fewer."""
        claimed, words, counts = self.waiting + places, self._words, self._all_counts
        if words is None or counts is None:
            if claimed > self.capacity:
                return False
            self.waiting = claimed
            return True
        for _ in range(TRIES_MAX):
            words[self._own_at] = claimed
            _release()
            _acquire()
            if sum(counts) <= self.capacity:
                self.waiting = claimed
                return True
            words[self._own_at] = claimed - places
            _release()
            _acquire()
            if sum(counts) + places > self.capacity:
                return False
        return False

    def enter(self, count: int) -> None:
        """Take places whether there are any or not: for what had been let in before and comes back."""
        self.waiting += count
        if self._words is not None:
            self._words[self._own_at] = self.waiting

    def leave(self, count: int = 1) -> None:
        assert 0 <= count <= self.waiting, f"{count} of {self.waiting} leave"
        self.waiting -= count
        if self._words is not None:
            self._words[self._own_at] = self.waiting


class QueuePage:
    """The page of one version, as its maker sees it: the supervisor, which writes to it only for the dead."""

    def __init__(self, front_ends: int) -> None:
        """Raises `OutOfSharedMemory`."""
        self._segment = Segment.create(queue_page_bytes(front_ends))
        write_header(self._segment.view, QUEUE_MAGIC, 0)
        self._words = self._segment.view.cast("Q")

    @property
    def fd(self) -> int:
        return self._segment.fd

    @property
    def total(self) -> int:
        return sum(_counts(self._words))

    def say(self, front_end: int, count: int) -> None:
        """For a front end that does not run."""
        self._words[queue_count_at(front_end)] = count

    def clear(self, front_end: int) -> None:
        """What waited in a front end that is gone waits no more. Its successor must not have been told of the page yet."""
        self._words[queue_count_at(front_end)] = 0

    def close(self) -> None:
        self._words.release()
        self._segment.close()


def _counts(words: memoryview) -> memoryview:
    return words[queue_count_at(0) : queue_count_at(queue_front_ends(words.nbytes)) : QUEUE_LINE_WORDS]

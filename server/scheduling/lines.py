"""What waits in lines of different priority, and what of it leaves together. Pure: no slab, no event loop; the time is an argument.

    add ─▶ a line per level, first in first out ─▶ choose: the first ones that fit together, up to a batch
                 └─ expire: refused, or behind the line of its level

A request of several items is never parted. The walk from the head of the first line on stops at the first request that does not fit to
those before it: later ones do not overtake it, so nobody waits for ever within a level.
"""

import bisect
import heapq
import itertools
from collections.abc import Hashable, Iterator
from typing import NamedTuple

from ringserve.server.batching import WaitUntil
from ringserve.server.scheduling.rules import NS_OF_US, Scheduling

# Times of entries that have left lie in the heap until somebody looks: from so many on, and when most of them are, they are thrown away.
SWEEP_MIN = 1024


class Entry:
    """A request in the lines. `items` count towards the size of a batch, and only entries with equal `key` fit together."""

    __slots__ = ("arrived_ns", "expires_ns", "items", "key", "late", "level", "present")

    def __init__(self, arrived_ns: int, level: int = 0, expires_ns: int = 0) -> None:
        self.arrived_ns = arrived_ns
        self.level = level
        self.expires_ns = expires_ns  # 0: never
        self.items = 1
        self.key: Hashable = None
        self.late = False  # its time is over, and it is behind its line
        self.present = False  # in the lines


class Leave(NamedTuple):
    """These leave now, together. `closed`: no later arrival could have joined them."""

    entries: list[Entry]
    closed: bool


class Lines:
    """The lines of one version. A batch has at most `items_max` items."""

    def __init__(self, rules: Scheduling, items_max: int) -> None:
        self._rules = rules
        self._items_max = items_max
        wanted = tuple(size for size in rules.preferred_batch_sizes if size <= items_max) or (items_max,)
        self._preferred = frozenset(wanted)
        self._preferred_max = max(wanted)
        self._delay_ns = rules.queue_delay_us_max * NS_OF_US
        # Those levels that somebody waits in, of any number that there may be. Dictionaries are lines from whose middle it costs nothing
        # to leave; each level has one more, for those whose time is over.
        self._lines: dict[int, tuple[dict[Entry, None], dict[Entry, None]]] = {}
        self._levels: list[int] = []  # the same, ascending
        self._times: list[tuple[int, int, Entry]] = []
        self._numbers = itertools.count()
        self._sweep_at = SWEEP_MIN
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Entry]:
        """In the order in which they would leave."""
        for level in self._levels:
            line, late = self._lines[level]
            yield from line
            yield from late

    def is_full(self, level: int) -> bool:
        """Whether as many wait in this level as its policy lets."""
        most = self._rules.policy_of(level).queue_size_max
        if not most or level not in self._lines:
            return False
        line, late = self._lines[level]
        return len(line) + len(late) >= most

    def add(self, entry: Entry) -> None:
        """To the end of the line of its level."""
        assert not entry.present
        entry.present = True
        lines = self._lines.get(entry.level)
        if lines is None:
            lines = self._lines[entry.level] = {}, {}
            bisect.insort(self._levels, entry.level)
        lines[0][entry] = None
        self._count += 1
        if entry.expires_ns:
            heapq.heappush(self._times, (entry.expires_ns, next(self._numbers), entry))
            if len(self._times) >= self._sweep_at:
                self._times = [each for each in self._times if each[2].present]
                heapq.heapify(self._times)
                self._sweep_at = max(SWEEP_MIN, 2 * len(self._times))

    def remove(self, entry: Entry) -> None:
        """It leaves, in a batch or because nobody waits for it."""
        assert entry.present
        entry.present = False
        lines = self._lines[entry.level]
        del lines[entry.late][entry]
        self._count -= 1
        if not lines[0] and not lines[1]:
            del self._lines[entry.level]
            self._levels.remove(entry.level)

    # ---- time

    @property
    def expires_ns(self) -> int:
        """When the next one's time is over; 0: nobody's will be."""
        times = self._times
        while times and not times[0][2].present:
            heapq.heappop(times)
        return times[0][0] if times else 0

    def expire(self, now_ns: int) -> list[Entry]:
        """Those who have waited too long: the ones that are to be refused, which have left; others go behind their line."""
        refused = []
        while 0 < self.expires_ns <= now_ns:
            entry = heapq.heappop(self._times)[2]
            line, late = self._lines[entry.level]
            if self._rules.policy_of(entry.level).delays:
                del line[entry]
                late[entry] = None
                entry.late = True
            else:
                self.remove(entry)
                refused.append(entry)
        return refused

    # ---- what leaves

    def choose(self, now_ns: int, *, ahead: bool = False) -> Leave | WaitUntil | None:
        """What leaves now to a free worker, or when to ask again; nothing changes. Call `expire` before. `ahead`: the worker still
        computes and would find the batch in its ring: only one that no arrival could make better leaves then."""
        if not self._count:
            return None
        if not self._rules.batches:
            return Leave([next(iter(self))], closed=True)
        return self._weighed(*self._gathered(), now_ns, ahead)

    def _gathered(self) -> tuple[list[Entry], int, bool]:
        """From the head on, those who fit together; how many of them make the greatest preferred size, or are what fits below it where
        none is met (0: not so many wait), and whether somebody was met who does not fit."""
        gathered: list[Entry] = []
        total = preferred = 0
        for entry in self:
            if gathered and (total + entry.items > self._items_max or entry.key != gathered[0].key):
                return gathered, preferred, True
            if not preferred and 0 < total < self._preferred_max < total + entry.items:
                preferred = len(gathered)
            total += entry.items
            gathered.append(entry)
            if total in self._preferred:
                preferred = len(gathered)
            if total >= self._items_max:
                return gathered, preferred, True
        return gathered, preferred, False

    def _weighed(
        self, gathered: list[Entry], preferred: int, closed: bool, now_ns: int, ahead: bool
    ) -> Leave | WaitUntil | None:
        oldest_ns = min(entry.arrived_ns for entry in gathered)
        waited = self._delay_ns > 0 and now_ns >= oldest_ns + self._delay_ns
        if preferred and not waited:
            return Leave(gathered[:preferred], closed=True)
        if closed or sum(entry.items for entry in gathered) >= self._preferred_max:
            return Leave(gathered, closed=True)
        if ahead:
            return None
        if waited or not self._delay_ns:
            return Leave(gathered, closed=False)
        return WaitUntil(oldest_ns + self._delay_ns)

"""Which worker has which sequence: the one table of a version, in the supervisor. Pure: what happened and the time come in, messages
to front ends go out.

    asked for ─▶ waits for a worker ─▶ lives on one ─▶ closing ─▶ gone          its id may be asked for anew
                        └──────────────────┴──────────────────▶ gone            nobody holds it, or its worker is gone

A front end that has a sequence's requests holds it, and gives them to its worker without asking again. Hence a sequence that ends
for another reason than that nobody holds it, or that its worker is gone, is closing until every holder has left it; who asks for
it meanwhile waits, and a worker never has requests of it beside another. What a front end says of a sequence names its number, so
that it is never taken for one that had the same id before.
"""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from ringserve.server.control import GrantSequence, RefuseSequence, RevokeSequence, SequenceEnded, SequenceTold

NS_OF_MS = 1_000_000
ENDED = "the sequence has ended"
UNKNOWN = "there is no such sequence"
TOO_LONG = "the sequence has lasted longer than sequenceTimeoutMSec"
WORKER_DIED = "the worker that had the sequence died"
WORKER_LEAVES = "the worker that had the sequence was stopped"


@dataclass(frozen=True, slots=True)
class Limits:
    """Of one version: how many sequences, how long one lives in all (0: for ever), and how long a silent one. With `places`, each worker
    takes so many, and others wait; with `slotted`, each has a number among those of its worker."""

    sequences_max: int
    idle_ns_max: int
    life_ns_max: int = 0
    places: int = 0
    slotted: bool = False


@dataclass(frozen=True, slots=True)
class Asking:
    """A front end's question, for a request to the version with this key."""

    front_end: int
    key: int
    sequence_id: str
    token: int
    begins: bool = True


@dataclass(eq=False, slots=True)
class Living:
    """One sequence. `holders` are front ends; without any, it lives until `silent_until_ns`."""

    number: int
    sequence_id: str
    ends_ns: int  # 0: never
    worker_id: str = ""  # "": there is room on none yet
    slot: int = 0  # its place among those of its worker
    holders: dict[int, Asking] = field(default_factory=dict)  # front end -> as what it asked last
    silent_until_ns: int = 0
    closing: bool = False
    enders: list[tuple[int, int, int]] = field(default_factory=list)  # who asked for its end: front end, version, token
    asking: list[Asking] = field(default_factory=list)  # for the next one of this id


class SequenceTable:
    """The sequences of version `key`. Whoever calls takes `outbox` and `again` afterwards: messages to front ends, and what is to be
    asked once more."""

    def __init__(self, key: int, limits: Limits) -> None:
        self.key = key
        self.limits = limits
        self.workers_min = 1
        self.outbox: list[tuple[int, SequenceTold]] = []
        self.again: list[Asking] = []
        self._workers: dict[str, set[int]] = {}  # the numbers of their sequences
        self._leaving: set[str] = set()
        self._by_id: dict[str, Living] = {}
        self._by_number: dict[int, Living] = {}  # the oldest first
        self._waiting: dict[int, Living] = {}  # for a worker
        self._silent: dict[int, Living] = {}  # that nobody holds, in the order in which they end
        self._last_number = 0

    def __len__(self) -> int:
        return len(self._by_id)

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self._by_id

    def __iter__(self) -> Iterator[Living]:
        return iter(self._by_number.values())

    @property
    def per_worker_max(self) -> int:
        """TorchServe divides the sequences by `minWorkers` and rounds down, and then takes in more of them than its workers ever get
        to: with 5 sequences and 2 workers the fifth waits for another's end. Rounded up, each that is taken in has a place."""
        return self.limits.places or max(1, -(-self.limits.sequences_max // max(1, self.workers_min)))

    def count_on(self, worker_id: str) -> int:
        return len(self._workers.get(worker_id, ()))

    # ---- front ends

    def ask(self, asking: Asking, reachable: Collection[str], now_ns: int) -> None:
        """By a front end that is linked with these workers."""
        living = self._by_id.get(asking.sequence_id)
        if living is None:
            living = self._begin(asking, reachable, now_ns)
            if living is None:
                return
        elif living.closing:
            living.asking.append(asking)
            return
        elif living.worker_id and living.worker_id not in reachable:
            self._refuse(asking, "its worker cannot be reached by this front end")
            return
        living.holders[asking.front_end] = asking
        self._silent.pop(living.number, None)
        self._grant(living, asking)

    def _begin(self, asking: Asking, reachable: Collection[str], now_ns: int) -> Living | None:
        if not asking.begins:
            self._refuse(asking, UNKNOWN, unknown=True)
            return None
        if len(self._by_id) >= self.limits.sequences_max:
            cause = f"{len(self._by_id)} sequences live, maxNumSequence is {self.limits.sequences_max}"
            self._refuse(asking, cause)
            return None
        self._last_number += 1
        life_ns = self.limits.life_ns_max
        living = Living(self._last_number, asking.sequence_id, now_ns + life_ns if life_ns else 0)
        self._by_id[asking.sequence_id] = self._by_number[living.number] = living
        if not self._place(living, reachable):
            self._waiting[living.number] = living
        return living

    def release(self, front_end: int, number: int, token: int) -> None:
        """It has been silent there for long."""
        living = self._by_number.get(number)
        if living is not None and front_end in living.holders and living.holders[front_end].token == token:
            self.left(front_end, number)

    def left(self, front_end: int, number: int) -> None:
        """As it was told to by `RevokeSequence`."""
        living = self._by_number.get(number)
        if living is not None and living.holders.pop(front_end, None) is not None and not living.holders:
            self._remove(living)

    def end(
        self, front_end: int, key: int, token: int, number: int, sequence_id: str = "", worker_id: str = ""
    ) -> None:
        """Its last request is answered. Known by its number, or by its id on that worker."""
        living = self._by_number.get(number)
        if living is None and not number:
            found = self._by_id.get(sequence_id)
            living = found if found is not None and found.worker_id == worker_id else None
        if living is None:
            self._say(front_end, SequenceEnded(key, token))
            return
        living.enders.append((front_end, key, token))
        if number:
            living.holders.pop(front_end, None)
        self._close(living, ENDED)

    def front_end_gone(self, front_end: int, now_ns: int) -> None:
        """Its clients connect to another one, which has as long as a silence may last to ask for their sequences."""
        for living in list(self):
            living.enders = [each for each in living.enders if each[0] != front_end]
            living.asking = [each for each in living.asking if each.front_end != front_end]
            if living.holders.pop(front_end, None) is None or living.holders:
                continue
            if living.closing or not living.worker_id:
                self._remove(living)
            else:
                living.silent_until_ns = now_ns + self.limits.idle_ns_max
                self._silent[living.number] = living

    # ---- workers

    def worker_ready(self, worker_id: str) -> None:
        """It takes sequences from now on."""
        self._workers.setdefault(worker_id, set())
        self._leaving.discard(worker_id)
        self._place_waiting()

    def worker_leaving(self, worker_id: str) -> None:
        """It keeps those that it has and gets no new ones."""
        if worker_id in self._workers:
            self._leaving.add(worker_id)

    def evict(self, worker_id: str) -> None:
        """It has had long enough to lose its sequences by itself."""
        for number in list(self._workers.get(worker_id, ())):
            self._close(self._by_number[number], WORKER_LEAVES)

    def worker_gone(self, worker_id: str) -> None:
        """What it knew of its sequences is lost. Front ends that are linked with it have been told before; another one, that could not
        be when it got the sequence, hears of it here."""
        self._leaving.discard(worker_id)
        for number in self._workers.pop(worker_id, ()):
            living = self._by_number[number]
            for front_end in living.holders:
                self._say(front_end, RevokeSequence(self.key, number, WORKER_DIED))
            self._forget(living)
        self._place_waiting()

    def _place(self, living: Living, reachable: Collection[str]) -> bool:
        """On the worker with the fewest sequences."""
        best, fewest = "", self.per_worker_max
        for worker_id, numbers in self._workers.items():
            if len(numbers) < fewest and worker_id not in self._leaving and worker_id in reachable:
                best, fewest = worker_id, len(numbers)
        if best:
            if self.limits.slotted:
                taken = {self._by_number[number].slot for number in self._workers[best]}
                living.slot = next(slot for slot in itertools.count() if slot not in taken)
            self._workers[best].add(living.number)
            living.worker_id = best
        return bool(best)

    def _place_waiting(self) -> None:
        for number, living in list(self._waiting.items()):
            if not self._place(living, self._workers):
                return
            del self._waiting[number]
            for asking in living.holders.values():
                self._grant(living, asking)

    # ---- time

    @property
    def due_ns(self) -> int:
        """When `look` has something to do; 0: never."""
        oldest = next((each.ends_ns for each in self if not each.closing), 0)
        silent = next((each.silent_until_ns for each in self._silent.values()), 0)
        return min((each for each in (oldest, silent) if each), default=0)

    def look(self, now_ns: int) -> None:
        """End what has lasted too long, and what nobody came back to."""
        for living in list(self._silent.values()):
            if living.silent_until_ns > now_ns:
                break
            self._remove(living)
        over = []
        for living in self:
            if not living.closing:
                if not 0 < living.ends_ns <= now_ns:
                    break
                over.append(living)
        for living in over:
            self._close(living, TOO_LONG)

    # ---- the end of one

    def _close(self, living: Living, cause: str) -> None:
        """It is gone when every front end that holds it has left it."""
        if not living.closing:
            living.closing = True
            for front_end in living.holders:
                self._say(front_end, RevokeSequence(self.key, living.number, cause))
        if not living.holders:
            self._remove(living)

    def _remove(self, living: Living) -> None:
        """Its place is another's."""
        if living.worker_id:
            self._workers[living.worker_id].discard(living.number)
        self._forget(living)
        self._place_waiting()

    def _forget(self, living: Living) -> None:
        del self._by_id[living.sequence_id], self._by_number[living.number]
        self._waiting.pop(living.number, None)
        self._silent.pop(living.number, None)
        for front_end, key, token in living.enders:
            self._say(front_end, SequenceEnded(key, token))
        self.again += living.asking

    # ---- what is said

    def _grant(self, living: Living, asking: Asking) -> None:
        number, worker_id = living.number, living.worker_id
        self._say(
            asking.front_end,
            GrantSequence(asking.key, asking.sequence_id, asking.token, number, worker_id, self.key, living.slot),
        )

    def _refuse(self, asking: Asking, cause: str, *, unknown: bool = False) -> None:
        self._say(asking.front_end, RefuseSequence(asking.key, asking.sequence_id, asking.token, cause, unknown))

    def _say(self, front_end: int, message: SequenceTold) -> None:
        self.outbox.append((front_end, message))

"""The sequences of one version in one front end, and their requests that no worker has been given yet. No event loop, no links:
dispatcher.py has those.

    accept ─▶ the sequence's own queue ─▶ next_batch_for(its worker): one request of each sequence, into a fresh slab

Requests wait encoded outside of slabs, for a slab belongs to one worker's batch, and nobody knows before that worker is free whose
requests will be in it. What is to be said to the supervisor is in `outbox`.
"""

import itertools
import time
from collections import deque
from collections.abc import Sequence as Several

from ringserve.protocol.errors import OutOfResources, RingServeError, SequenceRejected, WorkerLost
from ringserve.protocol.request import Answer, InferRequest
from ringserve.protocol.tensor import Signature
from ringserve.server.admission import Admission
from ringserve.server.batching import BatchPolicy, Decision, Hold, WaitUntil
from ringserve.server.control import (
    AskSequence,
    EndSequence,
    GrantSequence,
    RefuseSequence,
    ReleaseSequence,
    RevokeSequence,
    SequenceLeft,
    SequenceRules,
    SequenceSaid,
)
from ringserve.server.inflight import OVER, SENT, Batch, Fill, Pending
from ringserve.server.sequences.table import NS_OF_MS
from ringserve.server.slab_queue import SlabQueue
from ringserve.shm.lane import Lane
from ringserve.shm.shm_errors import OutOfSharedMemory
from ringserve.shm.spool import Spool

WORKER_GONE = "Worker died. The sequence of this request has ended with it."
_tokens = itertools.count(1)  # of all versions: requests of one may get to another
ENDING = "its last request has come already"
HAS_ENDED = "it has ended"


class SequencePending(Pending):
    """A request of a sequence. `last`: the client says that the sequence ends with it. Its answer is `held` until the end is known
    everywhere (`ends_left`), where somebody `holds` it: a client that has it may begin the next sequence of that id at once, with
    another front end."""

    sequence: "Sequence"
    arrived_ns = 0
    first = True  # it may begin one
    last = False
    holds = False
    end_header = ""
    ended: Several[str] = ()  # the sequences that the response says have ended
    ends_left = 0
    held: Answer | None = None

    def set_result(self, result: Answer) -> None:
        """Answer, or keep the answer for `let_go`."""
        if result.headers:
            self.ended = _named(result, self.end_header)
        if self.holds and (self.last or self.ended) and self.stream is None:
            self.held = result
        else:
            super().set_result(result)

    def let_go(self) -> None:
        """Everybody knows what there was to know."""
        answer, self.held = self.held, None
        if answer is None:
            return
        if not self.done():
            super().set_result(answer)
        elif answer.source is not None:
            answer.source.close()


def _named(answer: Answer, header: str) -> list[str]:
    """The sequences that a response ends; `header` is in lower case."""
    said = next((value for name, value in (answer.headers or {}).items() if name.lower() == header), "")
    return [each for each in (part.strip() for part in said.split(";")) if each]


class Sequence:
    """One that requests have come of. `number` is 0 and `worker_id` empty until the supervisor has said, to the question `token`.
    `sent`: its worker has a request of it from here. `touched`: it has had one before."""

    __slots__ = (
        "ending",
        "number",
        "over",
        "queued",
        "sent",
        "sequence_id",
        "slot",
        "token",
        "touched",
        "waiting",
        "worker_id",
    )

    def __init__(self, sequence_id: str, token: int = 0) -> None:
        self.sequence_id = sequence_id
        self.token = token
        self.number = self.slot = 0
        self.worker_id = ""
        self.waiting: deque[SequencePending] = deque()
        self.sent = self.touched = False
        self.queued = False  # among those that wait for their worker's next batch
        self.ending = False  # its last request has come
        self.over = False


class SequenceQueue(SlabQueue):
    """In place of the open slab, a queue for each sequence. `rules` are those of version `key`; with `shared`, other front ends have
    requests of the same sequences."""

    def __init__(
        self, label: str, policy: BatchPolicy, admission: Admission, key: int, rules: SequenceRules, *, shared: bool
    ) -> None:
        super().__init__(label, policy, admission)
        self.outbox: list[SequenceSaid] = []
        self._key = key
        self._rules = rules
        self._shared = shared
        self._sequences: dict[str, Sequence] = {}
        self._by_number: dict[int, Sequence] = {}
        self._turns: dict[str, deque[Sequence]] = {}  # worker -> those of its sequences whose requests wait for it
        self._silent: dict[Sequence, int] = {}  # since when, the longest silent first
        self._enders: dict[int, SequencePending] = {}  # token -> whose answer may wait for that
        self._last_token = 0
        self._starved = False  # there was no slab for a batch

    def __contains__(self, sequence_id: str) -> bool:
        return sequence_id in self._sequences

    def __len__(self) -> int:
        return len(self._sequences)

    # ---- arrivals

    def accept(self, pending: Pending, request: InferRequest, spool: Spool | None) -> None:
        """Take a request in, whose headers name its sequence; its place in the queue has been claimed. Raises `BadRequest`,
        `SequenceRejected`; it has no place then."""
        assert isinstance(pending, SequencePending)
        sequence_id, pending.first, pending.last = self._marks_of(request)
        pending.parcel = spool
        sequence = self._sequences.get(sequence_id)
        if sequence is not None:
            self._check_room(sequence, pending)
        if self._encoder is None:
            pending.request = request
        else:
            self._encode(pending, request)
        if sequence is None:
            sequence = self._sequences[sequence_id] = Sequence(sequence_id)
            self._ask_for(sequence, pending)
        pending.end_header, pending.holds = self._rules.end_header, self._shared
        self._line_up_behind(sequence, pending)

    def _marks_of(self, request: InferRequest) -> tuple[str, bool, bool]:
        """Which sequence a request belongs to, whether it may be the first of it, and whether it is the last."""
        headers, rules = request.headers, self._rules
        return headers[rules.id_header], True, headers.get(rules.end_header, "").lower() == "true"

    def _ask_for(self, sequence: Sequence, first: SequencePending) -> None:
        sequence.token = next(_tokens)
        self.outbox.append(AskSequence(self._key, sequence.sequence_id, sequence.token, first.first))

    def _check_room(self, sequence: Sequence, pending: SequencePending) -> None:
        waiting, most = len(sequence.waiting), self._rules.waiting_max
        cause = ENDING if sequence.ending else ""
        if not cause and waiting >= most:
            cause = f"{waiting} requests of it wait, maxSequenceJobQueueSize is {most}"
        if cause:
            self._admission.leave()
            pending.state = OVER
            pending.close_parcel()
            raise self._rejected(sequence.sequence_id, cause)

    def _rejected(self, sequence_id: str, cause: str) -> SequenceRejected:
        return SequenceRejected(f"{self._label}: sequence {sequence_id!r}: {cause}.")

    def _line_up_behind(self, sequence: Sequence, pending: SequencePending) -> None:
        pending.sequence, pending.arrived_ns = sequence, time.monotonic_ns()
        sequence.ending = sequence.ending or pending.last
        sequence.waiting.append(pending)
        self._silent.pop(sequence, None)
        self._take_turn(sequence)

    def _take_turn(self, sequence: Sequence) -> None:
        if sequence.worker_id and sequence.waiting and not (sequence.sent or sequence.queued):
            sequence.queued = True
            self._turns.setdefault(sequence.worker_id, deque()).append(sequence)

    def _miss_turn(self, sequence: Sequence) -> None:
        if sequence.queued:
            sequence.queued = False
            turn = self._turns[sequence.worker_id]
            turn.remove(sequence)
            if not turn:
                del self._turns[sequence.worker_id]

    def open_row(self, pending: Pending, payload: object) -> list[memoryview] | None:
        """Never in a slab: whose it will be is not known yet."""
        return None

    def drop(self, pending: Pending) -> None:
        """A request that no worker was given is not wanted any more; its place is free at once."""
        assert isinstance(pending, SequencePending)
        assert pending.state is not SENT
        if pending.state is OVER:
            return
        self._take_out(pending)
        self._leave_line(pending)

    def _leave_line(self, pending: SequencePending) -> None:
        sequence = pending.sequence
        sequence.waiting.remove(pending)
        if pending.last:
            sequence.ending = False
        if not sequence.waiting:
            self._miss_turn(sequence)
            self._fall_silent(sequence)

    def _take_out(self, pending: SequencePending) -> None:
        self._admission.leave()
        pending.state = OVER
        pending.payload = pending.request = None
        pending.close_parcel()

    def open_lane(self, lane: Lane, signature: Signature) -> None:
        """The version's memory is here: encode what came early."""
        super().open_lane(lane, signature)
        for sequence in list(self._sequences.values()):
            for pending in list(sequence.waiting):
                self._encode_late(pending)

    def _encode_late(self, pending: SequencePending) -> None:
        if pending.request is None or self._encoder is None:
            return
        request, pending.request = pending.request, None
        try:
            self._encode(pending, request)
        except RingServeError as error:  # it has no place any more
            self._leave_line(pending)
            pending.fail(error)

    # ---- what the supervisor says

    def granted(self, grant: GrantSequence) -> None:
        """Its worker is known, or at least its number. A grant for an earlier question is of a hold that has been released."""
        sequence = self._sequences.get(grant.sequence_id)
        if sequence is None or sequence.token != grant.token:
            return
        sequence.number, sequence.worker_id, sequence.slot = grant.number, grant.worker_id, grant.slot
        self._by_number[grant.number] = sequence
        self._take_turn(sequence)
        self._fall_silent(sequence)

    def refused(self, refusal: RefuseSequence) -> None:
        sequence = self._sequences.get(refusal.sequence_id)
        if sequence is not None and sequence.token == refusal.token:
            self._lose(sequence, self._rejected(sequence.sequence_id, refusal.cause))

    def revoked(self, revocation: RevokeSequence) -> None:
        """What its worker has been given of it is still answered."""
        sequence = self._by_number.get(revocation.number)
        if sequence is not None:
            self._lose(sequence, self._rejected(sequence.sequence_id, revocation.cause))
        self.outbox.append(SequenceLeft(self._key, revocation.number))

    def ended(self, token: int) -> None:
        """Everywhere."""
        pending = self._enders.pop(token, None)
        if pending is not None:
            pending.ends_left -= 1
            if not pending.ends_left:
                pending.let_go()

    def worker_gone(self, worker_id: str, error: RingServeError) -> None:
        """Its sequences have ended with it: whoever waits in them must not get to another, which knows nothing of them."""
        for sequence in [each for each in self._sequences.values() if each.worker_id == worker_id]:
            self._lose(sequence, self._lost(f"{error.message} The sequence of this request has ended with it."))

    def _lost(self, message: str) -> WorkerLost:
        return WorkerLost(message)

    def _lose(self, sequence: Sequence, error: RingServeError) -> None:
        """It is none of ours any more; who waits in it is told why."""
        self._miss_turn(sequence)
        sequence.over = True
        del self._sequences[sequence.sequence_id]
        self._by_number.pop(sequence.number, None)
        self._silent.pop(sequence, None)
        while sequence.waiting:
            pending = sequence.waiting.popleft()
            self._take_out(pending)
            pending.fail(error)

    # ---- a sequence that another version has

    def give_away(self, grant: GrantSequence) -> list[SequencePending] | None:
        """The requests of a sequence that lives in the version before this one; None when they have been given away before."""
        sequence = self._sequences.get(grant.sequence_id)
        if sequence is None or sequence.token != grant.token:
            return None
        del self._sequences[grant.sequence_id]
        sequence.over = True
        self._admission.leave(len(sequence.waiting))
        return list(sequence.waiting)

    def take_over(self, grant: GrantSequence, arrived: Several[SequencePending] | None) -> None:
        """Requests of a sequence that lives here and were sent to the version after this one."""
        sequence = self._sequences.get(grant.sequence_id)
        if sequence is None:
            if arrived is None:
                return
            sequence = self._sequences[grant.sequence_id] = Sequence(grant.sequence_id)
        sequence.token = max(sequence.token, grant.token)
        for pending in arrived or ():
            self._admission.enter(1)
            self._line_up_behind(sequence, pending)
            self._encode_late(pending)
        self.granted(grant)

    # ---- silence

    def _fall_silent(self, sequence: Sequence) -> None:
        """Nobody waits in it: it has as long as the rules say. One that never had a request at its worker need not wait for that."""
        if sequence.over or sequence.waiting or sequence.sent or not sequence.number:
            return
        if sequence.touched:
            self._silent[sequence] = time.monotonic_ns()
        else:
            self._release(sequence)

    @property
    def silent_until_ns(self) -> int:
        """When the next one has been silent for long; 0: none is silent."""
        since_ns = next(iter(self._silent.values()), 0)
        return since_ns + self._rules.idle_ms_max * NS_OF_MS if since_ns else 0

    def release_silent(self, now_ns: int) -> None:
        """Those that have been silent for long have ended here."""
        before_ns = now_ns - self._rules.idle_ms_max * NS_OF_MS
        for sequence, since_ns in list(self._silent.items()):
            if since_ns > before_ns:
                return
            self._release(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._lose(sequence, self._rejected(sequence.sequence_id, HAS_ENDED))  # nobody is there to be told
        self.outbox.append(ReleaseSequence(self._key, sequence.number, sequence.token))

    # ---- departures

    def next_batch_for(self, worker_id: str) -> Batch | WaitUntil | None:
        """What leaves now to a worker that has nothing to do, or when to ask again."""
        turn = self._turns.get(worker_id)
        if not turn:
            return None
        count = min(len(turn), self._policy.rows_max)
        decision = self._decide(count, turn[0].waiting[0].arrived_ns, time.monotonic_ns())
        assert not isinstance(decision, Hold)
        if isinstance(decision, WaitUntil):
            return decision
        fill = self._filled(turn, decision.rows)
        if not turn:
            self._turns.pop(worker_id, None)
        if fill is None or not fill.ready:
            return None
        return fill.take()

    def _decide(self, count: int, oldest_ns: int, now_ns: int) -> Decision:
        """`count` sequences have a request for an idle worker."""
        return self._policy.decide(count, oldest_ns, 0, now_ns)

    def _filled(self, turn: deque[Sequence], count: int) -> Fill | None:
        """One request each of so many sequences in a slab; None when none is free."""
        fill: Fill | None = None
        self._starved = False
        while count and turn:
            sequence = turn[0]
            pending = sequence.waiting[0]
            count -= 1
            self._row_id += 1
            try:
                fill = fill or self._fresh()
                if fill is None:
                    self._starved = True
                    break
                if not fill.try_add(pending, self._row_id):
                    break
            except OutOfSharedMemory as error:
                self.drop(pending)
                pending.fail(OutOfResources(f"The request does not fit into memory: {error}"))
                continue
            self._sent(turn, sequence)
        self._close(fill)
        return fill

    def _sent(self, turn: deque[Sequence], sequence: Sequence) -> None:
        """Its first request is in the batch."""
        turn.remove(sequence)
        sequence.waiting.popleft()
        sequence.queued, sequence.sent, sequence.touched = False, True, True

    def _close(self, fill: Fill | None) -> None:
        """The batch is complete."""
        self._open = None
        if fill is not None and not fill.ready:
            fill.sealed = True
            self.release(fill)

    @property
    def backlogged(self) -> bool:
        """Whether somebody waits for a slab."""
        return self._starved

    def put_back(self, batch: Batch, *, was_sent: bool) -> None:
        """Its worker died before it began with it. What it knew of the sequences is lost: nobody else can answer."""
        if not was_sent:
            self._admission.leave(batch.count)
        batch.fail(self._lost(WORKER_GONE))
        self.answered(batch)
        fill, rows = batch.fill, batch.rows
        for pending in rows:
            if pending is not None:
                pending.state = OVER
                pending.close_parcel()
        fill.rows[batch.first : batch.first + len(rows)] = [None] * len(rows)
        batch.rows = []
        fill.live -= batch.count
        self.release(fill)

    def answered(self, batch: Batch) -> None:
        """Its sequences may have their next turn, or have ended."""
        for pending in batch.rows:
            if not isinstance(pending, SequencePending):  # a hole, or nobody's
                continue
            sequence = pending.sequence
            sequence.sent = False
            if pending.last:
                self._end(sequence, pending)
            elif sequence.over:
                pass
            else:
                self._take_turn(sequence)
                self._fall_silent(sequence)
            for sequence_id in pending.ended:
                self._end_named(sequence_id, pending)
            if not pending.ends_left:
                pending.let_go()

    def _end(self, sequence: Sequence, pending: SequencePending) -> None:
        """Also one that has ended here for another reason: elsewhere it may not have yet."""
        if not sequence.over:
            self._lose(sequence, self._rejected(sequence.sequence_id, HAS_ENDED))
        self._say_ended(pending, EndSequence(self._key, self._next_token(), sequence.number))

    def _end_named(self, sequence_id: str, pending: SequencePending) -> None:
        """The model says that a sequence of its worker's has ended: usually the one that it has answered."""
        own = pending.sequence
        sequence = own if sequence_id == own.sequence_id else self._sequences.get(sequence_id)
        if sequence is None:
            end = EndSequence(self._key, self._next_token(), 0, sequence_id, own.worker_id)
            self._say_ended(pending, end)
        elif sequence.worker_id == own.worker_id and not (sequence is own and pending.last):
            self._end(sequence, pending)

    def _next_token(self) -> int:
        self._last_token += 1
        return self._last_token

    def _say_ended(self, pending: SequencePending, end: EndSequence) -> None:
        self.outbox.append(end)
        if pending.held is not None:
            pending.ends_left += 1
            self._enders[end.token] = pending

    # ---- the end

    def fail_all(self, error: RingServeError) -> None:
        """Answer everybody who waits."""
        for sequence in list(self._sequences.values()):
            for pending in list(sequence.waiting):
                self.drop(pending)
                pending.fail(error)

    @property
    def oldest_ns(self) -> int:
        heads = (each.waiting[0].arrived_ns for each in self._sequences.values() if each.waiting)
        return min(heads, default=0)

    def lined_up(self) -> int:
        """No slab waits for a worker."""
        return 0

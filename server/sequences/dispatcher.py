"""One version in this front end whose requests belong to sequences: each goes to its sequence's worker, in order, one at a time.

The supervisor knows which worker that is (table.py). What it has said is believed until it says otherwise, or until nothing has come of
the sequence for long, which is said to it. All else is as for any version.
"""

import time
from collections.abc import Callable, Mapping
from uuid import uuid4

from ringserve.protocol.errors import BadRequest, RingServeError, SequenceRejected
from ringserve.protocol.request import InferRequest
from ringserve.server.batching import BatchPolicy, WaitUntil
from ringserve.server.control import (
    GrantSequence,
    RefuseSequence,
    ReleaseSequence,
    RevokeSequence,
    SequenceEnded,
    SequenceLeft,
    SequenceRules,
    SequencesSaid,
    SequencesTold,
    SequenceTold,
)
from ringserve.server.dispatch import Dispatcher
from ringserve.server.inflight import Batch, Pending
from ringserve.server.limits import Limits
from ringserve.server.sequences.waiting import SequencePending, SequenceQueue
from ringserve.shm.spool import Spool

# Ids go from process to process; nobody's is longer.
ID_CHARACTERS_MAX = 512
# How long an answer may wait until other front ends know that its sequence has ended with it.
END_S_MAX = 1.0


class SequenceDispatcher(Dispatcher):
    """`tell` takes what is to be said to the supervisor."""

    def __init__(self, key: int, label: str, policy: BatchPolicy, limits: Limits, rules: SequenceRules) -> None:
        self.key = key
        self.tell: Callable[[SequencesSaid], None] = lambda said: None
        self._rules = rules
        self._shared = limits.front_ends > 1
        self._elders: dict[int, SequenceDispatcher] = {}  # whose place this one took, with sequences that go on there
        super().__init__(label, policy, limits)
        self._begin = SequencePending.begin
        self._silence_due = False

    def _make_queue(self, policy: BatchPolicy) -> SequenceQueue:
        self._sequences = SequenceQueue(self.label, policy, self.admission, self.key, self._rules, shared=self._shared)
        return self._sequences

    def holds(self, sequence_id: str) -> bool:
        """Whether requests of that sequence go to a worker of this version, or wait to."""
        return sequence_id in self._sequences

    # ---- requests

    def submit(self, request: InferRequest, spool: Spool | None = None) -> Pending:
        """As for any version; a request that names no sequence begins one. Raises `SequenceRejected` besides."""
        try:
            sequence_id = self._sequence_of(request)
        except BadRequest:
            if spool is not None:
                spool.close()
            raise
        if self._elders and not self.holds(sequence_id):
            for elder in self._elders.values():
                if elder.holds(sequence_id):
                    return elder.submit(request, spool)
        return super().submit(request, spool)

    def _sequence_of(self, request: InferRequest) -> str:
        headers, rules = request.headers, self._rules
        sequence_id = headers.get(rules.id_header, "")
        if not sequence_id:
            sequence_id = headers[rules.id_header] = f"ts-seq-{uuid4()}"
            headers[rules.start_header] = "true"
        elif len(sequence_id) > ID_CHARACTERS_MAX or not sequence_id.isprintable():
            expected = f"at most {ID_CHARACTERS_MAX} printable characters"
            raise BadRequest(f"Header {rules.id_header}: expected {expected}, got {sequence_id[:64]!r}.")
        return sequence_id

    def _expire(self, pending: Pending) -> None:
        if pending.on_forsaken == self._forsaken:  # otherwise it is another version's now, which has its own clock
            super()._expire(pending)

    def _forsaken(self, pending: Pending) -> None:
        super()._forsaken(pending)
        self._pump_soon()  # there may be something to say

    def _fail_waiting(self, error: RingServeError) -> None:
        super()._fail_waiting(error)
        self._pump_soon()

    # ---- to the workers

    def _pump(self) -> None:
        self._pump_due = False
        soonest_ns = 0
        for state in list(self._links.values()):
            if state.outstanding or not state.alive or state.on_detached is not None:
                continue
            batch = self._sequences.next_batch_for(state.worker_id)
            if isinstance(batch, Batch):
                self._send(batch, state)
            elif isinstance(batch, WaitUntil):
                soonest_ns = min(soonest_ns or batch.at_ns, batch.at_ns)
        if soonest_ns:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_later(max(0, soonest_ns - time.monotonic_ns()) / 1e9, self._pump)
        if self._sequences.outbox:
            words, self._sequences.outbox = tuple(self._sequences.outbox), []
            self.tell(SequencesSaid(words))
        if not self._silence_due and self._sequences.silent_until_ns:
            self._watch_silence()

    def _watch_silence(self) -> None:
        self._silence_due = True
        # uvloop's timers count whole milliseconds: one too few would come before the time, again and again.
        delay_s = max(0, self._sequences.silent_until_ns - time.monotonic_ns()) / 1e9 + 0.001
        self._loop.call_later(delay_s, self._end_silent)

    def _end_silent(self) -> None:
        self._silence_due = False
        self._sequences.release_silent(time.monotonic_ns())
        self._pump()

    def _end(self, batch: Batch) -> None:
        held = [each for each in batch.rows if isinstance(each, SequencePending) and each.held is not None]
        self._sequences.answered(batch)
        super()._end(batch)
        for pending in held:
            if pending.held is not None:
                self._loop.call_later(END_S_MAX, pending.let_go)

    def worker_gone(self, worker_id: str, error: RingServeError) -> None:
        """Its sequences end with it: first of all, so that nothing more of them is sent."""
        self._sequences.worker_gone(worker_id, error)
        super().worker_gone(worker_id, error)

    # ---- what the supervisor says

    def told(self, word: SequenceTold, dispatchers: Mapping[int, Dispatcher]) -> None:
        """`dispatchers` are this front end's, by version."""
        match word:
            case GrantSequence() if word.lives_in != self.key:
                self._hand_over(word, dispatchers.get(word.lives_in))
            case GrantSequence():
                self._sequences.granted(word)
            case RefuseSequence():
                self._sequences.refused(word)
            case RevokeSequence():
                self._sequences.revoked(word)
            case SequenceEnded():
                self._sequences.ended(word.token)
        self._pump_soon()
        self._notice_idle()

    def _hand_over(self, grant: GrantSequence, elder: Dispatcher | None) -> None:
        """The sequence lives in the version whose place this one has taken: its requests go there."""
        arrived = self._sequences.give_away(grant)
        if not isinstance(elder, SequenceDispatcher):
            self.tell(SequencesSaid((ReleaseSequence(grant.lives_in, grant.number, grant.token),)))
            for pending in arrived or ():
                pending.fail(SequenceRejected(f"{self.label}: sequence {grant.sequence_id!r} has ended."))
            return
        self._elders = {key: each for key, each in self._elders.items() if each.holds_any}
        self._elders[elder.key] = elder
        elder.take_over(grant, arrived)

    @property
    def holds_any(self) -> bool:
        return len(self._sequences) > 0

    def take_over(self, grant: GrantSequence, arrived: list[SequencePending] | None) -> None:
        """From the version after this one."""
        for pending in arrived or ():
            pending.on_forsaken = self._forsaken
            if pending.deadline_ns or pending.wait_until_ns:
                self._watch(pending)
        self._sequences.take_over(grant, arrived)
        self._pump_soon()


def pass_on(
    message: SequencesTold, dispatchers: Mapping[int, Dispatcher], tell: Callable[[SequencesSaid], None]
) -> None:
    """Each word to the version that it is for. What is said of one that has left is answered for it."""
    for word in message.words:
        dispatcher = dispatchers.get(word.key)
        if isinstance(dispatcher, SequenceDispatcher):
            dispatcher.told(word, dispatchers)
        elif isinstance(word, GrantSequence):
            tell(SequencesSaid((ReleaseSequence(word.lives_in, word.number, word.token),)))
        elif isinstance(word, RevokeSequence):
            tell(SequencesSaid((SequenceLeft(word.key, word.number),)))

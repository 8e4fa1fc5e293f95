"""The sequences of a version that is configured in Triton's words: who belongs together is said by `sequence_id`, `sequence_start` and
`sequence_end` of requests in tensors, and the model is told by control tensors. No event loop, as in waiting.py; tensor_dispatcher.py has
it.

    direct    a sequence has a slot in the batches of its worker; where the model asks for READY, the slots of those who have nothing to
              compute are filled with zeros
    oldest    a batch has one request of each sequence that has one, in the order in which they came
"""

import time
from collections import deque

from ringserve.protocol.errors import BadRequest, OutOfResources, QueueTimeout, RingServeError, WorkerLost
from ringserve.protocol.request import Answer, InferRequest
from ringserve.protocol.tensor import Signature
from ringserve.server.admission import Admission
from ringserve.server.batching import BatchPolicy, Decision, Dispatch, WaitUntil
from ringserve.server.control import EndSequence, RefuseSequence, SequenceRules
from ringserve.server.inflight import OVER, Batch, Fill, Pending
from ringserve.server.scheduling.rules import NS_OF_US, READY, SequenceScheduling
from ringserve.server.sequences.controls import ControlTensors, key_of
from ringserve.server.sequences.waiting import Sequence, SequencePending, SequenceQueue
from ringserve.server.slab_queue import SlabQueue
from ringserve.shm.lane import Lane
from ringserve.shm.shm_errors import OutOfSharedMemory
from ringserve.shm.spool import Spool

BACKLOG_EXPIRED = "timeout of the corresponding sequence has been expired"


class TensorSequencePending(SequencePending):
    """`called`: what errors call its sequence. `blank` is a request that says nothing in the same shapes."""

    called = ""
    blank: InferRequest | None = None
    expires_ns = 0  # until when its sequence must have a worker; 0: never


class NobodysPending(Pending):
    """A row for a slot that has nothing to compute: nobody reads what the model answers."""

    def set_result(self, result: Answer) -> None:
        if result.source is not None:
            result.source.close()

    def fail(self, error: RingServeError) -> None:
        pass


class TensorSequenceQueue(SequenceQueue):
    """`model` is its name in errors."""

    def __init__(
        self,
        label: str,
        model: str,
        policy: BatchPolicy,
        admission: Admission,
        key: int,
        rules: SequenceRules,
        scheduling: SequenceScheduling,
        *,
        shared: bool,
    ) -> None:
        super().__init__(label, policy, admission, key, rules, shared=shared)
        self._model = model
        self._scheduling = scheduling
        self._controls = ControlTensors(scheduling.controls)
        self._slotted = not scheduling.oldest and any(each.kind == READY for each in scheduling.controls)
        self._signature = Signature()

    # ---- arrivals

    def accept(self, pending: Pending, request: InferRequest, spool: Spool | None) -> None:
        """As for any sequence; `request` has tensors and a sequence. Raises `BadRequest` where it has to begin one and does not."""
        assert isinstance(pending, TensorSequencePending)
        tensors = request.tensors
        assert tensors is not None
        pending.called = str(tensors.sequence_id)
        if self._slotted:
            pending.blank = self._controls.blank(request, tensors, self._signature)
        inputs = self._controls.added(tensors, self._signature)
        super().accept(pending, request._replace(tensors=tensors._replace(inputs=inputs)), spool)
        if tensors.queue_timeout_us:
            pending.expires_ns = time.monotonic_ns() + tensors.queue_timeout_us * NS_OF_US

    def _marks_of(self, request: InferRequest) -> tuple[str, bool, bool]:
        tensors = request.tensors
        assert tensors is not None
        return key_of(tensors.sequence_id), tensors.sequence_start, tensors.sequence_end

    def _check_room(self, sequence: Sequence, pending: SequencePending) -> None:
        """Behind the last request of one, the next of the same id may begin."""
        if sequence.ending and not pending.first:
            self._admission.leave()
            pending.state = OVER
            raise self._unstarted(pending)

    def _unstarted(self, pending: SequencePending) -> BadRequest:
        assert isinstance(pending, TensorSequencePending)
        return BadRequest(
            f"inference request for sequence {pending.called} to model '{self._model}' must specify the START flag on the first"
            " request of the sequence"
        )

    def _line_up_behind(self, sequence: Sequence, pending: SequencePending) -> None:
        super()._line_up_behind(sequence, pending)
        sequence.ending = pending.last

    def open_lane(self, lane: Lane, signature: Signature) -> None:
        """The version's memory is here."""
        self._signature = signature
        super().open_lane(lane, signature)

    # ---- the first and the last of a sequence

    def refused(self, refusal: RefuseSequence) -> None:
        """Those that had to begin it are told so; one behind them may."""
        sequence = self._sequences.get(refusal.sequence_id)
        if not refusal.unknown or sequence is None or sequence.token != refusal.token:
            super().refused(refusal)
        elif self._begins(sequence):
            self._ask_for(sequence, sequence.waiting[0])
        else:
            self._lose(sequence, self._rejected(sequence.sequence_id, refusal.cause))  # nobody is there to be told

    def _begins(self, sequence: Sequence) -> bool:
        """Whether somebody waits in it with whom it begins. Those before are refused."""
        while sequence.waiting and not sequence.waiting[0].first:
            pending = sequence.waiting[0]
            self._take_out(pending)
            sequence.waiting.popleft()
            pending.fail(self._unstarted(pending))
        return bool(sequence.waiting)

    def _end(self, sequence: Sequence, pending: SequencePending) -> None:
        """Where the next one of the same id waits already, it goes on in its place."""
        if not sequence.over and self._begins(sequence):
            self._take_turn(sequence)
        else:
            super()._end(sequence, pending)

    def _lost(self, message: str) -> WorkerLost:
        return WorkerLost(message, status=503)

    def expire(self, pending: Pending, now_ns: int) -> None:
        """Its sequence has waited for a worker for too long: all of it is refused."""
        if not isinstance(pending, TensorSequencePending) or not 0 < pending.expires_ns <= now_ns:
            return
        sequence = pending.sequence
        if pending.state is OVER or sequence.worker_id or sequence.over:
            return
        if sequence.number:  # other front ends must not go on in the middle of it
            self._lose(sequence, QueueTimeout(BACKLOG_EXPIRED))
            self.outbox.append(EndSequence(self._key, self._next_token(), sequence.number))
        else:  # it is released when it has one
            waiting = list(sequence.waiting)
            for each in waiting:
                each.fail(QueueTimeout(BACKLOG_EXPIRED))
            for each in waiting:
                self.drop(each)

    def _leave_line(self, pending: SequencePending) -> None:
        """Those behind a first one that no worker has seen must not be taken for it."""
        super()._leave_line(pending)
        sequence = pending.sequence
        if pending.first and not sequence.touched and sequence.waiting and not self._begins(sequence):
            self._miss_turn(sequence)
            self._fall_silent(sequence)

    # ---- departures

    def _decide(self, count: int, oldest_ns: int, now_ns: int) -> Decision:
        rules, rows_max = self._scheduling, self._policy.rows_max
        wait_until_ns = oldest_ns + rules.queue_delay_us_max * NS_OF_US
        in_time = now_ns < wait_until_ns
        if not rules.oldest:
            wanted = max(1, -(-int(rules.utilization_min * 1000) * rules.places // 1000))
            return WaitUntil(wait_until_ns) if in_time and count < min(wanted, rows_max) else Dispatch(count)
        preferred = [size for size in rules.preferred_batch_sizes if size <= rows_max] or [rows_max]
        reached = [size for size in preferred if size <= count]
        if reached and (in_time or not rules.queue_delay_us_max):
            return Dispatch(reached[-1])
        return WaitUntil(wait_until_ns) if in_time and not reached else Dispatch(count)

    def next_batch_for(self, worker_id: str) -> Batch | WaitUntil | None:
        """What leaves now to a worker that has nothing to do, or when to ask again. Behind those that failed on the way to the slab,
        others may be."""
        waiting = -1
        batch = super().next_batch_for(worker_id)
        while batch is None and worker_id in self._turns and not self._starved and self._admission.waiting != waiting:
            waiting = self._admission.waiting
            batch = super().next_batch_for(worker_id)
        return batch

    def _filled(self, turn: deque[Sequence], count: int) -> Fill | None:
        """One request each of so many sequences in a slab; with slots, each in its own, and up to the last one those of the others
        filled with zeros. None when no slab is free."""
        fill: Fill | None = None
        real, self._starved = 0, False
        slotted = self._slotted and self._fits(turn)
        chosen = list(turn)[:count]
        for sequence in sorted(chosen, key=lambda each: each.slot) if slotted else chosen:
            pending = sequence.waiting[0]
            try:
                fill = fill or self._fresh()
                if fill is None:
                    self._starved = True
                    break
                if slotted and not self._fill_up_to(fill, sequence.slot, pending):
                    break
                self._row_id += 1
                if not fill.try_add(pending, self._row_id):
                    break
            except OutOfSharedMemory as error:
                self.drop(pending)
                pending.fail(OutOfResources(f"The request does not fit into memory: {error}"))
            except RingServeError as error:  # a part of it, which is in its client's memory, could not be read
                self.drop(pending)
                pending.fail(error)
            else:
                self._sent(turn, sequence)
                real += 1
        if fill is not None and not real:
            self._give_up(fill)
        self._close(fill)
        return fill

    def _give_up(self, fill: Fill) -> None:
        """Nobody has come into it."""
        self._open, fill.sealed = None, True
        for empty in list(fill.rows):
            if empty is not None:
                SlabQueue.drop(self, empty)

    def _fits(self, turn: deque[Sequence]) -> bool:
        """Whether a slab has room for all slots; without it, the model sees no empty ones."""
        needed = max(each.waiting[0].payload.slab_bytes() for each in turn if each.waiting[0].payload is not None)
        assert self._lane is not None
        return needed * (1 + max(each.slot for each in turn)) <= self._lane.shape.bytes_in

    def _fill_up_to(self, fill: Fill, slot: int, pending: SequencePending) -> bool:
        """Rows of zeros before the one with number `slot`; False when there is no room. Raises `OutOfSharedMemory`."""
        assert isinstance(pending, TensorSequencePending)
        while len(fill.rows) < min(slot, fill.capacity - 1):
            assert pending.blank is not None
            assert self._encoder is not None
            empty = NobodysPending.begin(pending.get_loop(), lambda each: None)
            empty.payload = self._encoder.encode(pending.blank)
            self._row_id += 1
            if not fill.try_add(empty, self._row_id):
                return False
            self._admission.enter(1)  # it leaves with its batch
        return True

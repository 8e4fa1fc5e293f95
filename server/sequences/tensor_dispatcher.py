"""One version in this front end with sequences as Triton's clients say them; see tensors.py, and dispatcher.py for what it shares with the
sequences of headers."""

import time

from ringserve.protocol.errors import BadRequest, RingServeError, WorkerLost
from ringserve.protocol.request import InferRequest
from ringserve.server.batching import BatchPolicy
from ringserve.server.control import SequenceRules
from ringserve.server.inflight import Pending
from ringserve.server.limits import Limits
from ringserve.server.scheduling.rules import SequenceScheduling
from ringserve.server.sequences.controls import check_id, key_of
from ringserve.server.sequences.dispatcher import SequenceDispatcher
from ringserve.server.sequences.tensors import TensorSequencePending, TensorSequenceQueue
from ringserve.server.sequences.waiting import SequenceQueue
from ringserve.shm.spool import Spool


class TensorSequenceDispatcher(SequenceDispatcher):
    """`model` is its name in errors."""

    def __init__(
        self,
        key: int,
        label: str,
        model: str,
        policy: BatchPolicy,
        limits: Limits,
        rules: SequenceRules,
        scheduling: SequenceScheduling,
    ) -> None:
        self._model = model
        self._scheduling = scheduling
        super().__init__(key, label, policy, limits, rules)
        self._begin = TensorSequencePending.begin

    def _make_queue(self, policy: BatchPolicy) -> SequenceQueue:
        self._tensor_sequences = self._sequences = TensorSequenceQueue(
            self.label,
            self._model,
            policy,
            self.admission,
            self.key,
            self._rules,
            self._scheduling,
            shared=self._shared,
        )
        return self._tensor_sequences

    def submit(self, request: InferRequest, spool: Spool | None = None) -> Pending:
        """As for any sequence. Raises `BadRequest` where a request names none, or has to begin it and does not; the second may also
        come as the answer."""
        pending = super().submit(request, spool)
        if isinstance(pending, TensorSequencePending) and pending.expires_ns:
            self._deadlines.watch(pending, pending.expires_ns)
        return pending

    def _sequence_of(self, request: InferRequest) -> str:
        tensors = request.tensors
        check_id(tensors.sequence_id if tensors is not None else 0, self._model, self._scheduling.controls)
        assert tensors is not None
        first = tensors.inputs[0].shape if tensors.inputs else ()
        if self.signature.batches and first and first[0] != 1:
            raise BadRequest(
                f"inference request to model '{self._model}' must specify batch-size 1 due to requirements of sequence batcher"
            )
        return key_of(tensors.sequence_id)

    def _expire(self, pending: Pending) -> None:
        """Its sequence's time in the backlog is over, or one of its deadlines has passed."""
        now_ns = time.monotonic_ns()
        self._tensor_sequences.expire(pending, now_ns)
        if not pending.done() and (0 < pending.deadline_ns <= now_ns or 0 < pending.wait_until_ns <= now_ns):
            super()._expire(pending)
        self._pump_soon()

    def worker_gone(self, worker_id: str, error: RingServeError) -> None:
        """Its sequences end with it. The client may begin them again: 503."""
        super().worker_gone(worker_id, WorkerLost(error.message, status=503))

"""What a worker does with one batch: it looks which rows are still wanted, lets the backend run them, finds the one row that
makes a batch fail, and writes every row's answer into the slab.

A batch whose rows all live and succeed, which is nearly every one, runs on views of the slab and is answered in one step.
"""

import logging
import time
from collections.abc import Callable, Sequence

import numpy as np

from ringserve.backends.contract import Backend, Batch, BatchControl, ContractBroken, PartOf, Request, check_count
from ringserve.protocol.errors import OutOfResources, PredictionFailed, RingServeError
from ringserve.protocol.tensor import Signature
from ringserve.server.isolation import isolate
from ringserve.server.payloads import read_requests
from ringserve.server.replies import RowMark, RowReply, write_replies, write_typed_success
from ringserve.server.streaming import Chunks, RunningBatch
from ringserve.server.tensor_calls import Framing, divided, groups_of, joined, read_calls
from ringserve.server.tensor_streaming import RunningReplies
from ringserve.shm.faults import reach
from ringserve.shm.lane import Array, Slab
from ringserve.shm.layout import ROW_DEADLINE_NS, ROW_FLAGS
from ringserve.shm.ring import Command
from ringserve.shm.segment import Segment
from ringserve.shm.shm_errors import OutOfSharedMemory

logger = logging.getLogger("ringserve.worker")

# How long a worker may look for the rows that make a batch fail: the others wait meanwhile.
RETRY_S_MAX = 2.0

ReceiveParcel = Callable[[], Segment]


def wanted_rows(slab: Slab, command: Command, now_ns: int) -> Sequence[int]:
    """The rows of the batch, counted from its first, that somebody waits for and whose time is not over: usually all."""
    # As Python's numbers: for the few rows of a batch that is faster than any array operation.
    words = slab.table[command.first : command.first + command.rows, ROW_DEADLINE_NS : ROW_FLAGS + 1].tolist()
    for deadline_ns, flags in words:
        if flags or 0 < deadline_ns < now_ns:
            return [row for row, (end_ns, flag) in enumerate(words) if not flag and not 0 < end_ns < now_ns]
    return range(command.rows)


class Execution:
    """Runs batches. `response_bytes_max` is `max_response_size`; `retry_s_max` bounds the search for failing rows."""

    def __init__(
        self, backend: Backend, signature: Signature, response_bytes_max: int, retry_s_max: float = RETRY_S_MAX
    ) -> None:
        self._backend = backend
        self._signature = signature
        self._typed = signature.typed
        self._framing = Framing(signature) if signature.framed else None
        self._input_names = [spec.name for spec in signature.inputs]
        self._output_names = [spec.name for spec in signature.outputs]
        self._response_bytes_max = response_bytes_max
        self._retry_s_max = retry_s_max
        self.began_ns = self.ended_ns = 0  # of the last batch, with all its attempts; 0: nobody wanted any of its rows
        self.executions = self.items = (
            0  # of the same, without what was tried again: calls of the model, and what these were for
        )

    def run(self, slab: Slab, command: Command, chunks: Chunks, receive_parcel: ReceiveParcel) -> Segment | None:
        """Answer every row of the batch, in the slab and in the returned overflow parcel. Raises `ShmError` when the memory
        does not hold what the command says."""
        self.began_ns = self.ended_ns = self.executions = self.items = 0
        if self._framing is not None:
            running = RunningReplies(slab, command, chunks, self._response_bytes_max, self._framing)
            return self._run_framed(slab, command, running, self._framing, receive_parcel)
        control = RunningBatch(slab, command, chunks, self._response_bytes_max, typed=self._typed)
        if self._typed:
            return self._run_typed(slab, command, control)
        return self._run_bytes(slab, command, control, receive_parcel)

    # ---- arrays

    def _run_typed(self, slab: Slab, command: Command, control: RunningBatch) -> Segment | None:
        rows = wanted_rows(slab, command, time.monotonic_ns())
        reach("requests-read")

        def attempt(group: Sequence[int], is_retry: bool) -> RingServeError | None:
            return self._attempt_typed(slab, command, control, group, is_retry)

        error = attempt(rows, False) if rows else None
        if error is None and len(rows) == command.rows:
            control.close()
            write_typed_success(slab, command.first, command.rows)
            return None
        failed = {} if error is None else self._isolated(rows, error, attempt, control)
        outcomes: list[RowReply] = [RowMark.NOT_COMPUTED] * command.rows
        for row in rows:
            outcomes[row] = failed.get(row, RowMark.IN_ARRAYS)
        return self._written(slab, control.close(), outcomes)

    def _attempt_typed(
        self, slab: Slab, command: Command, control: RunningBatch, group: Sequence[int], is_retry: bool
    ) -> RingServeError | None:
        """Run some rows. Neighbours are views of the slab; others are put next to each other, and their results back."""
        count, start = len(group), command.first + group[0]
        view = control if count == command.rows else PartOf(control, group, command.rows)
        if group[-1] - group[0] + 1 == count:
            inputs = [array[start : start + count] for array in slab.inputs]
            outputs = [array[start : start + count] for array in slab.outputs]
            return self._execute(self._typed_batch(count, inputs, outputs, view, is_retry))
        at = [command.first + row for row in group]
        outputs = [np.empty((count, *array.shape[1:]), array.dtype) for array in slab.outputs]
        batch = self._typed_batch(count, [array[at] for array in slab.inputs], outputs, view, is_retry)
        error = self._execute(batch)
        if error is None:
            for array, computed in zip(slab.outputs, outputs, strict=True):
                array[at] = computed
        return error

    def _typed_batch(
        self, rows: int, inputs: list[Array], outputs: list[Array], control: BatchControl, is_retry: bool
    ) -> Batch:
        inputs_by_name = dict(zip(self._input_names, inputs, strict=True))
        outputs_by_name = dict(zip(self._output_names, outputs, strict=True))
        return Batch(rows, inputs_by_name, outputs_by_name, control=control, is_retry=is_retry)

    # ---- bytes

    def _run_bytes(
        self, slab: Slab, command: Command, control: RunningBatch, receive_parcel: ReceiveParcel
    ) -> Segment | None:
        requests, parcels = read_requests(slab, command.first, command.rows, receive_parcel)
        reach("requests-read")
        # After the requests were read: what was cancelled before that has no request, and is not wanted now.
        rows = wanted_rows(slab, command, time.monotonic_ns())
        outcomes: list[RowReply] = [RowMark.NOT_COMPUTED] * command.rows

        def attempt(group: Sequence[int], is_retry: bool) -> RingServeError | None:
            view = control if len(group) == command.rows else PartOf(control, group, command.rows)
            return self._attempt_bytes(requests, outcomes, view, group, is_retry)

        try:
            error = attempt(rows, False) if rows else None
            if error is not None:
                for row, failure in self._isolated(rows, error, attempt, control).items():
                    outcomes[row] = failure
            for row, failure in control.ended.items():
                outcomes[row] = failure
            return self._written(slab, control.close(), outcomes)
        finally:
            requests.clear()
            for parcel in parcels:
                parcel.close()

    def _attempt_bytes(
        self,
        requests: Sequence[Request],
        outcomes: list[RowReply],
        control: BatchControl,
        group: Sequence[int],
        is_retry: bool,
    ) -> RingServeError | None:
        whole = len(group) == len(requests)
        asked = requests if whole else [requests[row] for row in group]
        batch = Batch(len(group), requests=asked, control=control, is_retry=is_retry)
        error = self._execute(batch)
        if error is not None:
            return error
        if whole:
            outcomes[:] = batch.replies
            return None
        for row, reply in zip(group, batch.replies, strict=True):
            outcomes[row] = reply
        return None

    # ---- tensors

    def _run_framed(
        self, slab: Slab, command: Command, control: RunningReplies, framing: Framing, receive_parcel: ReceiveParcel
    ) -> Segment | None:
        signature = self._signature
        calls, refused, parcels = read_calls(slab, command.first, command.rows, signature.batches, receive_parcel)
        reach("requests-read")
        rows = wanted_rows(slab, command, time.monotonic_ns())
        control.calls = calls
        outcomes: list[RowReply] = [RowMark.NOT_COMPUTED] * command.rows
        if refused:
            rows = [row for row in rows if row not in refused]
            for row, refusal in refused.items():
                outcomes[row] = refusal

        def attempt(group: Sequence[int], is_retry: bool) -> RingServeError | None:
            return self._attempt_framed(control, framing, outcomes, group, is_retry)

        try:
            for group in groups_of(rows, calls, signature, len(slab.table)):
                error = attempt(group, False)
                if error is not None and signature.decoupled:
                    control.end_all(group, error)
                elif error is not None:
                    for row, failure in self._isolated(group, error, attempt, control).items():
                        outcomes[row] = failure
            if signature.decoupled:
                for row, ending in control.endings(rows).items():
                    outcomes[row] = ending
            return self._written(slab, control.close(), outcomes)
        finally:
            calls.clear()
            for parcel in parcels:
                parcel.close()

    def _attempt_framed(
        self,
        control: RunningReplies,
        framing: Framing,
        outcomes: list[RowReply],
        group: Sequence[int],
        is_retry: bool,
    ) -> RingServeError | None:
        """Run some rows, and say what each is answered. A row whose answer is not one fails alone."""
        calls = [call for row in group if (call := control.calls[row]) is not None]
        view = control if len(group) == len(outcomes) else PartOf(control, group, len(outcomes))
        batch = Batch(len(group), calls=calls, control=view, is_retry=is_retry)
        error = self._execute(batch)
        if error is not None or self._signature.decoupled:
            return error
        for row, call, result in zip(group, calls, batch.results, strict=True):
            if isinstance(result, RingServeError):
                outcomes[row] = result
                continue
            try:
                outcomes[row] = framing.reply(call, result.outputs, result.parameters)
            except ContractBroken as failure:
                outcomes[row] = failure
        return None

    # ---- all

    def _execute(self, batch: Batch) -> RingServeError | None:
        """An exception becomes the error that the rows are answered with."""
        if not batch.is_retry:
            self.began_ns = self.began_ns or time.monotonic_ns()
            self.executions += 1
            self.items += sum(call.rows for call in batch.calls) if batch.calls else batch.rows
        try:
            if batch.calls and (len(batch.calls) == 1 or not self._signature.ragged):
                batch.inputs = joined(batch.calls)
            self._backend.execute(batch)
            reach("batch-executed")
            self._check_answers(batch)
        except RingServeError as error:
            return error
        except MemoryError:
            if not batch.is_retry:
                logger.exception("the model ran out of memory")
            return OutOfResources("Out of resources")
        except BaseException:
            # SystemExit and KeyboardInterrupt of a model are its failure, not our end.
            if not batch.is_retry:
                logger.exception("the model raised")
            return PredictionFailed("Prediction failed")
        finally:
            self.ended_ns = time.monotonic_ns()
        return None

    def _check_answers(self, batch: Batch) -> None:
        """Raises `ContractBroken` unless there is one answer for each row."""
        if self._framing is None:
            if not self._typed:
                check_count(batch.rows, len(batch.replies))
        elif not self._signature.decoupled:
            if not batch.results and batch.outputs:
                batch.results = divided(batch.outputs, batch.calls, has_rows=self._signature.batches)
            check_count(batch.rows, len(batch.results))

    def _isolated(
        self,
        rows: Sequence[int],
        failure: RingServeError,
        attempt: Callable[[Sequence[int], bool], RingServeError | None],
        control: RunningBatch,
    ) -> dict[int, RingServeError]:
        """The rows that fail by themselves. Never after a part was sent: a client would read it twice."""
        start = time.monotonic()

        def may_go_on() -> bool:
            return not control.streamed and time.monotonic() - start < self._retry_s_max

        failed, calls = isolate(rows, failure, lambda group: attempt(group, True), may_go_on)
        if calls:
            took_s = time.monotonic() - start
            logger.warning("%d of %d rows failed, after %d more calls (%.3f s)", len(failed), len(rows), calls, took_s)
        return failed

    def _written(self, slab: Slab, command: Command, outcomes: list[RowReply]) -> Segment | None:
        try:
            return write_replies(slab, command, outcomes, self._response_bytes_max)
        except OutOfSharedMemory as failure:
            refusal = OutOfResources(f"The answer does not fit into memory: {failure}.")
            return write_replies(slab, command, [refusal] * command.rows, self._response_bytes_max)

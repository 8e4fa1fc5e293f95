"""Models whose tensors have no fixed size, or that are decoupled, run in this process (local_run.py): bodies become tensors and the
answers JSON as in a server, with the same code.
"""

import threading
from collections.abc import Mapping, Sequence

import numpy as np

from ringserve.backends.contract import (
    Backend,
    Batch,
    BatchControl,
    PartOf,
    Reply,
    TensorCall,
    TensorResult,
    check_count,
)
from ringserve.protocol.errors import RingServeError
from ringserve.protocol.request import InferRequest, Scalar, TensorReply
from ringserve.protocol.tensor import Signature
from ringserve.protocol.tensor_frame import TensorPlace, read_reply
from ringserve.server.plain_bodies import refuse_explanation
from ringserve.server.tensor_bodies import tensors_of_body
from ringserve.server.tensor_calls import Framing, array_of, divided, groups_of, joined
from ringserve.server.tensor_payloads import copied, data_bytes
from ringserve.server.tensor_replies import plain_answer

Outcome = Reply | RingServeError


def run_framed(
    backend: Backend, signature: Signature, wanted: Sequence[InferRequest], control: BatchControl
) -> list[Outcome]:
    """What each request is answered; of a decoupled model the answers go to `control`, a line of JSON each. Raises what the backend
    raises."""
    calls = [_call(each, signature) for each in wanted]
    framing = Framing(signature)
    sending = _Sending(control, signature, framing, calls)
    outcomes: list[Outcome] = [Reply(b"")] * len(calls)
    for rows in groups_of(range(len(calls)), calls, signature, len(calls)):
        group = [calls[row] for row in rows]
        batch = Batch(len(group), calls=group, control=PartOf(sending, rows, len(calls)))
        if len(group) == 1 or not signature.ragged:
            batch.inputs = joined(group)
        backend.execute(batch)
        if not signature.decoupled:
            results = batch.results or divided(batch.outputs, group, has_rows=signature.batches)
            check_count(len(group), len(results))
            for row, call, result in zip(rows, group, results, strict=True):
                outcomes[row] = _outcome(call, result, signature, framing)
    if signature.decoupled:
        sending.wait()
    return outcomes


def _call(request: InferRequest, signature: Signature) -> TensorCall:
    refuse_explanation(request)
    inputs = {}
    for name, datatype, shape, data in tensors_of_body(signature, request).inputs:
        memory = memoryview(bytearray(copied(data)))  # which a model may write to, as in a server
        inputs[name] = array_of(TensorPlace(name, datatype, shape, 0, data_bytes(data)), memory)
    return TensorCall(request.request_id, inputs, headers=request.headers)


def _outcome(
    call: TensorCall, result: TensorResult | RingServeError, signature: Signature, framing: Framing
) -> Outcome:
    if isinstance(result, RingServeError):
        return result
    return _reply(framing.reply(call, result.outputs, result.parameters).to_bytes(), signature)


def _reply(frame: bytearray, signature: Signature) -> Outcome:
    reply = read_reply(memoryview(frame))
    assert isinstance(reply, TensorReply), "it was written here"
    answer = plain_answer(signature, reply, binary=False)
    return answer if isinstance(answer, RingServeError) else Reply(answer.body, answer.content_type)


class _Sending(BatchControl):
    """Where the answers of a decoupled model go, from whatever thread."""

    def __init__(
        self, control: BatchControl, signature: Signature, framing: Framing, calls: Sequence[TensorCall]
    ) -> None:
        self._control = control
        self._signature = signature
        self._framing = framing
        self._calls = calls
        self._left = set(range(len(calls)))
        self._changed = threading.Condition()

    def send(
        self,
        row: int,
        answer: Mapping[str, np.ndarray] | RingServeError | None,
        parameters: Mapping[str, Scalar] | None = None,
        *,
        final: bool = False,
    ) -> bool:
        part: Outcome | None = answer if isinstance(answer, RingServeError) else None
        if isinstance(answer, Mapping):
            part = _reply(self._framing.reply(self._calls[row], answer, parameters).to_bytes(), self._signature)
            if isinstance(part, Reply):
                part = Reply(bytes(part.body) + b"\n", part.content_type)
        with self._changed:
            parts: list[Outcome | None] = [None] * len(self._calls)
            parts[row] = part
            self._control.stream(parts)
            if final or isinstance(part, RingServeError):
                self._left.discard(row)
                self._changed.notify_all()
        return True

    def wait(self) -> None:
        """Until every request has had its last answer."""
        with self._changed:
            while self._left:
                self._changed.wait()

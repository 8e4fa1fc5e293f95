"""Runs a model in this process, as a worker does, and shows each answer as its client would read it.

Same backends, same context, same answers; no server, no other process, nothing in between: a debugger in the model's code has the
terminal for itself, and what the model raises is shown in full.
"""

import bdb
import logging
import os
import pdb  # noqa: T100 - what --pdb starts
import signal
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import BinaryIO, TextIO, cast

import numpy as np

from ringserve.backends.contract import Backend, Batch, BatchControl, InputPart, Reply, Request, check_count
from ringserve.backends.registry import create_backend
from ringserve.protocol.errors import OutOfResources, PredictionFailed, RingServeError
from ringserve.protocol.request import EXPLANATION_HEADERS, HANDLER_HEADERS, Answer, FormPart, InferRequest
from ringserve.protocol.tensor import Signature
from ringserve.server.describing import json_object
from ringserve.server.forms import is_form, parse_form
from ringserve.server.payloads import TypedEncoder
from ringserve.server.replies import typed_renderer
from ringserve.server.wire import answer_buffers, error_answer, streamed_head
from ringserve.server.worker_slot import QUIET
from ringserve.shm.lane import Slab
from ringserve.tools.local_model import LocalModel
from ringserve.tools.local_tensors import run_framed

logger = logging.getLogger("ringserve.worker")


@dataclass(frozen=True, slots=True)
class LocalInput:
    """One request's body and content type, and what people know it by."""

    name: str
    content_type: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Asking:
    """What all requests have in common: headers of lower-case names, the rest of the path, whether an explanation is asked for."""

    headers: Mapping[str, str] = field(default_factory=dict)
    url_path: str = ""
    explain: bool = False


class Printer:
    """Answers as they come: status lines and headers to `heads`, bodies to `bodies`. `quiet` shows neither."""

    def __init__(self, heads: TextIO, bodies: BinaryIO) -> None:
        self.quiet = False
        self.failed = False
        self._heads = heads
        self._bodies = bodies

    def whole(self, answer: Answer, request_id: str) -> None:
        head = answer_buffers(answer, request_id, keep_alive=True, head_only=True)[0]
        self._began(answer.status, head)
        self.part(answer.body)
        self.ended(answer)

    def streamed(self, answer: Answer, request_id: str) -> None:
        """The head of an answer in parts, of which the first is `answer`'s body."""
        source = cast("_Parts", answer.source)
        assert source is not None
        self._began(answer.status, streamed_head(answer, request_id, keep_alive=True, chunked=True))
        self.part(source.first)

    def _began(self, status: int, head: bytes) -> None:
        self.failed = self.failed or status >= 400
        if not self.quiet:
            self._heads.write(head.decode("utf-8", "replace").replace("\r\n", "\n"))
            self._heads.flush()

    def part(self, body: bytes) -> None:
        if not self.quiet:
            self._bodies.write(body)
            self._bodies.flush()

    def ended(self, answer: Answer | None = None) -> None:
        """A terminal's next line, or the next answer, does not begin in the middle of one."""
        binary = answer is not None and answer.content_type == "application/octet-stream"
        if not binary and not (answer is not None and answer.body.endswith(b"\n")):
            self.part(b"\n")

    def note(self, text: str) -> None:
        self._heads.write(f"{text}\n")
        self._heads.flush()


class _Parts:
    """Stands where a server has the source of a streamed answer."""

    length: int | None = None
    ended = broken = False

    def __init__(self, first: bytes) -> None:
        self.first = first
        self.on_change: Callable[[], None] = self.close

    def next(self) -> bytes | None:
        return None

    def close(self) -> None: ...


class _Streaming(BatchControl):
    """Shows parts when they are made."""

    def __init__(self, printer: Printer, request_ids: Sequence[str]) -> None:
        self.begun = [False] * len(request_ids)
        self.over = [False] * len(request_ids)
        self._printer = printer
        self._request_ids = request_ids

    def stream(self, parts: Sequence[Reply | RingServeError | None]) -> bool:
        check_count(len(self.begun), len(parts))
        for row, part in enumerate(parts):
            if part is not None and not self.over[row]:
                self._one(row, part)
        return not all(self.over)

    def _one(self, row: int, part: Reply | RingServeError) -> None:
        if isinstance(part, RingServeError):
            self.fail(row, part)
        elif self.begun[row]:
            self._printer.part(bytes(part.body))
        elif len(part.body):
            self.begun[row] = True
            self._printer.streamed(_answer(part)._replace(source=_Parts(bytes(part.body))), self._request_ids[row])

    def fail(self, row: int, error: RingServeError) -> None:
        self.over[row] = True
        if not self.begun[row]:
            self._printer.whole(error_answer(error), self._request_ids[row])
            return
        self._printer.failed = True
        self._printer.ended()
        self._printer.note(f"The answer breaks off here: {error.message}")

    def finish(self, row: int, reply: Reply) -> None:
        """With the last part, or the only one."""
        if self.over[row]:
            return
        if not self.begun[row]:
            self._printer.whole(_answer(reply), self._request_ids[row])
            return
        self._printer.part(bytes(reply.body))
        self._printer.ended()


class LocalRun:
    """One loaded model. `load` comes first."""

    def __init__(self, model: LocalModel, printer: Printer) -> None:
        self._model = model
        self._printer = printer
        self._backend: Backend = create_backend(model.backend)
        self._signature = Signature()

    def load(self) -> float:
        """Returns how many seconds it took. Raises what the model raises."""
        began_s = time.perf_counter()
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        os.chdir(self._model.loaded.model_dir)  # where a worker is
        self._signature = self._backend.load(self._model.loaded)
        return time.perf_counter() - began_s

    def close(self) -> None:
        self._backend.close()

    def describe(self) -> None:
        """What the model says of itself, as describe shows it under `customizedMetadata`."""
        request_id = str(uuid.uuid4())
        try:
            text = json_object(self._backend.describe())
        except Exception as error:  # noqa: BLE001 - answered, as a worker does
            self._printer.whole(error_answer(_as_answered(error)), request_id)
            return
        self._printer.whole(Answer(text or b"null", "application/json"), request_id)

    def predict(self, inputs: Sequence[LocalInput], asking: Asking) -> float:
        """All inputs in one batch. Returns how many seconds the model had them."""
        request_ids = [str(uuid.uuid4()) for _ in inputs]
        control = _Streaming(self._printer, request_ids)
        began_s = time.perf_counter()
        try:
            wanted = [self._request(*each, asking) for each in zip(request_ids, inputs, strict=True)]
            began_s = time.perf_counter()
            if self._signature.framed:
                replies = run_framed(self._backend, self._signature, wanted, control)
            else:
                replies = (self._typed if self._signature.typed else self._untyped)(wanted, control)
        except Exception as error:  # noqa: BLE001 - answered, as a worker does
            replies = [_as_answered(error)] * len(inputs)
        took_s = time.perf_counter() - began_s
        for row, reply in enumerate(replies):
            if isinstance(reply, RingServeError):
                control.fail(row, reply)
                continue
            try:
                control.finish(row, reply)
            except PredictionFailed as error:  # a header that HTTP cannot carry
                control.fail(row, error)
        return took_s

    def _request(self, request_id: str, given: LocalInput, asking: Asking) -> InferRequest:
        """As the server's HTTP side makes it of what a client has posted."""
        asked = {**(EXPLANATION_HEADERS if asking.explain else HANDLER_HEADERS), "url_path": asking.url_path}
        sent = {"content-type": given.content_type, "content-length": str(len(given.body))}
        parts: Sequence[FormPart] | None = None
        if is_form(given.content_type):
            parts = parse_form(given.content_type, given.body, typed=self._signature.typed)
        body = given.body if parts is None else b""
        return InferRequest(request_id, given.content_type, {**asking.headers, **sent, **asked}, body, parts)

    def _untyped(self, wanted: Sequence[InferRequest], control: BatchControl) -> list[Reply | RingServeError]:
        requests = []
        for each in wanted:
            fields = each.parts if each.parts is not None else [FormPart("body", each.content_type, bytes(each.body))]
            parts = [InputPart(name, kind, memoryview(data)) for name, kind, data in fields]
            requests.append(Request(each.request_id, each.headers, parts))
        batch = Batch(len(requests), requests=requests, control=control)
        self._backend.execute(batch)
        check_count(batch.rows, len(batch.replies))
        return batch.replies

    def _typed(self, wanted: Sequence[InferRequest], control: BatchControl) -> list[Reply | RingServeError]:
        encoder, rows = TypedEncoder(self._signature), len(wanted)
        encoded = [encoder.encode(each) for each in wanted]
        inputs = {}
        for at, spec in enumerate(self._signature.inputs):
            data = bytearray().join(
                payload.buffers[at] for payload in encoded
            )  # which a model may write to, as in a server
            inputs[spec.name] = np.frombuffer(data, spec.dtype).reshape(rows, *spec.shape)
        outputs = {spec.name: np.empty((rows, *spec.shape), spec.dtype) for spec in self._signature.outputs}
        self._backend.execute(Batch(rows, inputs, outputs, control=control))
        slab = cast(Slab, SimpleNamespace(outputs=list(outputs.values())))
        render = typed_renderer(self._signature)
        return [Reply(render(slab, row), "application/json") for row in range(rows)]


def _answer(reply: Reply) -> Answer:
    return Answer(bytes(reply.body), reply.content_type, reply.status, reply.phrase, dict(reply.headers) or None)


def _as_answered(error: Exception) -> RingServeError:
    """What the clients of a batch read. What a backend has not turned into an answer itself is logged here."""
    if isinstance(error, RingServeError):
        return error
    if isinstance(error, MemoryError):
        return OutOfResources("Out of resources")
    logger.error("the model raised", exc_info=error)
    return PredictionFailed("Prediction failed")


class Ended(KeyboardInterrupt):
    """Somebody ends the program, by a signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number  # as shells say it


def exit_code(error: BaseException | None) -> int | None:
    """Where what was raised is that the user leaves the debugger, or that the program is to end."""
    if isinstance(error, KeyboardInterrupt):
        return error.exit_code if isinstance(error, Ended) else 128 + signal.SIGINT
    return 1 if isinstance(error, bdb.BdbQuit) else None


class Debugging(logging.Handler):
    """Sees what a model raises at the moment it is logged, while its frames are there.

    A backend answers every exception, also those by which a user leaves the debugger or the program: here they end it. With
    `post_mortem` the debugger starts where any other was raised.
    """

    def __init__(self, *, post_mortem: bool) -> None:
        super().__init__(logging.ERROR)
        self._post_mortem = post_mortem

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if error is not None and record.name.startswith("ringserve."):  # others log what they have dealt with
            self.look_into(error)

    def look_into(self, error: BaseException) -> None:
        """Raises `SystemExit` for what was not the model's failure."""
        code = exit_code(error)
        if code is not None:
            raise SystemExit(code)
        if self._post_mortem and error.__traceback__ is not None:
            sys.stderr.flush()
            pdb.post_mortem(error.__traceback__)

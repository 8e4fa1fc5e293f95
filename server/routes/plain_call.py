"""One inference of the Open Inference Protocol on the short way through a front end (connection.py): from its body to what is sent.

A long tail of raw tensors is received into the slab, where the model will find it; any other body is read when it is whole.
"""

import time
from typing import NamedTuple

from ringserve.protocol.datatypes import BYTES
from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import Answer
from ringserve.server.inflight import Pending
from ringserve.server.intake import LANDED_BYTES_MIN
from ringserve.server.landing import CallLanding, Landing, copy_into
from ringserve.server.open_inference.binary import (
    ALL_BINARY,
    HEADER_LENGTH,
    Buffer,
    Coming,
    Rendered,
    Wanted,
    header_length,
    raw_call,
    read_call,
    read_parts,
    render,
)
from ringserve.server.open_inference.call import InferCall, InferResult
from ringserve.server.open_inference.regions import OutputPlace
from ringserve.server.open_inference.service import Found, OpenInference, Started
from ringserve.server.replies import DIRECT_BYTES_MIN
from ringserve.server.sources import Parts

JSON = "application/json"
OCTETS = "application/octet-stream"

Call = tuple[InferCall, dict[str, OutputPlace]]


def read_body(found: Found, body: Buffer, length_text: str | None) -> tuple[InferCall, Wanted]:
    """The call in a body, whose JSON part is as long as a header says, if it does. Raises `BadRequest`."""
    json_bytes = None if length_text is None else header_length(length_text, len(body))
    if json_bytes == 0 or not body:
        if found.declaration is None:
            raise BadRequest(f"model '{found.model}' declares no inputs: a raw request has no meaning for it")
        return raw_call(found.declaration, found.model, found.version, body), ALL_BINARY
    return read_call(found.model, found.version, body, json_bytes, lenient=found.declaration is None)


class PlainCall:
    """An inference on the short way: from its body to the answer that it is sent."""

    __slots__ = ("_deadline_ns", "_found", "_length", "_service", "_started", "_wanted")

    def __init__(self, service: OpenInference, found: Found, length: str | None, deadline_ns: int) -> None:
        self._service = service
        self._found = found
        self._length = length
        self._deadline_ns = deadline_ns
        self._started: Started
        self._wanted: Wanted

    def submit(self, body: Buffer) -> Pending:
        """Raises as `OpenInference.begin`."""
        call, self._wanted = read_body(self._found, body, self._length)
        self._started = started = self._service.begin(self._with_deadline(call), self._found)
        return started.pending

    def land(self, length: int) -> Landing:
        """Where the body of so many bytes goes. Raises as `submit`, as far as that can be known now."""
        self._found.dispatcher.refuse()
        if self._length is not None and length >= LANDED_BYTES_MIN:
            json_bytes = header_length(self._length, length)
            if json_bytes and length - json_bytes >= LANDED_BYTES_MIN:
                return _TwoParts(self, json_bytes, length)
        return CallLanding(length, self.submit)

    def land_tail(self, text: bytearray, tail_bytes: int) -> tuple[Landing, Call] | None:
        """A row for the tail that follows the JSON part, and the call that waits for it; None where that is to be received elsewhere.
        Raises what is wrong with the call."""
        found = self._found
        call, self._wanted = read_parts(found.model, found.version, text, Coming(tail_bytes))
        lengths = [len(each.data) if isinstance(each.data, Coming) else -1 for each in call.inputs]
        if any(each.datatype == BYTES and length >= 0 for each, length in zip(call.inputs, lengths, strict=True)):
            return None  # their elements are to be counted before they are a row
        request, places = self._service.prepare(self._with_deadline(call), found)
        assert request.tensors is not None
        inputs = zip(request.tensors.inputs, lengths, strict=True)
        here = tuple(each if length < 0 else each._replace(data=b"") for each, length in inputs)
        request = request._replace(tensors=request.tensors._replace(inputs=here))
        landing = found.dispatcher.land_tensors(request, lengths)
        return None if landing is None else (landing, (call, places))

    def start(self, pending: Pending, known: Call) -> Pending:
        """It waits for its answer now."""
        self._started = Started(pending, known[0], self._found, known[1])
        return pending

    def _with_deadline(self, call: InferCall) -> InferCall:
        return call._replace(deadline_ns=self._deadline_ns) if self._deadline_ns else call

    def finish(self, answer: Answer) -> tuple[InferResult, "Sized"]:
        """What is sent, of a model that is not decoupled. Raises what has no form as JSON, or fits into no region."""
        result = self._service.finish(self._started, answer)
        return result, rendered_of(result, self._wanted)


class _TwoParts:
    """A body whose JSON part is received first, and then its tail where that part says."""

    __slots__ = ("_call", "_known", "_length", "_place", "_tail", "_text", "received_bytes")

    def __init__(self, call: PlainCall, json_bytes: int, length: int) -> None:
        self._call, self._length = call, length
        self._text = bytearray(json_bytes)
        self._place = memoryview(self._text)
        self._tail: Landing | None = None
        self._known: Call | None = None  # of a tail that goes to the slab
        self.received_bytes = 0

    def memory(self) -> memoryview:
        return self._place if self._tail is None else self._tail.memory()

    def advance(self, count: int) -> None:
        """Raises what is wrong with the call, when its JSON part is complete."""
        self.received_bytes += count
        if self._tail is not None:
            self._tail.advance(count)
            return
        self._place = self._place[count:]
        if self._place:
            return
        text, call = self._text, self._call
        found = call.land_tail(text, self._length - len(text))
        if found is not None:
            self._tail, self._known = found
        else:
            self._tail = CallLanding(self._length, call.submit)
            copy_into(self._tail, text)

    def commit(self) -> Pending:
        assert self._tail is not None
        pending = self._tail.commit()
        return pending if self._known is None else self._call.start(pending, self._known)

    def abandon(self) -> None:
        if self._tail is not None:
            self._tail.abandon()


class Sized(NamedTuple):
    """A body, with its length."""

    rendered: Rendered
    nbytes: int


def rendered_of(result: InferResult, wanted: Wanted) -> Sized:
    """Lets go of the model's memory where that fails."""
    try:
        rendered = render(result, wanted)
    except BaseException:
        if result.source is not None:
            result.source.close()
        raise
    return Sized(rendered, sum(map(len, rendered.parts)))


def answer_of(result: InferResult, body: Sized) -> Answer:
    """A long body is sent from where it lies, a short one is joined."""
    (parts, json_bytes), source = body.rendered, result.source
    headers = None if json_bytes < 0 else {HEADER_LENGTH: str(json_bytes)}
    content_type = JSON if json_bytes < 0 else OCTETS
    if source is None and body.nbytes < DIRECT_BYTES_MIN:
        return Answer(b"".join(parts), content_type, headers=headers)
    if source is not None and json_bytes < 0:  # everything was written as JSON
        source.close()
        source = None
    return Answer(b"", content_type, headers=headers, source=Parts(parts, source))


def deadline_ns_of(patience_ms: int) -> int:
    """Of a client whose head has just come; 0 for one that waits for ever."""
    return time.monotonic_ns() + patience_ms * 1_000_000 if patience_ms else 0

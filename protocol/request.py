"""A request and its answer, whatever protocol they came by. Every front end parses into these; `dispatch` knows no other."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from ringserve.protocol.payload import Part

# What TorchServe adds to the headers that a handler sees, of a prediction and of an explanation.
HANDLER_HEADERS = {"explain": "False", "url_path": ""}
EXPLANATION_HEADERS = {"explain": "True", "url_path": ""}


class FormPart(NamedTuple):
    """One field of a form."""

    name: str
    content_type: str
    data: bytes


class Elsewhere(Protocol):
    """Bytes of a tensor that are not in this process' memory: in a region that the client shares with the server."""

    nbytes: int

    def read_into(self, memory: memoryview) -> None:
        """Copy all of them to `memory`, which is as long. Raises `BadRequest` when they are not there any more."""

    def part(self, offset: int, nbytes: int) -> "Elsewhere":
        """Some of them."""


class Tensor(NamedTuple):
    """One tensor of a request or an answer. `datatype` is the protocol's word (datatypes.py), `shape` is whole, with the batch
    dimension where there is one; `data` its elements row-major and little-endian, those of BYTES each behind their length."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | bytearray | memoryview | Elsewhere


Scalar = bool | int | float | str


class TensorRequest(NamedTuple):
    """What a client of the Open Inference Protocol wants computed; it has been checked against the declaration. `outputs` are those it
    asks for, () for all. `parameters` are the model's to understand. `queue_timeout_us` is how long it may wait for a worker, where the
    model lets requests say so; 0 does not."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[str, ...] = ()
    parameters: Mapping[str, Scalar] = {}
    priority: int = 0
    sequence_id: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False
    queue_timeout_us: int = 0


class TensorReply(NamedTuple):
    """One answer of a model in tensors. `final`: none follows it."""

    outputs: tuple[Tensor, ...]
    parameters: Mapping[str, Scalar] = {}
    final: bool = True


class TensorReplies(Protocol):
    """The answers of a decoupled model to one request, as they come."""

    async def next(self) -> TensorReply | None:
        """The next one, None after the last. Raises `RingServeError` where the model failed."""

    def close(self) -> None:
        """Nobody waits for more: the model is told that it may stop."""


class InferRequest(NamedTuple):
    """One inference request. `headers` keys are lower case and may be empty when the model is typed and cannot see them.

    `parts` is None for a plain body, else the fields of a form, and `body` is empty then; `placed` says where they lie in a form
    whose bytes come separately. `binary` asks a typed model for the bytes
    of its output arrays instead of JSON. `timeout_ms` is how long the client waits for its answer; 0 does not say. `deadline_ns` (CLOCK_MONOTONIC) is when
    that is over, for a request whose body took time to come. `query` are inputs beside the body or the form, which wins where
    both have one of the same name; typed models take none. With `tensors`, those are the request, and `body` is empty; `model` is the
    model's name then, which handlers are told.
    """

    request_id: str
    content_type: str
    headers: dict[str, str]
    body: bytes | bytearray | memoryview
    parts: Sequence[FormPart] | None = None
    binary: bool = False
    timeout_ms: int = 0
    placed: Sequence[Part] | None = None
    deadline_ns: int = 0
    query: Sequence[FormPart] = ()
    tensors: TensorRequest | None = None
    model: str = ""


class Source(Protocol):
    """A body that is not there as one piece of bytes: it lies in shared memory, or is still being made.

    `length` is None when nobody knows it yet; `ended` says that no part will follow those that can be had now, `broken` that the
    body will never be complete. Whoever sends it sets `on_change`, which is called when there is more to be had.
    """

    length: int | None
    ended: bool
    broken: bool
    on_change: Callable[[], None]

    def next(self) -> bytes | memoryview | None:
        """The next part, once the one before has left; None when there is none now."""

    def close(self) -> None:
        """Everything is sent, or nobody waits for it any more: let go of the memory."""


class Answer(NamedTuple):
    """What the model said to one request. An empty `phrase` means the status' own; `content_type` None sends no header. With a
    `source`, that is the body and `body` is empty. A request of tensors is answered by `tensors`, or by `replies` where the model is
    decoupled; the bytes of `tensors` are those of the model's memory until `source`, if there is one, is closed."""

    body: bytes
    content_type: str | None = None
    status: int = 200
    phrase: str = ""
    headers: Mapping[str, str] | None = None
    source: Source | None = None
    tensors: TensorReply | None = None
    replies: TensorReplies | None = None

    def close(self) -> None:
        """Nobody will read it: let go of what it holds."""
        if self.source is not None:
            self.source.close()
        if self.replies is not None:
            self.replies.close()

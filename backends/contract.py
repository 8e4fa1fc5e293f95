"""What a backend is: four calls, made by a worker, from one thread.

    load(model) -> Signature     once, before any batch
    execute(batch) -> None       reads `batch.inputs`, `.calls` or `.requests`, fills `batch.outputs`, `.results` or `.replies`
    describe() -> object         between two batches, when somebody asks what the model says of itself
    close() -> None              once, after the last batch

A typed signature (declared inputs) gives the backend one array per input, a view of the slab; a framed one (declared, but not
fixed: protocol/tensor.py) gives it one `TensorCall` per request, and an empty signature byte payloads. A backend raises a `RingServeError` to answer the whole batch with it; any other exception is answered
as `PredictionFailed` and logged with its traceback. After an exception the worker tries parts of the batch, so that only
the row that caused it fails: `execute` may see the same rows again, fewer at a time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from ringserve.protocol.errors import PredictionFailed, RingServeError
from ringserve.protocol.request import Scalar
from ringserve.protocol.tensor import Signature


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """One model version as its worker sees it.

    `device` is "cpu" or "cuda:<n>"; `gpu_id` is that n, or None on the CPU. `handler` is the manifest's entry point
    (`module[:function]`); `config` is the parsed model-config.yaml ({} without one), and `signature` the inputs and outputs
    it declares. `metrics` are those that are registered for handlers: type, name, unit and the names of the dimensions.
    `envelope` is the name of what a handler is wrapped in, "" for nothing.
    """

    name: str
    version: str
    model_dir: Path
    handler: str
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    batch_size_max: int
    device: str = "cpu"
    gpu_id: int | None = None
    decode_input_request: bool = True
    limit_max_image_pixels: bool = True
    server_version: str = "0.0.0"
    signature: Signature = field(default_factory=Signature)
    metrics: Sequence[tuple[str, str, str, Sequence[str]]] = ()
    envelope: str = ""


class InputPart(NamedTuple):
    """One named input of a byte-payload request. `data` is a read-only view of the slab, valid during `execute`."""

    name: str
    content_type: str
    data: memoryview


@dataclass(frozen=True, slots=True)
class Request:
    """One byte-payload row. Header names are lower case."""

    request_id: str
    headers: Mapping[str, str]
    parts: Sequence[InputPart]


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one byte-payload row. `content_type` None sends no such header."""

    body: bytes | bytearray | memoryview
    content_type: str | None = None
    status: int = 200
    phrase: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


class TensorCall(NamedTuple):
    """One request of a framed model. `inputs` are views of the slab by name, valid until it is answered and not to be written to; they
    begin with the batch dimension, `rows` long, where the signature has one (`rows` is 1 where it has none). Elements of BYTES are
    `bytes` in object arrays; BF16 is `ml_dtypes.bfloat16` where the model has imported that, else uint16. Optional inputs that did
    not come are missing. `outputs` are the names of those that are wanted, () for all. `deadline_ns` is CLOCK_MONOTONIC, 0 for never."""

    request_id: str
    inputs: Mapping[str, np.ndarray]
    rows: int = 1
    parameters: Mapping[str, Scalar] = {}
    outputs: Sequence[str] = ()
    sequence_id: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False
    priority: int = 0
    deadline_ns: int = 0
    headers: Mapping[str, str] = {}


class TensorResult(NamedTuple):
    """The answer to one `TensorCall`: arrays by name, with the batch dimension where the signature has one."""

    outputs: Mapping[str, np.ndarray]
    parameters: Mapping[str, Scalar] = {}


class ContractBroken(PredictionFailed):
    """What the model answered is not one answer for each row. Its code is at fault and not its input: with fewer rows the
    same would happen, so nothing is tried again."""


def check_count(expected: int, got: int) -> None:
    """Raise `ContractBroken`, in TorchServe's words, unless there is one answer for each row."""
    if expected != got:
        raise ContractBroken(f"number of batch response mismatched, expect: {expected}, got: {got}.")


class BatchControl:
    """What a backend may say and ask while it executes a batch. This one belongs to nobody: nothing is cancelled, and what is
    streamed goes nowhere; a worker gives its batches one that leads to their clients."""

    def cancelled(self, row: int) -> bool:
        """Whether the client of this row is gone: what it is answered nobody reads."""
        return False

    def stream(self, parts: Sequence[Reply | RingServeError | None]) -> bool:
        """Send one part of every row's answer now (None: nothing for that row); `batch.replies` hold the last parts. Blocks while
        the clients read slower than the model writes. The status and headers of a row's first part are those of its answer; an
        error ends it. Returns whether anybody is still there to read. Raises `ContractBroken`."""
        return True

    def send(
        self,
        row: int,
        answer: Mapping[str, np.ndarray] | RingServeError | None,
        parameters: Mapping[str, Scalar] | None = None,
        *,
        final: bool = False,
    ) -> bool:
        """One more answer of a decoupled model to one request, now; an error, or None with `final`, ends it too. From any thread, also
        after `execute` has returned: the batch is over when every row has had its last one or is cancelled. Blocks while the client
        reads slower than the model writes. Returns whether anybody is still there to read. Raises `ContractBroken` for what cannot
        be sent, and where the row has had its last one."""
        return True


class PartOf(BatchControl):
    """Some rows of a batch, as the backend that runs only these sees them."""

    def __init__(self, whole: BatchControl, rows: Sequence[int], whole_rows: int) -> None:
        self._whole = whole
        self._rows = rows
        self._whole_rows = whole_rows

    def cancelled(self, row: int) -> bool:
        return self._whole.cancelled(self._rows[row])

    def stream(self, parts: Sequence[Reply | RingServeError | None]) -> bool:
        check_count(len(self._rows), len(parts))
        of_all: list[Reply | RingServeError | None] = [None] * self._whole_rows
        for row, part in zip(self._rows, parts, strict=True):
            of_all[row] = part
        self._whole.stream(of_all)
        return not all(self.cancelled(row) for row in range(len(self._rows)))

    def send(
        self,
        row: int,
        answer: Mapping[str, np.ndarray] | RingServeError | None,
        parameters: Mapping[str, Scalar] | None = None,
        *,
        final: bool = False,
    ) -> bool:
        return self._whole.send(self._rows[row], answer, parameters, final=final)


@dataclass(slots=True)
class Batch:
    """One batch. Typed: `inputs` and `outputs` are arrays `[rows, *shape]` by name, views of the slab. The inputs are not to be written to.

    Framed: `calls` has one entry a row, and `rows` counts those; `results` must be given one `TensorResult` or error for each. Where
    the signature batches and is not ragged, `inputs` are those of all calls put next to each other (equal names, element types and
    trailing shapes; as many in the batch dimension as the calls have together), and a backend may put arrays of the same length into
    `outputs` by name instead, which are divided among the calls. Where a batch has one call, `inputs` are that one's. A ragged
    signature gives several calls, each with arrays of its own, and no `inputs`; without a batch dimension there is one call a batch.
    A decoupled one is answered by `control.send`, and has no `results`.

    Undeclared: `requests` has one entry a row and `replies` must be given one `Reply` or error a row. `is_retry` says that
    the failure of these rows has been logged before.
    """

    rows: int
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    outputs: Mapping[str, np.ndarray] = field(default_factory=dict)
    calls: Sequence[TensorCall] = ()
    results: list[TensorResult | RingServeError] = field(default_factory=list)
    requests: Sequence[Request] = ()
    replies: list[Reply | RingServeError] = field(default_factory=list)
    control: BatchControl = field(default_factory=BatchControl)
    is_retry: bool = False


class Backend(Protocol):
    """Implemented by every file named `*_backend.py`."""

    def load(self, model: LoadedModel) -> Signature:
        """Load the model and say what it takes. Raises `InvalidModel`, or whatever the model's own code raises."""

    def execute(self, batch: Batch) -> None:
        """Answer every row of the batch."""

    def describe(self) -> object:
        """What the model says of itself: an object that JSON can say, the text of one, or None for nothing. Raises as `execute`."""

    def close(self) -> None:
        """Let go of the model."""

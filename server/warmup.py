"""Warm-up: samples that a freshly loaded model must answer before its worker says that it is ready.

A sample goes the way of a request: encoded as a front end does it, in a slab of its own, run by the worker's `Execution`, its
answer read back. So what a model does at its first request (imports, kernels chosen, graphs compiled, caches filled) no client
waits for. Each runs as a batch of one row, and where the model takes batches, as a full one too, `repeat` times each: those are
the sizes asked for most, and a compiled model keeps a program for every size.

Samples are those of `warmup:` in model-config.yaml, then the files in the archive's MAR-INF/warmup/ in the order of their names,
unless `warmup: []` says that there are none. One that cannot be read, or whose answer is an error, is a model that cannot be
loaded. All this is part of loading, and of its startup_timeout.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ringserve.backends.contract import Backend
from ringserve.protocol.errors import InvalidModel, OutOfResources, PredictionFailed, RingServeError
from ringserve.protocol.request import HANDLER_HEADERS, InferRequest, TensorRequest
from ringserve.protocol.tensor import Signature
from ringserve.server.budget import arrays_of
from ringserve.server.encoders import encoder_for
from ringserve.server.execution import Execution
from ringserve.server.forms import is_form, parse_form
from ringserve.server.payloads import Payload
from ringserve.server.replies import Overflow, read_reply
from ringserve.server.repository.manifest import check_inside
from ringserve.server.repository.sections import SAMPLES_MAX, Sample, content_type_of
from ringserve.server.streaming import Chunks
from ringserve.shm.lane import Lane, Slab
from ringserve.shm.layout import LANE_MAGIC, REPLY_ID, LaneShape, lane_bytes, write_header
from ringserve.shm.ring import Command, Completion
from ringserve.shm.segment import Segment
from ringserve.shm.shm_errors import OutOfSharedMemory

logger = logging.getLogger("ringserve.worker")

STORED = Path("MAR-INF/warmup")
SAMPLE_BYTES_MAX = 64 << 20
# For the answers; longer ones get a segment of their own, as any do.
ANSWER_BYTES = 1 << 20
CAUSE_CHARS_MAX = 500


class WarmupRequest(NamedTuple):
    """A sample with its bytes, or its `tensors`; `name` is how people know it. It is run as one row and as a full batch, or as `rows`."""

    name: str
    content_type: str
    body: bytes
    repeat: int
    tensors: TensorRequest | None = None
    rows: int = 0


def warm_up(
    backend: Backend,
    signature: Signature,
    batch_size: int,
    response_bytes_max: int,
    samples: Iterator[WarmupRequest],
) -> None:
    """Raises a `RingServeError` naming the sample, the kind of its cause kept."""
    runner = Runner(backend, signature, batch_size, response_bytes_max)
    start_s, count = time.monotonic(), 0
    for sample in samples:
        try:
            runner.run(sample)
        except RingServeError as error:
            text = f"Warm-up with {sample.name} failed: {error.message}"
            raise type(error)(text, status=error.http_status) from None
        count += 1
    if count:
        logger.info("warmed up with %d samples in %.2f s", count, time.monotonic() - start_s)


def samples_of(model_dir: Path, configured: Sequence[Sample], config: Mapping[str, object]) -> Iterator[WarmupRequest]:
    """Each is read when its turn comes. Raises `InvalidModel`."""
    for index, sample in enumerate(configured):
        name, body = f"warmup[{index}]", sample.body
        if sample.file is not None:
            name = f"{name}, {sample.file}"
            check_inside(name, sample.file)
            body = _read(model_dir / sample.file, name)
        yield WarmupRequest(name, sample.content_type, body, sample.repeat)
    if config.get("warmup") == []:
        return
    stored = _stored(model_dir / STORED)
    if len(stored) > SAMPLES_MAX:
        raise InvalidModel(f"{STORED}: expected at most {SAMPLES_MAX} samples, got {len(stored)}")
    for path in stored:
        name = f"{STORED / path.name}"
        yield WarmupRequest(name, content_type_of(path.name), _read(path, name), 1)


def samples_of_tensors(model_dir: Path, config: Mapping[str, Any], signature: Signature) -> Iterator[WarmupRequest]:
    """Those of `model_warmup`, of a model that is configured in Triton's words. A sequence, or a stream of answers, is no sample. Raises `InvalidModel`."""
    triton = config.get("triton", {})
    if not triton.get("model_warmup") or not signature.declared or signature.decoupled or "sequence_batching" in triton:
        return
    from ringserve.server.warmup_tensors import tensor_samples

    for name, request, rows, times in tensor_samples(model_dir, triton, signature, _read_inside, SAMPLE_BYTES_MAX):
        yield WarmupRequest(name, "", b"", times, request, rows)


def _read_inside(folder: Path, name: str, where: str) -> bytes:
    check_inside(where, name)
    return _read(folder / name, where)


def _stored(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _read(path: Path, name: str) -> bytes:
    try:
        if not path.is_file():  # what is no plain file could make us wait for ever
            raise InvalidModel(f"Warm-up with {name} failed: expected a file of the archive, found none.")
        with path.open("rb") as file:
            body = file.read(SAMPLE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidModel(f"Warm-up with {name} failed: it cannot be read: {error.strerror}.") from None
    if len(body) > SAMPLE_BYTES_MAX:
        raise InvalidModel(f"Warm-up with {name} failed: expected at most {SAMPLE_BYTES_MAX} bytes, got more.")
    return body


class _EagerReader(Chunks):
    """Chunks of streamed answers for the fastest of clients, who has read each as soon as it is written."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.gone = False
        self.waited_ns = 0

    def wait_for_credit(self) -> bool:
        return True

    def announce(self, chunk: Completion) -> None:
        pass


class Runner:
    """Runs samples through one backend."""

    def __init__(self, backend: Backend, signature: Signature, batch_size: int, response_bytes_max: int) -> None:
        # No search for the row that failed: all rows are the same.
        self._execution = Execution(backend, signature, response_bytes_max, retry_s_max=0.0)
        self._signature = signature
        self._encoder = encoder_for(signature)
        self._batch_size = batch_size

    def run(self, sample: WarmupRequest) -> None:
        """Raises the first error that a row was answered with."""
        payload = self._encoder.encode(_request(sample, typed=self._signature.typed))
        inputs, outputs = arrays_of(self._signature)
        # Every row of a batch of bytes refers to the same bytes: a full batch takes no more memory than its answers do.
        shape = LaneShape(1, self._batch_size, inputs, outputs, payload.slab_bytes(), ANSWER_BYTES)
        try:
            segment = Segment.create_parcel(lane_bytes(shape))
        except OutOfSharedMemory as error:
            raise OutOfResources(f"no memory for a batch of {self._batch_size} rows: {error}") from None
        write_header(segment.view, LANE_MAGIC, shape.fingerprint())
        lane = Lane(segment, shape)
        try:
            for rows in (sample.rows,) if sample.rows else sorted({1, self._batch_size}):
                for _ in range(sample.repeat):
                    self._run_batch(lane.slabs[0], payload, rows)
        finally:
            lane.close()

    def _run_batch(self, slab: Slab, payload: Payload, rows: int) -> None:
        for row in range(rows):
            payload.write(slab, row, 0, row, 0)
        command = Command(0, 0, 0, rows, 0, len(slab.bytes_out))
        parcel = self._execution.run(slab, command, _EagerReader(), _no_parcel)
        overflow = None if parcel is None else Overflow(parcel)
        try:
            for line in slab.table[:rows, REPLY_ID:].tolist():
                _check_answer(slab, line, overflow)
        finally:
            if overflow is not None:
                overflow.drop()


def _request(sample: WarmupRequest, *, typed: bool) -> InferRequest:
    """As the server's HTTP side makes it of what a client has posted."""
    headers: dict[str, str] = {}
    if not typed:
        headers = {"content-type": sample.content_type, "content-length": str(len(sample.body)), **HANDLER_HEADERS}
    request = InferRequest("warm-up", sample.content_type, headers, sample.body, tensors=sample.tensors)
    if is_form(sample.content_type):
        return request._replace(parts=parse_form(sample.content_type, sample.body, typed=typed), body=b"")
    return request


def _no_parcel() -> Segment:
    raise AssertionError("the slab was made for the sample")


def _check_answer(slab: Slab, line: Sequence[int], overflow: Overflow | None) -> None:
    answer = read_reply(slab, line, overflow, None)
    if isinstance(answer, RingServeError):
        raise answer
    if answer.status >= 400:
        body = answer.body[:CAUSE_CHARS_MAX].decode("utf-8", "replace")
        raise PredictionFailed(f"it was answered with status {answer.status}: {body}")

"""What a running batch may say and ask: the worker's side of streamed answers and of clients that leave.

A part of the rows' answers becomes frames (chunks.py) in the batch's own part of the slab, which is divided for that: a
slot for each chunk that may be on its way, and one for the last parts.

    bytes out of the batch   | slot 0 | slot 1 | ... | last parts |

The front end copies a chunk when it hears of it and gives its credit back when the clients have taken it, in any order. With
as many slots as credits, a credit in hand means that the slot's former chunk was copied.
"""

import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from ringserve.backends.contract import BatchControl, ContractBroken, Reply, check_count
from ringserve.protocol.errors import OutOfResources, PredictionFailed, RingServeError
from ringserve.server.chunks import PIECE, Piece, split, write_frame
from ringserve.server.replies import STATUS_CHUNK, encode_reply_head, too_large
from ringserve.shm.faults import reach
from ringserve.shm.lane import Slab
from ringserve.shm.layout import CACHE_LINE, ROW_CANCELLED, ROW_FLAGS
from ringserve.shm.link import CHUNK_CREDITS, WorkerLink
from ringserve.shm.ring import Command, Completion
from ringserve.shm.shm_errors import PeerGone

# A slot smaller than this holds little more than heads: such a batch cannot stream.
SLOT_BYTES_MIN = 4 * CACHE_LINE
# How often a worker that waits for slow readers says that it lives.
WAIT_MS = 500


class Chunks:
    """The chunks of one link, over all its batches. `gone`: its front end has ended, and nobody reads any more."""

    def __init__(self, link: WorkerLink) -> None:
        self._link = link
        self._credits = CHUNK_CREDITS
        self._poller = select.poll()
        self._poller.register(link.credits.fd, select.POLLIN)
        self.lock = threading.Lock()  # a model may speak from threads of its own
        self.waited_ns = 0  # for clients that read slowly
        self.gone = False
        self.on_alive: Callable[[], None] = lambda: None

    def wait_for_credit(self) -> bool:
        """Block until another chunk may be sent; false when its front end is gone. A client that reads nothing is cut off by
        the front end, which then gives the credit; a server whose every process but this one hangs is left by the clock
        that runs when the supervisor is gone."""
        if not self._credits and not self.gone:
            start_ns = time.monotonic_ns()
            while not self._credits and not self.gone:
                self._poller.poll(WAIT_MS)
                self._collect()
                self.on_alive()
            self.waited_ns += time.monotonic_ns() - start_ns
        return not self.gone

    def _collect(self) -> None:
        try:
            # Never more than there are slots, whatever the other end says.
            self._credits = min(self._credits + self._link.credits.collect(), CHUNK_CREDITS)
        except PeerGone:
            self.gone = True

    def announce(self, chunk: Completion) -> None:
        """Tell of a chunk that has been written, for the credit that was waited for."""
        assert self._credits > 0
        self._credits -= 1
        self.on_alive()
        pushed = self._link.completions.try_push(chunk)
        assert pushed, "chunks on their way and finished batches are fewer than the ring holds"
        reach("chunk-pushed")
        try:
            self._link.bell.ring()
        except PeerGone:
            self.gone = True


class RunningBatch(BatchControl):
    """The rows of one command, counted from its first. After `close` nothing leads to their clients any more: a thread that
    the model left behind cannot write into what is another batch's memory by then."""

    # Nearly every batch ends with these as they are: they cost it nothing here.
    _begun: set[int] | None = None  # rows whose head was sent; None: nothing was streamed
    _sent = 0
    _slot_bytes = 0
    _closed = False

    def __init__(self, slab: Slab, command: Command, chunks: Chunks, response_bytes_max: int, *, typed: bool) -> None:
        self._slab = slab
        self._command = command
        self._chunks = chunks
        self._response_bytes_max = response_bytes_max
        self._typed = typed
        self.ended: dict[int, RingServeError] = {}  # rows whose stream cannot go on, and why

    @property
    def streamed(self) -> bool:
        return self._begun is not None

    def cancelled(self, row: int) -> bool:
        if self._closed or self._chunks.gone:
            return True
        return bool(int(self._slab.table[self._command.first + row, ROW_FLAGS]) & ROW_CANCELLED)

    def stream(self, parts: Sequence[Reply | RingServeError | None]) -> bool:
        if self._typed:
            raise ContractBroken("A typed model answers in arrays and does not stream.")
        check_count(self._command.rows, len(parts))
        if not self._stream(list(enumerate(parts))):
            return False
        return not all(self.cancelled(row) for row in range(self._command.rows))

    def _stream(self, parts: Sequence[tuple[int, Reply | RingServeError | None]]) -> bool:
        """Parts of the answers of some rows. False when the batch is over."""
        with self._chunks.lock:
            if self._closed:
                return False
            if self._begun is None:
                self._begun = set()
                self._slot_bytes = self._command.out_bytes // (CHUNK_CREDITS + 1) // CACHE_LINE * CACHE_LINE
            self._send([piece for row, part in parts for piece in self._pieces(row, part)])
        return True

    def close(self) -> Command:
        """The batch is over. Returns the command with what is left of its memory for the last parts."""
        with self._chunks.lock:
            self._closed = True
        command, used = self._command, self._slot_bytes * CHUNK_CREDITS
        if not used:
            return command
        return command._replace(out_at=command.out_at + used, out_bytes=command.out_bytes - used)

    def _pieces(self, row: int, part: Reply | RingServeError | None) -> Iterator[Piece]:
        assert self._begun is not None
        if part is None or row in self.ended or self.cancelled(row):
            return
        error = part if isinstance(part, RingServeError) else too_large(part, self._response_bytes_max)
        head = b""
        if error is None and isinstance(part, Reply) and row not in self._begun:
            head = encode_reply_head(part)
            error = self._misfit(head)
        if error is not None:
            self.ended[row] = error
        elif isinstance(part, Reply) and (head or part.body):
            self._begun.add(row)
            yield Piece(row, head, part.body)

    def _misfit(self, head: bytes) -> RingServeError | None:
        slot = self._slot_bytes
        if slot < SLOT_BYTES_MIN:
            room = f"its batch has {self._command.out_bytes} bytes of the lane"
            return OutOfResources(
                f"The answer cannot be streamed: {room}, {SLOT_BYTES_MIN * (CHUNK_CREDITS + 1)} are needed."
            )
        if PIECE.size + len(head) > slot:
            return PredictionFailed(f"The answer's headers have {len(head)} bytes; a streamed answer may have {slot}.")
        return None

    def _send(self, pieces: list[Piece]) -> None:
        if not pieces:
            return
        command = self._command
        for frame in split(pieces, self._slot_bytes):
            if not self._chunks.wait_for_credit():
                return
            wanted = [piece for piece in frame if not self.cancelled(piece.row)]  # some may have left meanwhile
            if not wanted:
                continue
            chunk_at = command.out_at + self._sent % CHUNK_CREDITS * self._slot_bytes
            chunk_bytes = write_frame(self._slab.bytes_out[chunk_at : chunk_at + self._slot_bytes], wanted)
            self._sent += 1
            status = STATUS_CHUNK
            self._chunks.announce(
                Completion(command.sequence, command.slab, command.rows, status, chunk_at, chunk_bytes)
            )

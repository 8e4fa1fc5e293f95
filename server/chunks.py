"""A chunk frame: what lies in a slab's outgoing byte region when a worker has sent parts of streamed answers.

    | row, head bytes, body bytes | head | body | row, head bytes, body bytes | head | body | ...

The worker writes it, the front end reads it. A piece is some bytes of one row's answer, in order; the first piece of a row
carries the head. A part longer than a frame becomes several pieces: a client sees the same bytes, in other chunks.
"""

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ringserve.shm.shm_errors import RingCorrupt

PIECE = struct.Struct("<III")  # row, counted from the batch's first; bytes of the head; bytes of the body


class Piece(NamedTuple):
    """`row` is counted from the batch's first. `head` is an encoded `ReplyHead` on a row's first piece, else empty."""

    row: int
    head: bytes
    body: bytes | bytearray | memoryview


def split(pieces: Sequence[Piece], frame_bytes_max: int) -> Iterator[list[Piece]]:
    """The pieces, cut where a frame is full. A head is never cut: with its piece's line it must fit into a frame."""
    assert frame_bytes_max > PIECE.size
    frame: list[Piece] = []
    room = frame_bytes_max
    for row, head, whole in pieces:
        assert PIECE.size + len(head) <= frame_bytes_max, "the sender checks the length of a head"
        body = memoryview(whole)
        while True:
            # A piece that would hold nothing of its body is worth a frame only when it has none.
            needed = PIECE.size + len(head) + min(len(body), 1)
            if frame and needed > room:
                yield frame
                frame, room = [], frame_bytes_max
            take = max(0, min(len(body), room - PIECE.size - len(head)))
            frame.append(Piece(row, head, body[:take]))
            room -= PIECE.size + len(head) + take
            body, head = body[take:], b""
            if not body:
                break
    if frame:
        yield frame


def write_frame(memory: memoryview, pieces: Sequence[Piece]) -> int:
    """Put a frame at the beginning of `memory`; how many bytes it has."""
    at = 0
    for row, head, body in pieces:
        PIECE.pack_into(memory, at, row, len(head), len(body))
        head_at = at + PIECE.size
        body_at = head_at + len(head)
        at = body_at + len(body)
        memory[head_at:body_at] = head
        memory[body_at:at] = body
    return at


def read_frame(memory: memoryview) -> list[Piece]:
    """The pieces of the frame that `memory` is, copied. Raises `RingCorrupt`: a worker runs code of its users and may have
    written anything. Whether there is such a row is the caller's to check."""
    pieces, at, end = [], 0, len(memory)
    while at < end:
        if end - at < PIECE.size:
            raise RingCorrupt(f"a chunk of {end} bytes ends within a piece's line")
        row, head_bytes, body_bytes = PIECE.unpack_from(memory, at)
        head_at = at + PIECE.size
        body_at = head_at + head_bytes
        at = body_at + body_bytes
        if at > end:
            raise RingCorrupt(f"a chunk of {end} bytes announces a piece that ends at {at}")
        pieces.append(Piece(row, bytes(memory[head_at:body_at]), bytes(memory[body_at:at])))
    return pieces

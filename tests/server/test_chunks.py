"""Chunk frames: what a worker writes is what a front end reads, cut or not; and what no worker of ours writes is refused."""

from collections.abc import Sequence
from itertools import groupby

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ringserve.server.chunks import PIECE, Piece, read_frame, split, write_frame
from ringserve.shm.shm_errors import RingCorrupt

FRAME_BYTES_MIN = 64

pieces = st.builds(
    Piece, row=st.integers(0, 63), head=st.binary(max_size=FRAME_BYTES_MIN - PIECE.size), body=st.binary(max_size=500)
)


def through(frame: Sequence[Piece], frame_bytes_max: int) -> list[Piece]:
    memory = memoryview(bytearray(frame_bytes_max))
    return read_frame(memory[: write_frame(memory, frame)])


def joined(found: Sequence[Piece]) -> list[tuple[int, bytes, bytes]]:
    """Heads and bytes of each row, in order."""
    by_row = groupby(sorted(found, key=lambda piece: piece.row), key=lambda piece: piece.row)
    return [
        (row, b"".join(piece.head for piece in group), b"".join(bytes(piece.body) for piece in group))
        for row, group in ((row, list(each)) for row, each in by_row)
    ]


@given(st.lists(pieces, max_size=8), st.integers(FRAME_BYTES_MIN, 2000))
@example([Piece(0, b"h" * (FRAME_BYTES_MIN - PIECE.size), b"body")], FRAME_BYTES_MIN)
def test_every_row_reads_the_bytes_that_were_sent_to_it_in_their_order(sent: list[Piece], frame_bytes_max: int) -> None:
    read = [piece for frame in split(sent, frame_bytes_max) for piece in through(frame, frame_bytes_max)]
    assert joined(read) == joined(sent)


@given(st.lists(pieces, max_size=8), st.integers(FRAME_BYTES_MIN, 2000))
def test_no_frame_is_larger_than_it_may_be_and_none_is_empty(sent: list[Piece], frame_bytes_max: int) -> None:
    for frame in split(sent, frame_bytes_max):
        assert frame
        assert write_frame(memoryview(bytearray(frame_bytes_max)), frame) <= frame_bytes_max


def test_what_fits_into_one_frame_stays_together() -> None:
    sent = [Piece(row, b"head", b"body") for row in range(4)]
    assert [len(frame) for frame in split(sent, 4 * (PIECE.size + 8))] == [4]


def test_a_long_body_is_cut_and_only_its_first_piece_has_the_head() -> None:
    frames = list(split([Piece(3, b"head", b"x" * 100)], PIECE.size + 40))
    assert [[(piece.row, piece.head, len(piece.body)) for piece in frame] for frame in frames] == [
        [(3, b"head", 36)],
        [(3, b"", 40)],
        [(3, b"", 24)],
    ]


def test_a_piece_that_is_read_outlives_the_memory_it_came_from() -> None:
    memory = bytearray(100)
    size = write_frame(memoryview(memory), [Piece(1, b"head", b"body")])
    (piece,) = read_frame(memoryview(memory)[:size])
    memory[:] = bytes(100)
    assert piece == Piece(1, b"head", b"body")


@given(st.binary(max_size=80))
def test_any_bytes_are_pieces_or_are_refused(garbage: bytes) -> None:
    try:
        found = read_frame(memoryview(garbage))
    except RingCorrupt:
        return
    assert sum(PIECE.size + len(piece.head) + len(piece.body) for piece in found) == len(garbage)


@pytest.mark.parametrize(("head_bytes", "body_bytes"), [(0, 5), (5, 0), (2**32 - 1, 2**32 - 1), (0, 2**32 - 1)])
def test_a_piece_that_ends_beyond_its_frame_is_refused(head_bytes: int, body_bytes: int) -> None:
    frame = memoryview(PIECE.pack(0, head_bytes, body_bytes) + b"1234")
    with pytest.raises(RingCorrupt, match="announces a piece that ends at"):
        read_frame(frame)

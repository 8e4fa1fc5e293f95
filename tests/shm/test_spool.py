"""What goes into a spool comes out of it, whatever the pieces, and never is all of it mapped."""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.shm import spool as spool_module
from ringserve.shm.segment import Segment
from ringserve.shm.shm_errors import OutOfSharedMemory, RingCorrupt
from ringserve.shm.spool import WINDOW_BYTES, WINDOW_BYTES_FIRST, Spool, Windows

PAGE = os.sysconf("SC_PAGE_SIZE")
SMALL_WINDOW = 4 * PAGE
LARGE = 256 << 20


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def resident_kib() -> int:
    match = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match is not None
    return int(match[1])


def pattern(length: int) -> bytes:
    """Bytes that differ from page to page."""
    return b"".join(number.to_bytes(4, "little") for number in range(-(-length // 4)))[:length]


def content(spool: Spool) -> bytes:
    """What another process would map."""
    segment = Segment.attach(os.dup(spool.fd))
    found = bytes(segment.view)
    segment.close()
    return found


@pytest.fixture
def small_windows(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(spool_module, "WINDOW_BYTES", SMALL_WINDOW)
    monkeypatch.setattr(spool_module, "WINDOW_BYTES_FIRST", PAGE)
    yield


lengths = st.one_of(
    st.integers(0, 50), st.integers(0, 9 * PAGE), st.sampled_from([PAGE, SMALL_WINDOW, 2 * SMALL_WINDOW])
)
every_way = pytest.mark.parametrize("announced", [True, False])


@every_way
@given(pieces=st.lists(lengths, max_size=6))
def test_pieces_of_any_length_follow_each_other(announced: bool, pieces: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "WINDOW_BYTES", SMALL_WINDOW)
        patch.setattr(spool_module, "WINDOW_BYTES_FIRST", PAGE)
        data = pattern(sum(pieces))
        spool = Spool(len(data) if announced else None)
        at = 0
        for length in pieces:
            spool.write(data[at : at + length])
            at += length
        assert spool.written == len(data)
        spool.finish()
        assert content(spool) == (data or b"\0")
        assert spool.size_bytes == max(1, len(data))
        spool.close()


@given(length=st.integers(1, 9 * PAGE), most=st.integers(1, 2 * SMALL_WINDOW))
def test_a_reader_that_fills_what_it_is_lent_never_gets_more_than_was_announced(length: int, most: int) -> None:
    """The way a socket is read: ask for room, receive some, say how much."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool_module, "WINDOW_BYTES", SMALL_WINDOW)
        data = pattern(length)
        spool = Spool(length)
        while memory := spool.memory():
            assert len(memory) <= min(SMALL_WINDOW, length - spool.written)
            count = min(most, len(memory))
            memory[:count] = data[spool.written : spool.written + count]
            spool.advance(count)
        assert spool.written == length
        spool.finish()
        assert content(spool) == data
        spool.close()


def test_what_was_announced_and_did_not_come_is_cut_off() -> None:
    spool = Spool(10 * PAGE)
    spool.write(b"a beginning")
    spool.finish()
    assert content(spool) == b"a beginning"
    assert os.fstat(spool.fd).st_blocks * 512 == PAGE
    spool.close()


def test_a_short_body_of_unknown_length_takes_a_short_window() -> None:
    spool = Spool(None)
    assert len(spool.memory()) == WINDOW_BYTES_FIRST
    spool.close()


def test_windows_grow_up_to_their_limit() -> None:
    spool, windows = Spool(None), []
    while spool.written < 3 * WINDOW_BYTES:
        windows.append(len(spool.memory()))
        spool.advance(windows[-1])
    spool.close()
    assert windows == sorted(windows)
    assert windows[-1] == WINDOW_BYTES


@pytest.mark.usefixtures("small_windows")
def test_memory_that_runs_out_on_the_way_is_a_sentence_and_leaks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    reserve = os.posix_fallocate

    def full(fd: int, offset: int, length: int) -> None:
        if offset >= SMALL_WINDOW:
            raise OSError(errno.ENOSPC, "No space left on device")
        reserve(fd, offset, length)

    monkeypatch.setattr(os, "posix_fallocate", full)
    before = open_fds()
    spool = Spool(2 * SMALL_WINDOW)
    spool.write(bytes(SMALL_WINDOW))
    with pytest.raises(OutOfSharedMemory, match=f"more than the {SMALL_WINDOW} bytes .* No space left on device"):
        spool.memory()
    spool.close()
    assert open_fds() == before


def test_a_process_without_descriptors_left_is_a_sentence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, flags: int) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with pytest.raises(OutOfSharedMemory, match="Too many open files"):
        Spool(1)


def test_closing_twice_is_closing_once_and_leaves_no_descriptor() -> None:
    before = open_fds()
    spool = Spool(None)
    spool.write(b"x")
    spool.close()
    spool.close()
    assert open_fds() == before


def test_a_view_of_an_old_window_outlives_it() -> None:
    """A transport may still hold what it was lent: what it looks at stays, only longer than needed."""
    spool = Spool(None)
    first = spool.memory()
    first[:5] = b"first"
    spool.advance(len(first))
    second = spool.memory()
    second[:6] = b"second"
    assert bytes(first[:5]) == b"first"
    spool.close()
    assert (bytes(first[:5]), bytes(second[:6])) == (b"first", b"second")


@given(before=st.integers(0, 3 * PAGE), length=st.integers(0, 12 * PAGE), window=st.integers(1, 5))
@settings(deadline=None)
def test_windows_show_exactly_the_part_that_was_asked_for(before: int, length: int, window: int) -> None:
    data = pattern(before + length + 7)
    spool = Spool(len(data))
    spool.write(data)
    spool.finish()
    windows, found = Windows(spool.fd, before, length, window * PAGE), []
    while (view := windows.next()) is not None:
        assert 0 < len(view) <= window * PAGE
        assert view.readonly
        found.append(bytes(view))
        assert windows.left == length - sum(map(len, found))
    assert b"".join(found) == data[before : before + length]
    assert windows.next() is None
    windows.close()
    spool.close()


@pytest.mark.parametrize(("at", "length"), [(0, 101), (101, 0), (50, 51), (-1, 5), (5, -1)])
def test_a_part_that_the_segment_does_not_have_is_refused(at: int, length: int) -> None:
    """Another process says where its answer lies; reading past the end would be a SIGBUS."""
    spool = Spool(100)
    spool.write(bytes(100))
    spool.finish()
    with pytest.raises(RingCorrupt, match="in a segment of 100 bytes"):
        Windows(spool.fd, at, length)
    spool.close()


def test_windows_leave_no_descriptor_behind() -> None:
    spool = Spool(3 * PAGE)
    spool.write(bytes(3 * PAGE))
    spool.finish()
    before = open_fds()
    windows = Windows(spool.fd, 0, 3 * PAGE, PAGE)
    assert windows.next() is not None
    windows.close()
    windows.close()
    assert open_fds() == before
    spool.close()


def test_a_large_body_is_never_resident_at_once() -> None:
    """Written and read back: the process holds a window of it, not the whole."""
    piece = os.urandom(1 << 20)
    before, most = resident_kib(), 0
    spool = Spool(LARGE)
    for _ in range(LARGE // len(piece)):
        spool.write(piece)
        most = max(most, resident_kib())
    spool.finish()
    windows = Windows(spool.fd, 0, LARGE)
    while (view := windows.next()) is not None:
        assert view[: len(piece)] == piece
        most = max(most, resident_kib())
    spool.close()
    assert most - before < 4 * WINDOW_BYTES / 1024

"""Bodies in any pieces, read anywhere, are the same bodies; and what is no body is refused."""

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ringserve.protocol.errors import BadRequest, BodyTooLarge, ClientError, OutOfResources
from ringserve.server.landing import BufferLanding, GrowingLanding, Landing
from ringserve.server.routes.receiving import (
    DIRECT_BYTES_MIN,
    LINE_BYTES_MAX,
    SCRATCH,
    TRAILER_BYTES_MAX,
    ChunkedBody,
    Discarded,
    Reader,
    Sink,
    SizedBody,
)
from ringserve.shm.shm_errors import OutOfSharedMemory

LIMIT = 1 << 20
REST = b"POST /predictions/m HTTP/1.1\r\n\r\n"


def poured(sink: Sink, data: bytes, reads: st.DataObject) -> int:
    """As a socket gives it: as much at a time as there is room for, or less. Returns how much was read when it was complete."""
    at = 0
    while at < len(data):
        memory = sink.memory()
        assert memory
        count = min(len(memory), len(data) - at, reads.draw(st.integers(1, 6000)))
        memory[:count] = data[at : at + count]
        at += count
        if sink.advance(count):
            break
    return at


extensions = st.sampled_from([b"", b";a=b", b' ; name="quoted;\\"" ', b"\t", b";" + b"x" * 200])
chunks = st.lists(
    st.tuples(st.binary(min_size=1, max_size=40) | st.integers(1, 9000).map(bytes), extensions, st.booleans()),
    max_size=5,
)
trailers = st.lists(st.sampled_from([b"x-trailer: 1", b"x-other: " + b"y" * 300, b"anything at all"]), max_size=3)


def encoded(sent: list[tuple[bytes, bytes, bool]], trailing: list[bytes], last: bytes = b"0") -> bytes:
    lines = [b"%b%b\r\n%b\r\n" % (_size(data, upper), extension, data) for data, extension, upper in sent]
    return b"".join(lines) + last + b"\r\n" + b"".join(each + b"\r\n" for each in trailing) + b"\r\n"


def _size(data: bytes, upper: bool) -> bytes:
    return (b"%X" if upper else b"00%x") % len(data)


@given(chunks, trailers, st.sampled_from([b"0", b"000;last"]), st.data())
def test_a_chunked_body_in_any_pieces_is_its_chunks(
    sent: list[tuple[bytes, bytes, bool]], trailing: list[bytes], last: bytes, data: st.DataObject
) -> None:
    """Some of it came with the head, the rest is read from the socket; what follows it is kept."""
    wire = encoded(sent, trailing, last)
    landing = GrowingLanding(LIMIT)
    body = ChunkedBody(landing, LIMIT)
    came = data.draw(st.integers(0, len(wire)))
    body.feed(wire[:came])
    assert body.done == (came == len(wire))
    read = came
    if not body.done:
        read += poured(body, wire[came:] + REST, data)
    assert body.done
    assert bytes(landing.body) == b"".join(chunk for chunk, _, _ in sent)
    assert body.rest == (wire + REST)[len(wire) : read]


@given(chunks, trailers, st.lists(st.integers(1, 700), max_size=30))
def test_a_chunked_body_fed_in_any_pieces_is_its_chunks(
    sent: list[tuple[bytes, bytes, bool]], trailing: list[bytes], sizes: list[int]
) -> None:
    wire = encoded(sent, trailing) + REST
    landing = GrowingLanding(LIMIT)
    body, at = ChunkedBody(landing, LIMIT), 0
    for size in [*sizes, len(wire)]:
        if not body.done:
            body.feed(wire[at : at + size])
            at += size
    assert body.done
    assert bytes(landing.body) == b"".join(chunk for chunk, _, _ in sent)
    assert body.rest == wire[len(wire) - len(REST) : at]


@pytest.mark.parametrize(
    "wire",
    [
        b"\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b"1_0\r\n",
        b"1 1\r\n",
        b"\xb2\r\n",
        b";a\r\n",
        b"1\n",
        b"1\r\r\n",
        b"11111111111111111\r\n",
        b"1\r\nab\r\n",
        b"1\r\na\n",
        b"2\r\na\r\n",
        b"1\r\na\r\n\r\n",
        b"0\n\n",
        b"1;" + b"x" * LINE_BYTES_MAX,
        b"x" * 100_000,
        b"0\r\n" + b"x" * LINE_BYTES_MAX + b"\r\n",
        b"0\r\n" + (b"x" * 1000 + b"\r\n") * (TRAILER_BYTES_MAX // 1000 + 1),
        b"1\r\na\r\nHTTP/1.1 200 OK\r\n",
    ],
    ids=lambda wire: repr(wire[:20]),
)
@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_what_is_no_chunk_is_refused_in_a_sentence(wire: bytes, step: int) -> None:
    body = ChunkedBody(GrowingLanding(LIMIT), LIMIT)
    with pytest.raises(BadRequest, match=r"^Body: expected .*got "):
        for at in range(0, len(wire), step):
            body.feed(wire[at : at + step])
    assert not body.done


@given(st.binary(max_size=60) | st.text("0123456789abcdef;\r\n", max_size=60).map(str.encode))
@example(b"0\r\n\r\n")
def test_any_bytes_are_a_body_or_its_beginning_or_refused(data: bytes) -> None:
    whole, split = ChunkedBody(GrowingLanding(LIMIT), LIMIT), ChunkedBody(GrowingLanding(LIMIT), LIMIT)
    refused = [False, False]
    for number, (body, pieces) in enumerate([(whole, [data]), (split, [data[at : at + 1] for at in range(len(data))])]):
        try:
            for piece in pieces:
                if not body.done:
                    body.feed(piece)
        except ClientError:
            refused[number] = True
    assert refused[0] == refused[1]
    assert whole.done == split.done


def test_a_large_chunk_is_read_into_its_place_and_never_beyond() -> None:
    landing = BufferLanding(3 * DIRECT_BYTES_MIN)
    body = ChunkedBody(landing, LIMIT)
    assert body.memory() is SCRATCH
    body.feed(b"%x\r\nab" % (2 * DIRECT_BYTES_MIN))
    memory = body.memory()
    assert len(memory) == 2 * DIRECT_BYTES_MIN - 2
    memory[:] = b"c" * len(memory)
    assert bytes(landing.body[:4]) == b"abcc", "this was the landing's own memory"
    assert not body.advance(len(memory))
    assert body.memory() is SCRATCH, "what comes next is a line"
    body.feed(b"\r\n0\r\n\r\n")
    assert body.done


def test_a_body_over_the_limit_is_refused_when_a_chunk_says_so() -> None:
    """Nothing of that chunk needs to come."""
    landing = GrowingLanding(100)
    body = ChunkedBody(landing, 100)
    body.feed(b"60\r\n" + bytes(96) + b"\r\n4\r\n1234\r\n")
    with pytest.raises(BodyTooLarge, match="100 bytes, the limit max_request_size"):
        body.feed(b"1\r\n")
    assert len(landing.body) == 100


@given(st.binary(max_size=20) | st.integers(0, 20_000).map(bytes), st.data())
def test_a_body_of_known_length_in_any_pieces_is_that_body(data: bytes, draw: st.DataObject) -> None:
    landing = BufferLanding(len(data))
    body = SizedBody(landing, len(data))
    came = draw.draw(st.integers(0, len(data)))
    # What came with the head may hold more than the body.
    behind = b"GET" if came == len(data) else b""
    assert body.feed(data[:came] + behind) == came
    if body.left:
        assert poured(body, data[came:], draw) == len(data) - came
    assert body.left == 0
    assert bytes(landing.body) == data


def test_a_body_of_known_length_is_never_read_beyond_its_end() -> None:
    """Where the landing has room for more."""
    body = SizedBody(GrowingLanding(LIMIT), 10)
    assert len(body.memory()) == 10
    assert not body.advance(4)
    assert len(body.memory()) == 6
    assert body.advance(6)


class FakeConnection:
    """What the reader hands on."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.calls: list[str] = []

    def data_received(self, data: bytes) -> None:
        self.received.append(data)

    def eof_received(self) -> bool:
        self.calls.append("eof")
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")

    def pause_writing(self) -> None:
        self.calls.append("pause")

    def resume_writing(self) -> None:
        self.calls.append("resume")


def read_into(reader: Reader, data: bytes) -> None:
    """One read of the transport."""
    memory = reader.get_buffer(65536)
    assert len(memory) >= len(data)
    memory[: len(data)] = data
    reader.buffer_updated(len(data))


@pytest.fixture
def connection() -> FakeConnection:
    return FakeConnection()


def test_what_is_no_body_is_handed_on_as_bytes(connection: FakeConnection) -> None:
    reader = Reader(connection)
    read_into(reader, b"GET ")
    read_into(reader, b"/")
    assert connection.received == [b"GET ", b"/"]
    assert reader.eof_received()
    reader.pause_writing()
    reader.resume_writing()
    reader.connection_lost(None)
    assert connection.calls == ["eof", "pause", "resume", "lost"]


def test_a_reader_reads_one_body_after_the_other_and_what_lies_between(connection: FakeConnection) -> None:
    reader = Reader(connection)
    ended: list[Exception | None] = []
    for body in (b"first", b"second body"):
        landing = BufferLanding(len(body))
        reader.begin(SizedBody(landing, len(body)), ended.append)
        for byte in body:
            read_into(reader, bytes([byte]))
        assert bytes(landing.body) == body
        read_into(reader, b"between")
    assert ended == [None, None]
    assert connection.received == [b"between", b"between"]


class Failing(BufferLanding):
    """A landing that can do no more."""

    def __init__(self, error: Exception, at: str) -> None:
        super().__init__(100)
        self.error = error
        self.at = at

    def memory(self) -> memoryview:
        if self.at == "memory":
            raise self.error
        return super().memory()

    def advance(self, count: int) -> None:
        raise self.error


@pytest.mark.parametrize("at", ["memory", "advance"])
def test_no_memory_for_a_body_ends_it_and_nothing_else(connection: FakeConnection, at: str) -> None:
    """The transport is lent memory all the same: it has a read to finish."""
    reader = Reader(connection)
    errors: list[Exception | None] = []

    def on_end(error: Exception | None) -> None:
        errors.append(error)
        reader.begin(Discarded(), errors.append)

    landing: Landing = Failing(OutOfSharedMemory("none left"), at)
    reader.begin(SizedBody(landing, 100), on_end)
    read_into(reader, b"some")
    read_into(reader, b"more")
    (error,) = errors
    assert isinstance(error, OutOfResources)
    assert "none left" in error.message
    assert connection.received == []


def test_whatever_goes_wrong_with_a_body_is_told(connection: FakeConnection) -> None:
    reader = Reader(connection)
    errors: list[Exception | None] = []
    mistake = KeyError("surprise")
    reader.begin(SizedBody(Failing(mistake, "advance"), 100), errors.append)
    read_into(reader, b"some")
    assert errors == [mistake]
    assert reader.sink is None


def test_what_follows_a_chunked_body_in_the_same_read_is_not_lost(connection: FakeConnection) -> None:
    """Nor handed on twice: whoever began the body looks for it there."""
    reader = Reader(connection)
    landing = GrowingLanding(LIMIT)
    body = ChunkedBody(landing, LIMIT)
    ended: list[Exception | None] = []
    on_end: Callable[[Exception | None], None] = ended.append
    reader.begin(body, on_end)
    read_into(reader, b"2\r\nab\r\n0\r\n\r\n" + REST)
    assert (ended, body.rest, connection.received) == ([None], REST, [])
    assert bytes(landing.body) == b"ab"

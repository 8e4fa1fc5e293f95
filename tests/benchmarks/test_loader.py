"""The bundled loader against a tiny HTTP server of the test's own."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
with pytest.MonkeyPatch.context() as path_patch:  # benchmarks are run from the root; nothing else may import from there
    path_patch.syspath_prepend(ROOT)
    from benchmarks import loader
    from benchmarks.loader import Answer as Expected
    from benchmarks.loader import Job, Load, Tally, Unreadable, is_right, parse_reply, percentile

SECONDS = 0.1
LIMIT_S = 20.0
Answer = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
ANSWERS: "dict[bytes, Expected]" = {b"one": [1.0, 10.0], b"two": [2.0, 20.0]}


def response(body: bytes, status: int = 200) -> bytes:
    return f"HTTP/1.1 {status} Whatever\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def answer_right(body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(response(repr(ANSWERS[body]).encode()))


async def answer_in_pieces(body: bytes, writer: asyncio.StreamWriter) -> None:
    whole = response(repr(ANSWERS[body]).encode())
    for at in range(0, len(whole), 7):
        writer.write(whole[at : at + 7])
        await writer.drain()
        await asyncio.sleep(0)


async def answer_with_another_clients_row(_body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(response(b"[1.0, 20.0]"))


async def refuse(_body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(response(b"[]", status=503))


async def hang_up(_body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def babble(_body: bytes, writer: asyncio.StreamWriter) -> None:
    writer.write(b"this is not HTTP\r\n\r\n")


async def keep_silent(_body: bytes, _writer: asyncio.StreamWriter) -> None:
    pass


def load_on(answer: Answer, connections: int = 4) -> Load:
    """What the loader makes of a server that answers like that."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                await answer(await reader.readexactly(3), writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def scenario() -> Load:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            job = Job("127.0.0.1", port, "/predict", connections, SECONDS, list(ANSWERS), list(ANSWERS.values()))
            async with asyncio.timeout(LIMIT_S):
                return await loader.run(job)

    return asyncio.run(scenario())


@pytest.mark.parametrize("answer", [answer_right, answer_in_pieces])
def test_right_answers_are_counted_and_timed(answer: Answer) -> None:
    load = load_on(answer)
    assert load.errors == 0
    assert load.requests > 4
    assert load.rps == pytest.approx(load.requests / SECONDS)
    assert 0 < load.p50_ms <= load.p99_ms


@pytest.mark.parametrize("answer", [refuse, answer_with_another_clients_row, hang_up, babble])
def test_what_is_not_a_right_answer_is_an_error(answer: Answer) -> None:
    assert load_on(answer).errors >= 4


def test_a_refusal_is_no_request_served() -> None:
    assert load_on(refuse).requests == 0


def test_a_server_that_never_answers_is_given_up_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "DRAIN_S_MAX", 0.05)
    assert load_on(keep_silent, connections=3) == Load(requests=0, rps=0.0, p50_ms=0.0, p99_ms=0.0, errors=3)


def test_a_server_that_is_not_there_is_an_error_per_connection(unused_port: int) -> None:
    job = Job("127.0.0.1", unused_port, "/", 2, SECONDS, [b"one"], [[1.0]])
    assert asyncio.run(loader.run(job)).errors == 2


@pytest.fixture
def unused_port() -> int:
    async def find() -> int:
        server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
        async with server:
            port: int = server.sockets[0].getsockname()[1]
            return port

    return asyncio.run(find())


@pytest.mark.parametrize(
    ("percent", "expected"), [(1, 1.0), (50, 50.0), (50.5, 51.0), (99, 99.0), (99.1, 100.0), (100, 100.0)]
)
def test_a_percentile_is_a_value_that_was_measured(percent: float, expected: float) -> None:
    assert percentile([float(value) for value in range(1, 101)], percent) == expected


def test_a_percentile_of_one_value_is_that_value_and_of_none_is_zero() -> None:
    assert percentile([7.0], 99) == 7.0
    assert percentile([], 50) == 0.0


def test_answers_after_the_end_are_not_part_of_the_rate() -> None:
    tally = Tally(start_s=10.0, end_s=12.0)
    tally.latencies_s += [0.002, 0.001]
    assert tally.summarize() == Load(requests=2, rps=1.0, p50_ms=1.0, p99_ms=2.0, errors=0)


@pytest.mark.parametrize("body", [b"", b"[1.0]", b"[1.0,2.0,3.0]", b"[1.0,2.1]", b'{"a":1}', b'["a","b"]'])
def test_another_row_is_not_the_right_answer(body: bytes) -> None:
    assert not is_right(body, [1.0, 2.0])


def test_rounding_differences_between_batch_sizes_are_no_error() -> None:
    assert is_right(b"[1.00001, 2]", [1.0, 2.0])


def test_an_answer_of_bytes_is_right_byte_for_byte() -> None:
    assert is_right(b"\x00abc", b"\x00abc")
    assert not is_right(b"\x00abd", b"\x00abc")


def test_a_reply_is_parsed_once_it_is_complete() -> None:
    whole = response(b"[1.0]", status=201) + b"HTTP/1.1 200"
    size = len(whole) - len(b"HTTP/1.1 200")
    assert all(parse_reply(whole[:cut]) is None for cut in range(size))
    reply = parse_reply(whole)
    assert reply is not None
    assert (reply.status, reply.body, reply.size) == (201, b"[1.0]", size)


def test_a_reply_without_a_length_cannot_be_read() -> None:
    with pytest.raises(Unreadable, match="content length"):
        parse_reply(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")

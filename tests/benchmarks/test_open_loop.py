"""The open-loop load against tiny HTTP servers of the test's own."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
with pytest.MonkeyPatch.context() as path_patch:  # benchmarks are run from the root; nothing else may import from there
    path_patch.syspath_prepend(ROOT)
    from benchmarks import open_loop
    from benchmarks.open_loop import OpenJob, OpenLoad

LIMIT_S = 20.0
BODY, ANSWER = b"question", b"answer"
Choice = Callable[[int], bytes | None]  # what request number n is answered; None: it is not


def response(status: int, body: bytes = b"{}", *, closes: bool = False) -> bytes:
    head = f"HTTP/1.1 {status} Whatever\r\nContent-Length: {len(body)}\r\n"
    return f"{head}{'Connection: close' if closes else 'x: y'}\r\n\r\n".encode() + body


def load_on(choose: Choice, *, rate_per_s: float = 400.0, seconds: float = 0.1, connections_max: int = 200) -> OpenLoad:
    """What the load makes of a server that answers like that."""
    served = 0
    serving: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        serving.add(asyncio.current_task())
        try:
            while True:
                await reader.readuntil(b"\r\n\r\n")
                assert await reader.readexactly(len(BODY)) == BODY
                served += 1
                answer = choose(served)
                if answer is None:
                    continue
                writer.write(answer)
                if b"Connection: close" in answer:
                    break
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        writer.close()

    async def scenario() -> OpenLoad:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            job = OpenJob(
                "127.0.0.1", port, "/predict", rate_per_s, seconds, BODY, ANSWER, connections=2,
                connections_max=connections_max,
            )  # fmt: skip
            async with asyncio.timeout(LIMIT_S):
                load = await open_loop.run(job)
                await asyncio.gather(*(task for task in serving if task is not None))
            return load

    return asyncio.run(scenario())


def test_right_answers_are_counted_and_timed_from_when_they_were_due() -> None:
    load = load_on(lambda _: response(200, ANSWER))
    assert load.right == load.offered > 0
    assert load.errors == load.refused == load.expired == 0
    assert 0 < load.right_p50_ms <= load.right_p99_ms <= load.right_max_ms
    assert load.goodput == load.right / load.seconds


@pytest.mark.parametrize("status", [429, 503])
def test_refusals_are_counted_apart_and_their_connections_are_made_again(status: int) -> None:
    load = load_on(lambda number: response(status, closes=True) if number % 2 else response(200, ANSWER))
    assert load.errors == 0
    assert load.refused + load.right == load.offered
    assert 0 < load.refused_p50_ms <= load.refused_p99_ms


def test_an_expired_request_is_neither_goodput_nor_an_error() -> None:
    load = load_on(lambda _: response(504))
    assert (load.right, load.errors, load.expired) == (0, 0, load.offered)


def test_wrong_answers_and_other_statuses_are_errors() -> None:
    load = load_on(lambda number: response(500) if number % 2 else response(200, b"of another"))
    assert load.errors == load.offered > 0


def test_requests_leave_although_none_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_loop, "DRAIN_S_MAX", 0.05)
    load = load_on(lambda _: None)
    assert load.errors == load.offered > 2, "more than there were connections at first"


def test_without_a_free_connection_a_request_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_loop, "DRAIN_S_MAX", 0.05)
    load = load_on(lambda _: None, connections_max=3)
    assert load.errors == load.offered > 3
    assert load.statuses == {}


def test_the_same_seed_makes_the_same_load() -> None:
    loads = [load_on(lambda _: response(200, ANSWER), seconds=0.05) for _ in range(2)]
    assert loads[0].offered == loads[1].offered

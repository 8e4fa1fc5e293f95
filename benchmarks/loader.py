"""A closed-loop HTTP load on one URL: for machines without `wrk`, and for checking answers under load.

    python -m benchmarks.loader < job.json > load.json

A process of its own, so that its work is on no contestant's clock. Every connection keeps exactly one request
outstanding. Connections send different bodies and know the right answer of each, so a row that is delivered to the
wrong client is seen; parsing every answer would make the loader the bottleneck, so a sample is.
"""

import asyncio
import math
import sys
import time
from collections.abc import Sequence
from typing import cast

import msgspec
import uvloop

CHECK_EVERY = 16  # one answer in so many is compared
TOLERANCE = 1e-4  # a row's float32 result varies a little with the size of its batch
DRAIN_S_MAX = 5.0  # for the answers outstanding when time is up

# A row of numbers as JSON, or exactly these bytes.
Answer = list[float] | bytes


class Job(msgspec.Struct, frozen=True):
    """What to send where. `answers[i]` is the right answer to `bodies[i]`."""

    host: str
    port: int
    path: str
    connections: int
    seconds: float
    bodies: list[bytes]
    answers: list[Answer]


class Load(msgspec.Struct, frozen=True):
    """What came back. `errors` are answers other than 2xx, lost or silent connections, and wrong answers."""

    requests: int
    rps: float
    p50_ms: float
    p99_ms: float
    errors: int


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that at least `percent` of a sorted sequence do not exceed; 0 of nothing."""
    assert 0 < percent <= 100
    if not ordered:
        return 0.0
    return ordered[math.ceil(len(ordered) * percent / 100) - 1]


def is_right(body: bytes, answer: Answer) -> bool:
    """Whether a body is the expected one."""
    if isinstance(answer, bytes):
        return body == answer
    try:
        row = msgspec.json.decode(body, type=list[float])
    except msgspec.DecodeError:
        return False
    if len(row) != len(answer):
        return False
    return all(abs(got - wanted) <= TOLERANCE for got, wanted in zip(row, answer, strict=True))


class Tally:
    """What all connections of one run counted. Only what completes before `end_s` is load; the rest is drained."""

    def __init__(self, start_s: float, end_s: float) -> None:
        self.start_s = start_s
        self.end_s = end_s
        self.latencies_s: list[float] = []
        self.errors = 0

    def summarize(self) -> Load:
        ordered = sorted(self.latencies_s)
        return Load(
            requests=len(ordered),
            rps=len(ordered) / (self.end_s - self.start_s),
            p50_ms=percentile(ordered, 50) * 1000,
            p99_ms=percentile(ordered, 99) * 1000,
            errors=self.errors,
        )


class Reply(msgspec.Struct, frozen=True):
    """One response of a known length: all that the contestants send."""

    status: int
    body: bytes
    size: int  # of head and body, in the buffer


class Unreadable(ValueError):
    """The peer sent something that is not such a response."""


def parse_reply(buffer: bytes | bytearray) -> Reply | None:
    """The first response in the buffer, or None while it is incomplete."""
    head_size = buffer.find(b"\r\n\r\n") + 4
    if head_size < 4:
        return None
    head = bytes(buffer[:head_size]).lower()
    try:
        status = int(head[9:12])
        length_at = head.index(b"\r\ncontent-length:") + len(b"\r\ncontent-length:")
        size = head_size + int(head[length_at : head.index(b"\r\n", length_at)])
    except ValueError as error:
        raise Unreadable(f"no HTTP response with a content length: {head[:80]!r}") from error
    if len(buffer) < size:
        return None
    return Reply(status, bytes(buffer[head_size:size]), size)


class Connection(asyncio.Protocol):
    """One keep-alive connection: send, await the answer, send again until time is up."""

    def __init__(self, request: bytes, answer: Answer, tally: Tally, closed: asyncio.Future[None]) -> None:
        self._request = request
        self._answer = answer
        self._tally = tally
        self._closed = closed
        self._buffer = bytearray()
        self._answered = 0
        self._finished = False
        self._sent_at_s = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but its base class
        self._send()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            reply = parse_reply(self._buffer)
        except Unreadable:
            self._finish(error=True)
            return
        if reply is not None:
            del self._buffer[: reply.size]
            self._take(reply, time.perf_counter())

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._finished:  # the other side hung up on a request
            self._tally.errors += 1
        if not self._closed.done():
            self._closed.set_result(None)

    def abandon(self) -> None:
        """Time to drain is over too: a request that was never answered is an error."""
        if not self._finished:
            self._finish(error=True)

    def _send(self) -> None:
        self._sent_at_s = time.perf_counter()
        self._transport.write(self._request)

    def _take(self, reply: Reply, now_s: float) -> None:
        # The first answer of every connection is in the sample, however short the run.
        wrong = self._answered % CHECK_EVERY == 0 and not is_right(reply.body, self._answer)
        self._answered += 1
        if not 200 <= reply.status < 300 or wrong:
            self._tally.errors += 1
        elif now_s <= self._tally.end_s:
            self._tally.latencies_s.append(now_s - self._sent_at_s)
        if now_s < self._tally.end_s:
            self._send()
        else:
            self._finish()

    def _finish(self, *, error: bool = False) -> None:
        self._finished = True
        self._tally.errors += error
        self._transport.abort()


def request_bytes(job: Job, body: bytes) -> bytes:
    """The request as it goes over the wire, made once."""
    lines = (
        f"POST {job.path} HTTP/1.1",
        f"Host: {job.host}:{job.port}",
        "Content-Type: application/octet-stream",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def keep_loading(job: Job, index: int, tally: Tally) -> None:
    """One client: a connection, and after a lost one another, until time is up."""
    loop = asyncio.get_running_loop()
    choice = index % len(job.bodies)
    request = request_bytes(job, job.bodies[choice])
    while time.perf_counter() < tally.end_s:
        closed: asyncio.Future[None] = loop.create_future()
        connection = Connection(request, job.answers[choice], tally, closed)
        try:
            await loop.create_connection(lambda made=connection: made, job.host, job.port)  # type: ignore[misc]
        except OSError:
            tally.errors += 1
            return  # nobody listens: trying again would only count the speed of refusals
        drained_s = tally.end_s - time.perf_counter() + DRAIN_S_MAX
        await asyncio.wait([closed], timeout=drained_s)
        connection.abandon()


async def run(job: Job) -> Load:
    """The whole load. Bounded by the job's seconds and the drain."""
    assert len(job.bodies) == len(job.answers)
    start_s = time.perf_counter()
    tally = Tally(start_s, start_s + job.seconds)
    await asyncio.gather(*(keep_loading(job, index, tally) for index in range(job.connections)))
    return tally.summarize()


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        sys.stdout.buffer.write(msgspec.json.encode(runner.run(run(job))))


if __name__ == "__main__":
    main()

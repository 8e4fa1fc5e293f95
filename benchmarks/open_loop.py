"""An open-loop HTTP load: requests leave at their own pace, whether the earlier ones were answered or not.

    python -m benchmarks.open_loop < job.json > load.json

A closed loop cannot overload a server: it sends nothing until it is answered. Here arrivals are a Poisson process, as of many
clients that know nothing of each other, and a request that is due goes out on an idle connection or a new one. What
is admitted is timed from when it was due, so that a stalled client hides nothing; what is refused is timed from when it was sent.
"""

import asyncio
import random
import selectors
import sys
import time
from collections import Counter, deque
from typing import cast

import msgspec
import uvloop

from benchmarks.loader import Answer, Reply, Unreadable, is_right, parse_reply, percentile

DRAIN_S_MAX = 5.0
PRECISE_CONNECTIONS_MAX = 900  # select() takes no descriptor above 1023
REFUSED = (429, 503)
EXPIRED = (408, 504)


class OpenJob(msgspec.Struct, frozen=True):
    """`connections` are opened before the first request; up to `connections_max` when none of them is idle. A `precise` load is
    paced in microseconds instead of the event loop's milliseconds, at twice the CPU: batches then form by chance only."""

    host: str
    port: int
    path: str
    rate_per_s: float
    seconds: float
    body: bytes
    answer: Answer
    headers: dict[str, str] = {}
    connections: int = 32
    connections_max: int = 4000
    precise: bool = False
    seed: int = 0


class OpenLoad(msgspec.Struct, frozen=True):
    """What came back. `errors` are lost connections, wrong answers and statuses that say neither yes nor later."""

    seconds: float
    offered: int
    right: int
    refused: int
    expired: int
    errors: int
    statuses: dict[str, int]
    right_p50_ms: float
    right_p99_ms: float
    right_max_ms: float
    refused_p50_ms: float
    refused_p99_ms: float
    late_p99_ms: float  # how long after they were due requests were sent: the client's own doing

    @property
    def goodput(self) -> float:
        """Right answers a second."""
        return self.right / self.seconds


class Clients:
    """All connections of one run, and what they counted."""

    def __init__(self, job: OpenJob) -> None:
        self.job = job
        lines = [f"POST {job.path} HTTP/1.1", f"Host: {job.host}:{job.port}", "Content-Type: application/octet-stream"]
        lines += [f"{name}: {value}" for name, value in job.headers.items()]
        lines += [f"Content-Length: {len(job.body)}"]
        self.request = "\r\n".join(lines).encode() + b"\r\n\r\n" + job.body
        # First come, first served, so that the load is spread over all of them and over the processes that accepted them.
        self.idle: deque[Connection] = deque()
        self.connections: set[Connection] = set()
        self.open = 0
        self.offered = 0
        self.errors = 0
        self.statuses: Counter[int] = Counter()
        self.right_s: list[float] = []
        self.refused_s: list[float] = []
        self.late_s: list[float] = []
        self.outstanding = 0
        self._connecting: set[asyncio.Task[None]] = set()

    async def connect(self, due_s: float | None = None) -> None:
        """A new connection; with the first request when one is due."""
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(lambda: Connection(self), self.job.host, self.job.port)
        except OSError:
            self.open -= 1
            if due_s is not None:
                self.outstanding -= 1
                self.errors += 1
            return
        if due_s is None:
            self.idle.append(connection)
        else:
            connection.send(due_s)

    def fire(self, due_s: float) -> None:
        """Send one request, somehow."""
        self.offered += 1
        while self.idle:
            connection = self.idle.popleft()
            if connection.usable:
                self.outstanding += 1
                connection.send(due_s)
                return
        if self.open >= self.job.connections_max:
            self.errors += 1
            return
        self.open += 1
        self.outstanding += 1
        task = asyncio.get_running_loop().create_task(self.connect(due_s))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    def take(self, reply: Reply, due_s: float, sent_s: float) -> None:
        """Count one answer."""
        now_s = time.perf_counter()
        self.statuses[reply.status] += 1
        self.late_s.append(sent_s - due_s)
        if 200 <= reply.status < 300 and is_right(reply.body, self.job.answer):
            self.right_s.append(now_s - due_s)
        elif reply.status in REFUSED:
            self.refused_s.append(now_s - sent_s)
        elif reply.status not in EXPIRED:
            self.errors += 1

    def close(self) -> None:
        """Time is over, also for what has not been answered."""
        self.errors += self.outstanding
        for connection in list(self.connections):
            connection.abort()

    def summarize(self, seconds: float) -> OpenLoad:
        right, refused, late = sorted(self.right_s), sorted(self.refused_s), sorted(self.late_s)
        return OpenLoad(
            seconds=seconds,
            offered=self.offered,
            right=len(right),
            refused=len(refused),
            expired=sum(self.statuses[status] for status in EXPIRED),
            errors=self.errors,
            statuses={str(status): count for status, count in sorted(self.statuses.items())},
            right_p50_ms=percentile(right, 50) * 1e3,
            right_p99_ms=percentile(right, 99) * 1e3,
            right_max_ms=percentile(right, 100) * 1e3,
            refused_p50_ms=percentile(refused, 50) * 1e3,
            refused_p99_ms=percentile(refused, 99) * 1e3,
            late_p99_ms=percentile(late, 99) * 1e3,
        )


class Connection(asyncio.Protocol):
    """One connection: at most one request at a time. It is idle again after an answer, unless the server closes it."""

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._buffer = bytearray()
        self._due_s = self._sent_s = 0.0
        self._busy = False
        self.usable = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._clients.connections.add(self)

    def abort(self) -> None:
        self._busy = False
        self._transport.abort()

    def send(self, due_s: float) -> None:
        self._busy, self._due_s, self._sent_s = True, due_s, time.perf_counter()
        self._transport.write(self._clients.request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        try:
            reply = parse_reply(self._buffer)
        except Unreadable:
            self._transport.abort()
            return
        if reply is None:
            return
        closes = b"connection: close" in bytes(self._buffer[: reply.size - len(reply.body)]).lower()
        del self._buffer[: reply.size]
        self._busy = False
        self._clients.outstanding -= 1
        self._clients.take(reply, self._due_s, self._sent_s)
        if closes:
            self.usable = False
            self._transport.close()
        else:
            self._clients.idle.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.usable = False
        self._clients.open -= 1
        self._clients.connections.discard(self)
        if self._busy:
            self._clients.outstanding -= 1
            self._clients.errors += 1


async def run(job: OpenJob) -> OpenLoad:
    """The whole load. Bounded by the job's seconds and the drain."""
    clients, chance = Clients(job), random.Random(job.seed)
    clients.open = job.connections
    for _ in range(
        job.connections
    ):  # one after the other, so that no process finds them all waiting and takes them all
        await clients.connect()
    start_s = due_s = time.perf_counter()
    while due_s < start_s + job.seconds:
        pause_s = due_s - time.perf_counter()
        if pause_s > 0:
            await asyncio.sleep(pause_s)
        clients.fire(due_s)
        due_s += chance.expovariate(job.rate_per_s)
        if pause_s <= 0 and not clients.offered % 64:
            await asyncio.sleep(0)  # behind the schedule: answers are read nevertheless
    drained_s = time.perf_counter() + DRAIN_S_MAX
    while clients.outstanding and time.perf_counter() < drained_s:
        await asyncio.sleep(0.01)
    clients.close()
    while clients.connections:
        await asyncio.sleep(0)
    return clients.summarize(job.seconds)


def precise_loop() -> asyncio.AbstractEventLoop:
    """select() is the one wait of the standard library that takes microseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=OpenJob)
    assert not job.precise or job.connections_max <= PRECISE_CONNECTIONS_MAX
    with asyncio.Runner(loop_factory=precise_loop if job.precise else uvloop.new_event_loop) as runner:
        sys.stdout.buffer.write(msgspec.json.encode(runner.run(run(job))))


if __name__ == "__main__":
    main()

"""One process of clients: each draws a plan, carries it out on a connection of its own and judges what comes back.

    python client.py < job.json

Prints a line of JSON now and then with how far it is, and a last one with its tally. asyncio's streams on uvloop, nothing else: a
client library would tidy up what is done wrong here on purpose.
"""

import asyncio
import contextlib
import itertools
import random
import socket
import struct
import sys
import time
from pathlib import Path

import msgspec
import uvloop

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run by its path, a script does not find the folders of the tree

from tests.stress.plans import Delivery, Kind, Moment, Plan, Planner
from tests.stress.verdicts import Suspect, Tally, Word, is_beginning, is_innocent, judge, label

ANSWER_S_MAX = 30.0
CONNECT_S_MAX = 10.0
PROGRESS_S = 2.0
PIECES_MAX = 40
SLOW_WRITE_S, SLOW_READ_S = 1.0, 1.0  # altogether
SLOW_READER_BUFFER_BYTES = 16 << 10
STREAM_LIMIT_BYTES = 256 << 10
LINGER_RESET = struct.pack("ii", 1, 0)


class Job(msgspec.Struct, frozen=True):
    """`name` begins every request's number; `kinds` names what is asked, all of it when empty. It goes on for `seconds`, and until
    it has made `requests_min` requests."""

    host: str
    port: int
    name: str
    seed: int
    clients: int
    seconds: float
    kinds: list[str] = []
    requests_min: int = 0


class CutOffError(Exception):
    """The connection ended before the answer did; `body` is what had come, and `status` is 0 when not even a head had."""

    def __init__(self, status: int = 0, body: bytes = b"") -> None:
        super().__init__(status)
        self.status, self.body = status, body


class Answer(msgspec.Struct, frozen=True):
    status: int
    body: bytes
    closes: bool


class Connection:
    """A connection as this client has it: it may be rude with it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.opened_s = time.monotonic()
        self.spoiled = False  # the rest of a request was never sent: no other may follow it

    def leave(self, *, resets: bool) -> None:
        """Go, without a word or by a reset."""
        if resets:
            sock = self.writer.get_extra_info("socket")
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
            self.writer.transport.abort()
        else:
            self.writer.close()

    async def send(self, data: bytes | memoryview) -> None:
        if not self.writer.is_closing():
            self.writer.write(data)
            await self.writer.drain()

    async def answer(self, plan: Plan) -> Answer:
        """The next answer, whatever says "continue" skipped. Raises `CutOffError`."""
        status = 100
        while status == 100:
            status, fields = await self._head()
        closes = fields.get("connection") == "close"
        body = bytearray()
        try:
            if fields.get("transfer-encoding") == "chunked":
                while size := int((await self.reader.readuntil(b"\r\n")).partition(b";")[0], 16):
                    body += await self._bytes(size, plan)
                    await self.reader.readexactly(2)
                await self.reader.readexactly(2)
            else:
                body += await self._bytes(int(fields["content-length"]), plan)
        except asyncio.IncompleteReadError as error:
            raise CutOffError(status, bytes(body) + error.partial) from error
        except ConnectionError as error:
            raise CutOffError(status, bytes(body)) from error
        return Answer(status, bytes(body), closes)

    async def _head(self) -> tuple[int, dict[str, str]]:
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise CutOffError from error
        lines = head.split("\r\n")
        pairs = (line.partition(":") for line in lines[1:] if line)
        return int(lines[0].split(" ", 2)[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def _bytes(self, size: int, plan: Plan) -> bytes:
        if not plan.reads_slowly:
            return await self.reader.readexactly(size)
        whole = max(1, sum(map(len, plan.answer)))
        body, step = bytearray(), max(1, whole // PIECES_MAX)
        while len(body) < size:
            piece = await self.reader.read(min(size - len(body), step))
            if not piece:
                raise asyncio.IncompleteReadError(bytes(body), size)
            body += piece
            await asyncio.sleep(SLOW_READ_S * len(piece) / whole)
        return bytes(body)


class Client:
    """One of many: a planner, at most one connection, and the tally of the process."""

    def __init__(self, job: Job, index: int, tally: Tally) -> None:
        self._job, self._tally = job, tally
        name = f"{job.name}.{index}"
        self._planner = Planner(name, job.seed, {Kind(kind) for kind in job.kinds} or None)
        self._chance = random.Random(f"{job.seed} {name} manners")
        self._connection: Connection | None = None

    async def run(self, end_s: float) -> None:
        while time.monotonic() < end_s or self._tally.requests < self._job.requests_min:
            plans = self._planner.next()
            if plans[0].fresh:
                self._drop()
            if self._connection is None:
                self._connection = await self._connect(slow=plans[0].reads_slowly)
            if self._connection is None:
                await asyncio.sleep(0.05)
            else:
                await self._carry_out(plans, self._connection)
        self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.leave(resets=False)
            self._connection = None

    async def _connect(self, *, slow: bool) -> Connection | None:
        """Nobody may ever be refused a connection: not while a front end is dead either."""
        sock = socket.socket()
        sock.setblocking(False)
        if slow:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_READER_BUFFER_BYTES)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                await loop.sock_connect(sock, (self._job.host, self._job.port))
                limit = SLOW_READER_BUFFER_BYTES if slow else STREAM_LIMIT_BYTES
                return Connection(*await asyncio.open_connection(sock=sock, limit=limit))
        except (OSError, TimeoutError) as error:
            sock.close()
            self._tally.violate(f"a connection was refused: {error!r}")
            return None

    async def _carry_out(self, plans: list[Plan], connection: Connection) -> None:
        """Send, receive, judge. Whatever happens, the connection is usable afterwards or gone."""
        sent_s = time.monotonic()
        for number, plan in enumerate(plans):
            self._tally.count(plan.kind, "sent")
            keeps = False
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    if plan.pipelined:
                        answer: Answer | None = await self._ask_in_line(number, plans, connection)
                    else:
                        answer = await self._ask(plan, connection)
                if answer is None:
                    self._tally.count(plan.kind, Word.LEFT)
                else:
                    self._judge(plan, answer, sent_s)
                    keeps = not (answer.closes or plan.half_closes or connection.spoiled)
            except CutOffError as cut:
                self._judge_cut(plan, cut, connection.opened_s, sent_s)
            except TimeoutError:
                self._tally.count(plan.kind, Word.WRONG)
                self._tally.violate(f"{label(plan)} was not answered, {when(sent_s)}")
            except (ValueError, KeyError, asyncio.LimitOverrunError) as error:
                self._tally.count(plan.kind, Word.WRONG)
                self._tally.violate(f"{label(plan)}: what came back is not HTTP: {error!r}")
            if not keeps:  # what was sent behind this request is never read
                for later in plans[number + 1 :]:
                    self._tally.count(later.kind, "sent")
                    self._tally.count(later.kind, Word.LEFT)
                self._drop()
                return

    # ---- sending

    async def _ask_in_line(self, number: int, plans: list[Plan], connection: Connection) -> Answer:
        """All requests leave with the first one; their answers come in the same order."""
        if number == 0:
            with contextlib.suppress(ConnectionError):  # whether an answer came nevertheless, reading says
                await connection.send(b"".join(each.head() + bytes(each.body) for each in plans))
        return await connection.answer(plans[number])

    async def _ask(self, plan: Plan, connection: Connection) -> Answer | None:
        """The answer; None when the client left on purpose."""
        if plan.simple:
            with contextlib.suppress(ConnectionError):
                await connection.send(plan.head() + bytes(plan.body))
            return await connection.answer(plan)
        if plan.leaves is not None:
            await self._leave(plan, connection)
            return None
        sending = asyncio.ensure_future(self._send(plan, connection))
        try:
            return await connection.answer(plan)
        finally:
            if not sending.done():  # answered early: the rest of the request is of no use
                sending.cancel()
                connection.spoiled = True
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await sending

    async def _send(self, plan: Plan, connection: Connection) -> None:
        match plan.delivery:
            case Delivery.WHOLE:
                await connection.send(plan.head())
                await connection.send(plan.body)
            case Delivery.EXPECT:
                await connection.send(plan.head())
                await asyncio.sleep(0.01)  # as clients do that do not wait for the word for long
                await connection.send(plan.body)
            case Delivery.CHUNKED:
                await connection.send(plan.head())
                for piece in self._pieces(plan, 20):
                    await connection.send(f"{len(piece):x}\r\n".encode())
                    await connection.send(piece)
                    await connection.send(b"\r\n")
                await connection.send(b"0\r\n\r\n")
            case Delivery.SPLIT | Delivery.SLOW:
                slow = plan.delivery is Delivery.SLOW
                await connection.send(plan.head())
                for piece in self._pieces(plan, PIECES_MAX if slow else 6):
                    await asyncio.sleep(SLOW_WRITE_S / PIECES_MAX if slow else 0)
                    await connection.send(piece)
        if plan.half_closes and not connection.writer.is_closing():
            connection.writer.write_eof()

    def _pieces(self, plan: Plan, count_max: int) -> list[memoryview]:
        """The body in pieces of random sizes, none of them empty."""
        body, size = memoryview(plan.body), len(plan.body)
        cuts = (
            {self._chance.randrange(1, size) for _ in range(self._chance.randrange(count_max))} if size > 1 else set()
        )
        edges = [0, *sorted(cuts), size]
        return [body[low:high] for low, high in itertools.pairwise(edges) if low < high]

    async def _leave(self, plan: Plan, connection: Connection) -> None:
        """As much of the request as the plan says, and away."""
        head, chance = plan.head(), self._chance
        with contextlib.suppress(ConnectionError, CutOffError, asyncio.IncompleteReadError):
            if plan.leaves is Moment.IN_HEAD:
                await connection.send(head[: chance.randrange(1, len(head))])
            elif plan.leaves is Moment.BEFORE_BODY:
                await connection.send(head)
            elif plan.leaves is Moment.IN_BODY:
                await connection.send(head + bytes(plan.body[: chance.randrange(len(plan.body) + 1)]))
            else:
                await connection.send(head + bytes(plan.body))
                if plan.leaves is Moment.AFTER_BODY:
                    await asyncio.sleep(chance.choice((0, 0.001, 0.01, 0.05)))
                else:
                    await connection.reader.read(chance.choice((1, 100, 10_000)))
        connection.leave(resets=plan.resets)
        self._connection = None

    # ---- judging

    def _judge(self, plan: Plan, answer: Answer, sent_s: float) -> None:
        word, text = judge(plan, answer.status, answer.body)
        now_s = time.monotonic()
        self._tally.count(plan.kind, word)
        self._tally.count(plan.kind, str(answer.status))
        if is_innocent(plan, answer.status, answer.body):
            self._tally.innocent += 1
        if plan.kind is Kind.HANG and answer.status == 500:
            self._tally.hangs.append((sent_s, now_s))
        if word is Word.WRONG:
            self._tally.violate(f"{text}, {when(sent_s)}")
        elif word is Word.SUSPECT:
            self._tally.suspects.append(Suspect(text, sent_s, now_s, worker=True, front_end=False))

    def _judge_cut(self, plan: Plan, cut: CutOffError, opened_s: float, sent_s: float) -> None:
        """No answer, or the beginning of one. A stream that has begun is cut when its worker dies or its time is over; any
        other answer only by the death of a front end."""
        self._tally.count(plan.kind, "cut")
        if cut.status == 200 and not is_beginning(plan, cut.body):
            self._tally.violate(f"{label(plan)} was answered {cut.body[:120]!r} before it was cut off")
            return
        begun_stream = plan.kind is Kind.STREAM and cut.status == 200
        if begun_stream and plan.deadline_ms is not None:
            return
        what = (
            f"{label(plan)} was cut off after {len(cut.body)} bytes of an answer"
            if cut.status
            else f"{label(plan)} was cut off"
        )
        since_s = opened_s if plan.pipelined or not begun_stream else sent_s
        self._tally.suspects.append(Suspect(what, since_s, time.monotonic(), worker=begun_stream, front_end=True))


def when(sent_s: float) -> str:
    """When a request was sent, by the clock of the server's log, and how long ago that is."""
    passed_s = time.monotonic() - sent_s
    return f"sent at {time.strftime('%H:%M:%S', time.localtime(time.time() - passed_s))}, {passed_s:.1f} s ago"


async def _show_progress(tally: Tally) -> None:
    while True:
        await asyncio.sleep(PROGRESS_S)
        print(msgspec.json.encode({"requests": tally.requests}).decode(), flush=True)


async def run(job: Job) -> Tally:
    """All clients of this process, until time is over and every one has its last answer."""
    tally = Tally()
    end_s = time.monotonic() + job.seconds
    showing = asyncio.ensure_future(_show_progress(tally))
    await asyncio.gather(*(Client(job, index, tally).run(end_s) for index in range(job.clients)))
    showing.cancel()
    return tally


def main() -> None:
    job = msgspec.json.decode(sys.stdin.buffer.read(), type=Job)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(msgspec.json.encode(runner.run(run(job))).decode(), flush=True)


if __name__ == "__main__":
    main()

"""Clients that count every answer, models that die on request, servers that must leave nothing behind."""

import asyncio
import functools
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

import httpx
import numpy as np
import psutil
import pytest

from ringserve.server.testing import ServerProcess, wait_until
from ringserve.tools.archiver import ArchiveRequest, write_archive

ANSWER_S_MAX = 30.0
CONNECT_S_MAX = 10.0
REFUSED_PAUSE_S = 0.02

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

# Every request carries a number and gets it back; a second word says what to do first.
ACTOR = """
import os, signal, time

def handle(data, context):
    if data is None:
        return None
    numbers = []
    for row in data:
        number, _, word = bytes(row["body"]).decode().partition(" ")
        numbers.append(number + (act(word) or ""))
    return numbers

def act(word):
    verb, _, value = word.partition(":")
    if verb == "sleep":
        time.sleep(float(value))
    elif verb == "exit":
        os._exit(int(value))
    elif verb == "kill":
        os.kill(os.getpid(), getattr(signal, value))
        time.sleep(60)
    elif verb == "abort":
        os.abort()
    elif verb == "hold":
        path, _, seconds = value.rpartition(":")
        open(path, "w").close()
        time.sleep(float(seconds))
    elif verb == "grow":
        return " " * int(value)
"""

TYPED_ECHO = """
class Echo:
    def predict(self, inputs, outputs):
        outputs["y"][:] = inputs["x"]
"""
TYPED_CONFIG = """
backend: python
batchSize: 4
inputs:
  - {name: x, dtype: float64, shape: [1]}
outputs:
  - {name: y, dtype: float64, shape: [1]}
"""


class Load:
    """Clients that each send a request, wait for its answer and send the next, until stopped.

    Exactly one of these grows with every request: `right` (2xx with its own number), `errors` (an honest error, by status),
    `wrong` (anything else that was answered) and `lost` (not answered). `refused` counts connections that were.
    """

    def __init__(
        self, url: str, model: str, clients: int, *, typed: bool = False, words: tuple[str, ...] = ("",)
    ) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._address = (host, int(port))
        self._path = f"/predictions/{model}"
        self._clients = clients
        self._typed = typed
        self._words = words
        self.sent = 0
        self.right = 0
        self.errors: Counter[int] = Counter()
        self.messages: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.lost: list[str] = []
        self.refused = 0
        self._stopping = False
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.stop()

    def halt(self) -> None:
        """No new requests; returns at once."""
        self._stopping = True

    def stop(self) -> None:
        """No new requests; returns when the last one has been answered."""
        self._stopping = True
        self._thread.join(ANSWER_S_MAX + CONNECT_S_MAX + 5)
        assert not self._thread.is_alive()

    @property
    def answered(self) -> int:
        return self.right + self.errors.total() + len(self.wrong)

    def check(self) -> None:
        """Every request was answered exactly once, by its own number or by an honest error."""
        assert self.wrong == []
        assert self.lost == []
        assert self.refused == 0
        assert self.answered == self.sent

    async def _run(self) -> None:
        await asyncio.gather(*(self._be_client() for _ in range(self._clients)))

    async def _be_client(self) -> None:
        streams: Streams | None = None
        while not self._stopping:
            if streams is None:
                streams = await self._connected()
            elif not await self._ask(*streams):
                streams[1].close()
                streams = None
        if streams is not None:
            streams[1].close()

    async def _connected(self) -> Streams | None:
        try:
            return await asyncio.wait_for(asyncio.open_connection(*self._address), CONNECT_S_MAX)
        except (OSError, TimeoutError):
            self.refused += 1
            await asyncio.sleep(REFUSED_PAUSE_S)
            return None

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection serves for another."""
        self.sent += 1
        number = self.sent
        try:
            writer.write(self._request(number, self._words[number % len(self._words)]))
            status, head, body = await asyncio.wait_for(_read_answer(reader), ANSWER_S_MAX)
        except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
            self.lost.append(f"request {number}: {error!r}")
            return False
        self._judge(number, status, body)
        return "connection: close" not in head

    def _request(self, number: int, word: str) -> bytes:
        body = np.float64(number).tobytes() if self._typed else f"{number} {word}".encode()
        head = f"POST {self._path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/octet-stream\r\n"
        return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body

    def _judge(self, number: int, status: int, body: bytes) -> None:
        if status == 200:
            expected = f"[{float(number)}]" if self._typed else str(number)
            if body.decode().rstrip() == expected:
                self.right += 1
            else:
                self.wrong.append(f"request {number} was answered {body[:200]!r}")
            return
        try:
            error = json.loads(body)
            assert error.keys() == {"code", "type", "message"}
            assert error["code"] == status
        except (ValueError, AssertionError, AttributeError):
            self.wrong.append(f"request {number} was answered {status} {body!r}")
            return
        self.errors[status] += 1
        self.messages[error["message"]] += 1


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, str, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length: ")[2].partition("\r\n")[0])
    return int(head.split(" ", 2)[1]), head, await reader.readexactly(length)


class Site:
    """A running server, seen as its operator sees it: what `describe` and the process table say, and `kill`."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        self._http = httpx.Client(timeout=ANSWER_S_MAX, trust_env=False)
        self._killed: set[int] = set()

    def close(self) -> None:
        self._http.close()

    def load(self, model: str, clients: int, **options: Any) -> Load:
        return Load(self.server.inference_url, model, clients, **options)

    def ask(self, body: str) -> "Asking":
        return Asking(self, body)

    def predict(self, model: str, body: str, timeout_s: float = ANSWER_S_MAX) -> httpx.Response:
        """On a connection of its own."""
        url = f"{self.server.inference_url}/predictions/{model}"
        return httpx.post(url, content=body, timeout=timeout_s, trust_env=False)

    def manage(self, method: str, path: str, **parameters: object) -> httpx.Response:
        query = {name: str(value) for name, value in parameters.items()}
        return self._http.request(method, f"{self.server.management_url}{path}", params=query)

    def ready_workers(self, model: str) -> list[int]:
        """The pids that `describe` calls ready, without those we killed and it has not missed yet."""
        workers = self.manage("GET", f"/models/{model}").json()[0]["workers"]
        ready = [worker["pid"] for worker in workers if worker["status"] == "READY"]
        return [pid for pid in ready if pid not in self._killed]

    def wait_ready(self, model: str, count: int = 1, timeout_s: float = 30.0) -> list[int]:
        what = f"{count} ready workers of {model}"
        wait_until(lambda: len(self.ready_workers(model)) == count, timeout_s, what)
        return self.ready_workers(model)

    def ping(self) -> httpx.Response:
        return httpx.get(f"{self.server.inference_url}/ping", timeout=ANSWER_S_MAX, trust_env=False)

    @property
    def front_end(self) -> int:
        [pid] = self.server.front_ends()
        return pid

    def connections(self) -> int:
        """How many clients the front end is connected with."""
        port = int(self.server.inference_url.rpartition(":")[2])
        open_ones = psutil.Process(self.front_end).net_connections("tcp")
        return sum(1 for each in open_ones if each.laddr.port == port and each.status != psutil.CONN_LISTEN)

    def kill_worker(self, pid: int) -> None:
        self._killed.add(pid)
        os.kill(pid, signal.SIGKILL)

    def kill_under_load(self, model: str, load: Load, kills: int, answers_between: int) -> None:
        """Kill a worker as soon as a fresh one is ready and answers have come since the last time."""
        for _ in range(kills):
            answered = load.right
            wait_until(lambda seen=answered: load.right >= seen + answers_between, 20, "answers")  # type: ignore[misc]
            wait_until(lambda: self.ready_workers(model), 20, f"a fresh worker of {model}")
            self.kill_worker(self.ready_workers(model)[0])


class Asking:
    """One prediction by the actor, in a thread of its own."""

    def __init__(self, site: Site, body: str) -> None:
        self.response: httpx.Response | None = None
        self.error: httpx.HTTPError | None = None
        self._thread = threading.Thread(target=self._ask, args=(site, body))
        self._thread.start()

    def _ask(self, site: Site, body: str) -> None:
        try:
            self.response = site.predict("actor", body, timeout_s=60)
        except httpx.HTTPError as error:
            self.error = error

    def wait(self, timeout_s: float) -> httpx.Response:
        self._thread.join(timeout_s)
        assert self.response is not None, self.error
        return self.response


def _write_model(folder: Path, name: str, *, source: str = ACTOR, config: str = "", typed: bool = False) -> Path:
    workshop = folder / "workshop" / name
    workshop.mkdir(parents=True)
    (workshop / "model-config.yaml").write_text(TYPED_CONFIG if typed else config or "{}\n")
    (workshop / "model.py").write_text(TYPED_ECHO if typed else source)
    write_archive(
        ArchiveRequest(
            model_name=name,
            version="1.0",
            handler=f"{workshop / 'model.py'}" + ("" if typed else ":handle"),
            config_file=workshop / "model-config.yaml",
            export_path=folder / "store",
        )
    )
    return folder / "store"


def _start(site: Site) -> None:
    site.server.start()
    wait_until(lambda: site.ping().status_code == 200, 30, "a healthy server")


@pytest.fixture
def archive(tmp_path: Path) -> Callable[..., Path]:
    """Writes `NAME.mar` into the test's model store; the actor, unless another source is given. Returns the store."""
    return functools.partial(_write_model, tmp_path)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """Starts servers on a store and waits until every model has its workers; afterwards nothing of them may be left."""
    sites: list[Site] = []

    def started(store: Path, *, workers: int = 1, env: Mapping[str, str] | None = None, **config: object) -> Site:
        settings = {"default_workers_per_model": workers, **config}
        site = Site(ServerProcess(store, config=settings, env=env, folder=tmp_path / f"server-{len(sites)}"))
        sites.append(site)
        _start(site)
        return site

    yield started
    for site in sites:
        site.close()
        site.server.stop()
    assert [remain for site in sites for remain in site.server.remains()] == []
    for site in sites:
        assert "Traceback" not in site.server.log, site.server.log


@pytest.fixture(scope="module")
def forsaken(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Site, Asking]]:
    """A server whose supervisor was killed while its model executed a request that it will never finish."""
    folder = tmp_path_factory.mktemp("forsaken")
    store = _write_model(folder, "actor")
    site = Site(ServerProcess(store, config={"default_workers_per_model": 1}, folder=folder / "server"))
    _start(site)
    endless = Asking(site, f"5 hold:{folder / 'begun'}:300")
    wait_until((folder / "begun").exists, 10, "an endless prediction")
    os.kill(site.server.pid, signal.SIGKILL)
    yield site, endless
    site.close()
    site.server.stop()

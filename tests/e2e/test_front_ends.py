"""Several front ends: one queue among them, and workers that serve each in turn. Which one a connection belongs to is decided by
stopping all others while it is accepted."""

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from ringserve.server.batching import OUTSTANDING_MAX
from ringserve.server.testing import ServerProcess, wait_until

ANSWER_S_MAX = 30.0
QUEUE_SIZE = 10
RUSH = 40

# Notes who was served, in order; the first request blocks until the gate is open.
RECORDER = """
import time
from pathlib import Path

def handle(data, context):
    if data is None:
        return None
    for row in data:
        folder, _, name = bytes(row["body"]).decode().rpartition("/")
        end = time.monotonic() + 30
        while not (Path(folder) / "open").exists() and time.monotonic() < end:
            time.sleep(0.005)
        with open(Path(folder) / "served", "a") as served:
            served.write(name + "\\n")
        time.sleep(0.01)
    return ["passed"] * len(data)
"""


class Client:
    """One connection to a chosen front end."""

    def __init__(self, server: ServerProcess, pid: int) -> None:
        host, _, port = server.inference_url.removeprefix("http://").partition(":")
        with only(server, pid):
            self._socket = socket.create_connection((host, int(port)), timeout=ANSWER_S_MAX)
            own_port = self._socket.getsockname()[1]
            wait_until(lambda: own_port in peer_ports(pid), 8, f"a connection of front end {pid}")

    def ask(self, model: str, body: str) -> None:
        """Send a request; `answer` reads what comes back."""
        head = f"POST /predictions/{model} HTTP/1.1\r\nhost: test\r\ncontent-length: {len(body)}\r\n\r\n"
        self._socket.sendall(f"{head}{body}".encode())

    def answer(self) -> tuple[int, str]:
        """Status and body."""
        with self._socket.makefile("rb") as stream:
            status, length = int(stream.readline().split()[1]), 0
            for line in iter(stream.readline, b"\r\n"):
                name, _, value = line.decode().partition(":")
                length = int(value) if name.lower() == "content-length" else length
            return status, stream.read(length).decode()

    def answered(self) -> bool:
        """Whether an answer is there to read."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def only(server: ServerProcess, pid: int) -> Iterator[None]:
    """All other front ends are stopped, for less time than it takes the supervisor to miss them."""
    others = [each for each in server.front_ends() if each != pid]
    for each in others:
        os.kill(each, signal.SIGSTOP)
    try:
        yield
    finally:
        for each in others:
            os.kill(each, signal.SIGCONT)


def peer_ports(pid: int) -> set[int]:
    return {each.raddr.port for each in psutil.Process(pid).net_connections("tcp") if each.raddr}


def pending(server: ServerProcess, model: str) -> dict[str, int]:
    (described,) = httpx.get(f"{server.management_url}/models/{model}", trust_env=False).json()
    return dict(described["jobQueueStatus"])


@pytest.fixture
def served(
    tmp_path: Path, archive: Callable[..., Path], start_server: Callable[..., ServerProcess]
) -> Iterator[Callable[..., ServerProcess]]:
    """A server of two front ends whose one model, `recorder`, takes one request at a time."""

    def start(**config: object) -> ServerProcess:
        store = tmp_path / "store"
        store.mkdir()
        archive(store, "recorder", "recorder.py:handle", source=RECORDER, config="batchSize: 1\n")
        server = start_server(store, config={"frontends": 2, **config})
        ready = f"{server.inference_url}/ping"
        wait_until(lambda: httpx.get(ready, trust_env=False).status_code == 200, 30, f"a healthy model\n{server.log}")
        return server

    yield start


@pytest.fixture
def connect() -> Iterator[Callable[[ServerProcess, int], Client]]:
    clients: list[Client] = []

    def connected(server: ServerProcess, pid: int) -> Client:
        clients.append(Client(server, pid))
        return clients[-1]

    yield connected
    for client in clients:
        client.close()


def hold(server: ServerProcess, clients: dict[int, list[Client]], folder: Path) -> list[Client]:
    """Give the worker what it may have of each front end, and one request more to each, which has to wait."""
    asked = []
    for number, mine in enumerate(clients.values(), 1):
        for client in mine[: OUTSTANDING_MAX + 1]:
            client.ask("recorder", f"{folder}/held")
            asked.append(client)
        wait_until(lambda want=number: pending(server, "recorder")["pendingRequests"] == want, 10, "a waiting request")  # type: ignore[misc]
    return asked


def test_the_queue_of_all_front_ends_together_is_as_long_as_it_was_told_to_be(
    tmp_path: Path, served: Callable[..., ServerProcess], connect: Callable[[ServerProcess, int], Client]
) -> None:
    server = served(job_queue_size=QUEUE_SIZE)
    pids = server.front_ends()
    assert len(pids) == 2
    clients = {pid: [connect(server, pid) for _ in range(OUTSTANDING_MAX + 1 + RUSH // 2)] for pid in pids}
    held = hold(server, clients, tmp_path)
    rush = [client for pair in zip(*clients.values(), strict=True) for client in pair if client not in held]
    assert len(rush) == RUSH
    for client in rush:
        client.ask("recorder", f"{tmp_path}/waited")
    free = QUEUE_SIZE - len(pids)
    wait_until(lambda: sum(client.answered() for client in rush) == RUSH - free, 20, "refusals")
    assert pending(server, "recorder") == {"remainingCapacity": 0, "pendingRequests": QUEUE_SIZE}
    refused = [client for client in rush if client.answered()]
    assert len(refused) == RUSH - free
    for client in refused:
        status, body = client.answer()
        assert status == 503
        assert "job_queue_size" in body or "queue" in body.lower(), body
    (tmp_path / "open").touch()
    waited = [client for client in rush if client not in refused]
    assert [client.answer() for client in (*held, *waited)] == [(200, "passed")] * (len(held) + free)
    assert pending(server, "recorder") == {"remainingCapacity": QUEUE_SIZE, "pendingRequests": 0}


def test_a_flood_through_one_front_end_does_not_starve_the_other(
    tmp_path: Path, served: Callable[..., ServerProcess], connect: Callable[[ServerProcess, int], Client]
) -> None:
    server = served()
    flooded, quiet = server.front_ends()
    many, few = [connect(server, flooded) for _ in range(40)], [connect(server, quiet) for _ in range(4)]
    hold(server, {flooded: [connect(server, flooded) for _ in range(OUTSTANDING_MAX + 1)]}, tmp_path)
    for client in many:
        client.ask("recorder", f"{tmp_path}/flood")
    wait_until(lambda: pending(server, "recorder")["pendingRequests"] > len(many), 10, "a full queue")
    for client in few:
        client.ask("recorder", f"{tmp_path}/quiet")
    wait_until(lambda: pending(server, "recorder")["pendingRequests"] > len(many) + 2, 10, "waiting requests")
    (tmp_path / "open").touch()
    assert [client.answer() for client in (*few, *many)] == [(200, "passed")] * (len(few) + len(many))
    order = (tmp_path / "served").read_text().split()
    # In turn, the last of the four comes after about four of the flood; at the end of a common queue, after forty.
    assert order.index("quiet") < 10
    before_last = order[: len(order) - order[::-1].index("quiet")]
    assert before_last.count("flood") < len(many) // 2


def test_front_ends_that_were_not_asked_for_by_number_come_from_the_processors(
    tmp_path: Path, start_server: Callable[..., ServerProcess]
) -> None:
    by_flag = start_server(tmp_path / "store", flags=("--ncs", "--frontends", "3"), config={"frontends": 2})
    assert len(by_flag.front_ends()) == 3
    by_default = start_server(tmp_path / "store")
    assert 1 <= len(by_default.front_ends()) <= (os.cpu_count() or 1)

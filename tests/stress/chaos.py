"""The other side of the stress test: a real server with five models, its processes killed at random, its memory watched."""

import os
import random
import re
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import msgspec
import psutil

from ringserve.server.testing import ServerProcess, wait_until
from ringserve.tools.archiver import ArchiveRequest, write_archive
from tests.stress.plans import REQUEST_BYTES_MAX, RESPONSE_TIMEOUT_S, TYPED_WIDTH
from tests.stress.verdicts import rss_growth

HANDLERS = Path(__file__).parent / "handlers"
BATCH_MAX = 8
QUEUE_MAX = 32
READY_S_MAX = 60.0
BACK_S_MAX = 20.0
QUIET_S_MAX = 30.0
SLABS_S_MAX = 5.0
SAMPLE_S = 1.0
TYPED_CONFIG = f"""
backend: python
inputs:
  - {{name: x, dtype: int64, shape: [{TYPED_WIDTH}]}}
outputs:
  - {{name: y, dtype: int64, shape: [2]}}
"""
# Model, its handler, what its configuration says besides the batch size.
MODELS = {
    "hash": ("hashed.py:handle", ""),
    "faulty": ("hashed.py:handle", ""),
    "sleepy": ("hashed.py:handle", f"responseTimeout: {RESPONSE_TIMEOUT_S}\n"),
    "stream": ("stream.py:handle", ""),
    "typed": ("sums.py", TYPED_CONFIG),
}
_SLABS = re.compile(r"dispatcher (.+?): free slabs (\d+) of (\d+), waiting (\d+), held (\d+)")
# What a log holds when the server itself, not a model, did something wrong.
BUG_WORDS = (
    "a request failed inside the server",
    "could not be delivered",
    "was never retrieved",
    "was never awaited",
    "Exception in callback",
    "AssertionError",
    "ResourceWarning",
)


class Slabs(msgspec.Struct, frozen=True):
    """What one front end says about one model's slabs."""

    model: str
    free: int
    total: int
    waiting: int
    held: int

    @property
    def quiet(self) -> bool:
        return self.free == self.total and self.waiting == 0 and self.held == 0


def parse_slabs(log: str) -> list[Slabs]:
    return [Slabs(match[0], *map(int, match[1:])) for match in _SLABS.findall(log)]


def make_server(folder: Path, front_ends: int, workers: int, sabotage: str = "") -> ServerProcess:
    """A server on archives of the five models, not started yet."""
    store, workshop = folder / "store", folder / "workshop"
    store.mkdir(parents=True)
    workshop.mkdir()
    for name, (handler, config) in MODELS.items():
        config_file = workshop / f"{name}.yaml"
        config_file.write_text(f"batchSize: {BATCH_MAX}\n{config}")
        request = ArchiveRequest(
            model_name=name, version="1.0", handler=str(HANDLERS / handler), config_file=config_file, export_path=store
        )
        write_archive(request)
    settings = {
        "frontends": front_ends,
        "default_workers_per_model": workers,
        "job_queue_size": QUEUE_MAX,
        "max_request_size": REQUEST_BYTES_MAX,
        "max_response_size": REQUEST_BYTES_MAX,
    }
    return ServerProcess(store, config=settings, env={"STRESS_SABOTAGE": sabotage}, folder=folder / "server")


class Site:
    """The server as its operator sees it."""

    def __init__(self, server: ServerProcess, front_ends: int, workers: int) -> None:
        self.server, self._front_end_count, self._worker_count = server, front_ends, workers
        self._http = httpx.Client(timeout=10, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def wait_ready(self) -> None:
        wait_until(self._all_ready, READY_S_MAX, "all workers and front ends")

    def _all_ready(self) -> bool:
        enough = all(len(self.workers(model)) == self._worker_count for model in MODELS)
        return enough and len(self.server.front_ends()) == self._front_end_count

    def workers(self, model: str) -> list[int]:
        """The pids that `describe` calls ready."""
        described = self._http.get(f"{self.server.management_url}/models/{model}").json()
        return [worker["pid"] for worker in described[0]["workers"] if worker["status"] == "READY"]

    def slabs(self) -> list[Slabs]:
        """What all front ends say about all models now. Raises `TimeoutError` when one keeps silent."""
        seen = self.server.log_file.stat().st_size
        pids = self.server.front_ends()
        for pid in pids:
            os.kill(pid, signal.SIGUSR1)
        expected = len(pids) * len(MODELS)
        wait_until(lambda: len(parse_slabs(self._log_from(seen))) >= expected, SLABS_S_MAX, "what SIGUSR1 logs")
        return parse_slabs(self._log_from(seen))

    def _log_from(self, offset: int) -> str:
        with self.server.log_file.open("rb") as log:
            log.seek(offset)
            return log.read().decode(errors="replace")

    def leaks(self) -> list[str]:
        """What is still not free after everybody has gone; waits for it to become so."""
        last: list[Slabs] = []

        def is_quiet() -> bool:
            last[:] = self.slabs()
            return all(slabs.quiet for slabs in last)

        try:
            wait_until(is_quiet, QUIET_S_MAX, "free slabs")
        except TimeoutError as error:
            return [f"{slabs} after everybody had gone" for slabs in last if not slabs.quiet] or [str(error)]
        return []

    def log_bugs(self) -> list[str]:
        """What the server says of itself that it should not have to."""
        log = self.server.log
        return [f"the log says {word!r} {log.count(word)} times" for word in BUG_WORDS if word in log]


class Killer:
    """Kills workers, and front ends until told not to any more, at random moments. A thread of its own."""

    def __init__(self, site: Site, seed: int, every_s: float, front_ends_until_s: float) -> None:
        self._site, self._every_s, self._front_ends_until_s = site, every_s, front_ends_until_s
        self._chance = random.Random(f"{seed} killer")
        self.worker_s: list[float] = []
        self.front_end_s: list[float] = []
        self.violations: list[str] = []
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stopping.wait(self._chance.expovariate(1 / self._every_s)):
                if time.monotonic() < self._front_ends_until_s and self._chance.random() < 0.5:
                    self._kill_front_end()
                else:
                    self._kill_worker()
        except (TimeoutError, httpx.HTTPError) as error:
            self.violations.append(f"after a kill: {error!r}")

    def _kill_worker(self) -> None:
        pids = self._site.workers(self._chance.choice(list(MODELS)))
        if pids:
            self._kill(self._chance.choice(pids), self.worker_s)

    def _kill_front_end(self) -> None:
        """And wait for its successor: two dead at once would be no front end at all."""
        before = self._site.server.front_ends()
        pid = self._chance.choice(before)
        self._kill(pid, self.front_end_s)

        def is_replaced() -> bool:
            now = self._site.server.front_ends()
            return pid not in now and len(now) == len(before)

        wait_until(is_replaced, BACK_S_MAX, f"the successor of front end {pid}")

    def _kill(self, pid: int, times_s: list[float]) -> None:
        times_s.append(time.monotonic())
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            times_s.pop()


class Resident(msgspec.Struct, frozen=True):
    """Bytes that a process occupies: all of them, its own, and those of shared memory that it has touched."""

    total: int
    own: int
    shared: int


def resident(pid: int) -> Resident:
    """Raises `OSError` when it is gone."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    fields = {
        name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in lines) if "Rss" in name
    }
    return Resident(sum(fields.values()), fields["RssAnon"], fields["RssShmem"])


class Watcher:
    """Samples the resident memory of the front ends. A thread of its own."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self.samples: dict[int, list[Resident]] = {}
        self.started = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def start(self) -> None:
        self.started = True
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        pids: Sequence[int] = ()
        while not self._stopping.wait(SAMPLE_S):
            if not pids or not all(map(psutil.pid_exists, pids)):
                pids = self._server.front_ends()
            for pid in pids:
                try:
                    self.samples.setdefault(pid, []).append(resident(pid))
                except (OSError, KeyError):  # gone, or a zombie
                    continue

    def growth(self) -> dict[int, float]:
        """By front end, for those that lived for most of the time that was watched. Of what is the process' own: the pages of
        lanes come and go with what is in flight, as far as the lanes are large."""
        longest = max(map(len, self.samples.values()), default=0)
        return {
            pid: rss_growth([each.total - each.shared for each in samples])
            for pid, samples in self.samples.items()
            if len(samples) > 0.9 * longest
        }

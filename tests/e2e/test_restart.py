"""`ringserve restart`: a new instance takes over under load, or the running one goes on as if nothing had been."""

import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until
from tests.e2e.persistent import Persistent

SLOW = "import pathlib, time\nwhile pathlib.Path({hold!r}).exists():\n    time.sleep(0.01)\n"
HANDLER = "def handle(data, context):\n    return None if data is None else ['slow'] * len(data)\n"


class Site:
    """A server in the background that remembers what is registered, and commands for it."""

    def __init__(self, folder: Path) -> None:
        self.store, self.hold = folder / "store", folder / "hold"
        self.store.mkdir()
        self.watch = ServerProcess(self.store, folder=folder)
        self.watch.config.update({"default_workers_per_model": 1, "drain_delay": 1, "drain_timeout": 1})
        self.watch.write_config()
        self.watch.log_file = folder / "logs" / "ts_log.log"
        self.management = httpx.Client(base_url=self.watch.management_url, trust_env=False, timeout=30)

    def run(self, *words: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        return self.watch.run(*words, folder=folder)

    @property
    def pid(self) -> int:
        return int((self.watch.tmp_dir / ".model_server.pid").read_text())

    def predict(self, model: str) -> httpx.Response:
        return self.get(f"/predictions/{model}")

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.watch.inference_url}{path}", trust_env=False)


@pytest.fixture
def site(tmp_path: Path, archive: Callable[..., Path]) -> Iterator[Site]:
    site = Site(tmp_path)
    archive(site.store, "plain", "plain.py:handle")
    archive(site.store, "slow", "slow.py:handle", source=SLOW.format(hold=str(site.hold)) + HANDLER)
    words = ("--model-store", site.store, "--models", "plain.mar", "--ts-config", site.watch.config_file)
    started = site.run("start", *words, "--enable-model-api")
    assert started.returncode == 0, started.stderr
    yield site
    assert site.watch.kill_all() == []
    assert site.watch.remains() == []


def test_a_new_instance_takes_over_without_a_request_or_a_change_lost(site: Site, tmp_path: Path) -> None:
    first = site.pid
    assert site.management.post("/models?url=slow.mar&initial_workers=1").status_code == 200
    assert site.management.put("/models/plain?min_worker=2&synchronous=true").status_code == 200
    site.hold.touch()
    with ThreadPoolExecutor(1) as pool, Persistent(site.watch.inference_url, "/predictions/plain") as clients:
        wait_until(lambda: clients.answered > 100, 10, "answers")
        restarted = pool.submit(site.run, "restart", folder=tmp_path)
        wait_until(lambda: site.management.delete("/models/none").status_code == 503, 20, "the hand-over has begun")
        refused = site.management.put("/models/plain?min_worker=3")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        assert "another instance is taking over" in site.run("restart").stderr
        answered = clients.answered
        wait_until(lambda: clients.answered > answered + 100, 10, "answers meanwhile")
        assert (site.pid, site.predict("slow").text) == (first, "slow")
        site.hold.unlink()
        assert restarted.result().returncode == 0, restarted.result().stderr
        second = site.pid
        assert f"pid {second}" in restarted.result().stdout
        wait_until(lambda: first not in site.watch.processes(), 10, "the end of the first instance")
        answered = clients.answered
        wait_until(lambda: clients.answered > answered + 100, 10, "answers afterwards")
    assert (clients.lost, clients.refused, set(clients.statuses)) == ([], 0, {200})
    assert site.predict("slow").text == "slow"
    described = site.management.get("/models/plain").json()[0]
    assert (described["minWorkers"], len(described["workers"])) == (2, 2)
    assert os.readlink(f"/proc/{second}/cwd") == str(site.watch.folder)

    # What was served has to be served: an archive that does not load any more is no reason to lose it.
    good = (site.store / "slow.mar").read_bytes()
    (site.store / "slow.mar").write_bytes((site.store / "plain.mar").read_bytes()[:100])
    failed = site.run("restart")
    assert failed.returncode == 1
    assert "model slow version 1.0 is served by it, and not by the new one" in failed.stderr, failed.stderr
    (site.store / "slow.mar").write_bytes(good)
    assert (site.pid, site.predict("slow").text) == (second, "slow")
    assert site.management.put("/models/plain?min_worker=1&synchronous=true").status_code == 200, (
        "changes are taken again"
    )
    assert "not found" in site.run("restart", "--model-store", "nowhere").stderr

    # Whoever stops the server means both of them, also the one that could take over within the drain delay.
    site.hold.touch()
    with ThreadPoolExecutor(2) as pool:
        restarted = pool.submit(site.run, "restart")
        wait_until(lambda: site.management.delete("/models/none").status_code == 503, 20, "the hand-over has begun")
        stopped = pool.submit(site.run, "stop")
        wait_until(lambda: site.get("/health/ready").status_code == 503, 10, "the drain has begun")
        site.hold.unlink()
        assert (stopped.result().stdout, restarted.result().returncode) == ("RingServe has stopped.\n", 1)
    wait_until(lambda: site.watch.processes() == [], 10, "the end of both")
    assert "is not currently running" in site.run("restart").stderr

"""Between minWorkers and maxWorkers workers come when requests wait and go when nothing is left to do; no request is lost."""

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from ringserve.server.testing import ServerProcess, wait_until

BUSY = """
import time

def handle(data, context):
    time.sleep(0.03 * len(data or []))
    return ["done"] * len(data or [])
"""
# Its second worker never comes up.
ALONE = """
import os, pathlib, time

def handle(data, context):
    if data is None:
        own = pathlib.Path(MARK)
        if own.exists():
            print("there can be only one", flush=True)
            os._exit(3)
        own.touch()
    time.sleep(0.03 * len(data or []))
    return ["done"] * len(data or [])
"""
CONFIG = "minWorkers: 1\nmaxWorkers: 3\nautoscaling: {up_wait_ms: 20, up_after_s: 0.5, down_after_s: 1}\n"
CLIENTS = 8


@contextmanager
def load(server: ServerProcess, model: str) -> Iterator[Counter[int]]:
    """Clients that ask one request after another. Counts answers by their status."""
    statuses: Counter[int] = Counter()
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.inference_url, timeout=30, trust_env=False) as client:
            while not stop.is_set():
                statuses[client.post(f"/predictions/{model}").status_code] += 1

    threads = [threading.Thread(target=ask) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        yield statuses
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)


def test_workers_follow_the_load_within_their_bounds_and_no_request_is_lost(
    start_server: Callable[..., ServerProcess], archive: Callable[..., Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    archive(store, "busy", "h.py:handle", source=BUSY, config=CONFIG)
    alone = ALONE.replace("MARK", repr(str(tmp_path / "first")))
    archive(store, "alone", "h.py:handle", source=alone, config=CONFIG)
    archive(store, "fixed", "h.py:handle", source=BUSY)
    server = start_server(store)
    http = httpx.Client(base_url=server.management_url, timeout=30, trust_env=False)

    def workers(model: str) -> list[str]:
        return [each["status"] for each in http.get(f"/models/{model}").json()[0]["workers"]]

    def scale(model: str, low: int, high: int) -> int:
        bounds = {"min_worker": str(low), "max_worker": str(high), "synchronous": "true"}
        return http.put(f"/models/{model}", params=bounds).status_code

    def wait_for(model: str, count: int) -> None:
        wait_until(lambda: workers(model) == ["READY"] * count, 30, f"{count} workers of {model}")

    with http:
        wait_for("busy", 1)
        with load(server, "busy") as answers, load(server, "fixed") as fixed:
            wait_for("busy", 3)
            # Whoever scales it has the last word, and what runs obeys at once.
            assert scale("busy", 1, 2) == 200
            assert workers("busy") == ["READY"] * 2
            assert scale("busy", 1, 3) == 200
            wait_for("busy", 3)
            assert workers("fixed") == ["READY"], "minWorkers equals maxWorkers"
        assert set(answers) == set(fixed) == {200}
        with load(server, "alone") as answers:
            server.wait_for_log("there can be only one")
            asked = answers.total()
            wait_until(lambda: answers.total() > asked + 50, 20, "answers of the worker that there is")
        assert set(answers) == {200}
        wait_for("busy", 1)
        wait_for("alone", 1)
        assert server.log.count("there can be only one") <= 8
        described = http.get("/models/busy").json()[0]
        assert (described["minWorkers"], described["maxWorkers"]) == (1, 3)
        assert "busy 1.0: 2 workers instead of 3" in server.log

"""Between minWorkers and maxWorkers workers come when requests wait and go when nothing is left to do; no request is lost."""

from collections.abc import Callable
from pathlib import Path

import httpx

from ringserve.server.testing import ServerProcess, wait_until
from tests.e2e.asking import Asking

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
CONFIG = "minWorkers: 1\nmaxWorkers: 3\nautoscaling: {up_wait_ms: 20, up_after_s: 0.5, down_after_s: 0.5}\n"
CLIENTS = 6


def test_workers_follow_the_load_within_their_bounds_and_no_request_is_lost(
    start_server: Callable[..., ServerProcess], archive: Callable[..., Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    archive(store, "busy", "h.py:handle", source=BUSY, config=CONFIG)
    source = ALONE.replace("MARK", repr(str(tmp_path / "first")))
    archive(store, "alone", "h.py:handle", source=source, config=CONFIG)
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

    def asking(model: str) -> Asking:
        return Asking(server.inference_url, model, clients=CLIENTS)

    with http:
        wait_for("busy", 1)
        with asking("busy") as busy, asking("fixed") as fixed, asking("alone") as alone:
            wait_for("busy", 3)
            # Whoever scales it has the last word, and what runs obeys at once.
            assert scale("busy", 1, 2) == 200
            assert workers("busy") == ["READY"] * 2
            assert scale("busy", 1, 3) == 200
            wait_for("busy", 3)
            assert workers("fixed") == ["READY"], "minWorkers equals maxWorkers"
            server.wait_for_log("there can be only one")
            asked = alone.answers.total()
            wait_until(lambda: alone.answers.total() > asked + 20, 20, "answers of the worker that there is")
        assert {*busy.answers, *fixed.answers, *alone.answers} == {"done"}
        wait_for("busy", 1)
        wait_for("alone", 1)
        assert server.log.count("there can be only one") <= 8
        described = http.get("/models/busy").json()[0]
        assert (described["minWorkers"], described["maxWorkers"]) == (1, 3)
        assert "busy 1.0: 2 workers instead of 3" in server.log

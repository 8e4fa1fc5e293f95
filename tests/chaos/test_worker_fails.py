"""Models that end, hang or stop their worker: their request is answered honestly, the next one works."""

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import psutil
import pytest

from ringserve.server.testing import wait_until

if TYPE_CHECKING:
    from tests.chaos.conftest import Site

pytestmark = pytest.mark.e2e

RESPONSE_S_MAX = 2
# The stuck are looked for once a second; then a worker is replaced.
REPLACED_S_MAX = RESPONSE_S_MAX + 4


def died(response: httpx.Response) -> str:
    """The sentence of a request whose worker died."""
    assert response.status_code == 500
    error = response.json()
    assert error.keys() == {"code", "type", "message"}
    assert error["code"] == 500
    assert error["type"] == "InternalServerException"
    assert error["message"].startswith("Worker died.")
    return str(error["message"])


@pytest.mark.parametrize("batch_size", [1, 4])
def test_a_model_that_ends_its_process_fails_its_own_request_and_says_how(
    archive: Callable[..., Path], start: "Callable[..., Site]", batch_size: int
) -> None:
    site = start(archive("actor", config=f"batchSize: {batch_size}\n"))
    endings = {
        "exit:3": "exited with code 3.",
        "exit:0": "exited with code 0.",
        "kill:SIGSEGV": "was killed by signal 11 (SIGSEGV).",
        "kill:SIGKILL": "was killed by signal 9 (SIGKILL).",
        "abort": "was killed by signal 6 (SIGABRT).",
    }
    for word, ending in endings.items():
        assert died(site.predict("actor", f"1 {word}")).endswith(ending)
        assert site.predict("actor", "2").text == "2"


def test_a_model_that_ends_its_process_under_load_fails_only_batches_it_was_in(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    site = start(archive("actor", config="batchSize: 4\n"), workers=2)
    endings = ["exit:9", "kill:SIGSEGV", "abort"] * 3
    with site.load("actor", 16) as load:
        for word in endings:
            answered = load.right
            assert died(site.predict("actor", f"0 {word}"))
            wait_until(lambda seen=answered: load.right > seen, 10, "answers")  # type: ignore[misc]
    load.check()
    assert load.errors.total() <= len(endings) * 3


def test_a_worker_that_hangs_longer_than_the_response_timeout_is_replaced(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    site = start(archive("actor", config=f"responseTimeout: {RESPONSE_S_MAX}\n"))
    [hung] = site.ready_workers("actor")
    begun = time.monotonic()
    assert died(site.predict("actor", "1 sleep:60"))
    assert RESPONSE_S_MAX <= time.monotonic() - begun < REPLACED_S_MAX
    assert site.predict("actor", "2").text == "2"
    assert hung not in site.wait_ready("actor")


def test_a_stopped_worker_under_load_is_replaced_and_costs_only_its_batch(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    site = start(archive("actor", config=f"responseTimeout: {RESPONSE_S_MAX}\nbatchSize: 4\n"))
    with site.load("actor", 16) as load:
        wait_until(lambda: load.right > 100, 10, "answers")
        [stopped] = site.ready_workers("actor")
        os.kill(stopped, signal.SIGSTOP)
        wait_until(lambda: set(site.ready_workers("actor")) - {stopped}, REPLACED_S_MAX, "another worker")
        answered = load.right
        wait_until(lambda: load.right > answered + 100, 10, "answers again")
    load.check()
    assert load.errors.total() <= 4


def test_a_model_slower_than_the_timeout_between_its_batches_is_left_alone(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    """The clock runs for the batch that is executed, not for those behind it."""
    site = start(archive("actor", config="responseTimeout: 1\n"))
    worker = site.ready_workers("actor")
    answers: list[int] = []
    slow = [
        threading.Thread(target=lambda: answers.append(site.predict("actor", "1 sleep:0.6").status_code))
        for _ in range(4)
    ]
    for thread in slow:
        thread.start()
    for thread in slow:
        thread.join(20)
    assert answers == [200] * 4
    assert site.ready_workers("actor") == worker


def test_a_model_that_can_load_no_more_fails_fast_alone_and_can_be_deleted(
    archive: Callable[..., Path], start: "Callable[..., Site]", tmp_path: Path
) -> None:
    loaded = tmp_path / "loaded"
    once = f"""
import os
def handle(data, context):
    if data is None:
        if os.path.exists({str(loaded)!r}):
            print("no second time", flush=True)
            os._exit(7)
        open({str(loaded)!r}, "w").close()
    return ["once"] * len(data or [])
"""
    archive("once", source=once)
    site = start(archive("actor"))
    assert site.predict("once", "").text == "once"
    with site.load("actor", 2) as load:
        site.kill_worker(site.ready_workers("once")[0])
        # Until it has failed a few times requests may wait for it; then they are told.
        refused = site.predict("once", "")
        assert refused.status_code == 503
        assert refused.json()["type"] == "ServiceUnavailableException"
        begun = time.monotonic()
        assert site.predict("once", "").status_code == 503
        assert time.monotonic() - begun < 0.5
        assert site.ping().status_code == 500
        assert site.ping().json() == {"status": "Unhealthy"}
        assert retry_delays(site) == sorted(retry_delays(site))
        assert len(retry_delays(site)) >= 3
        assert "exited with code 7 while loading" in site.server.log
        assert site.manage("DELETE", "/models/once").status_code == 200
        assert site.predict("once", "").status_code == 404
        assert site.ping().status_code == 200
    load.check()
    assert load.errors.total() == 0
    assert load.right > 0


def test_a_model_can_be_deleted_while_a_worker_hangs_in_its_loading(
    archive: Callable[..., Path], start: "Callable[..., Site]", tmp_path: Path
) -> None:
    loaded, hanging = tmp_path / "loaded", tmp_path / "hanging"
    source = f"""
import pathlib, time
def handle(data, context):
    if data is None:
        if pathlib.Path({str(loaded)!r}).exists():
            pathlib.Path({str(hanging)!r}).touch()
            time.sleep(300)
        pathlib.Path({str(loaded)!r}).touch()
    return ["once"] * len(data or [])
"""
    site = start(archive("hangs", source=source))
    site.kill_worker(site.ready_workers("hangs")[0])
    wait_until(hanging.exists, 10, "a worker that hangs")
    assert site.ping().status_code == 500
    assert site.manage("DELETE", "/models/hangs").status_code == 200
    assert site.predict("hangs", "").status_code == 404
    assert site.server.workers() == []
    assert site.ping().status_code == 200


def test_what_a_model_started_ends_with_its_worker(
    archive: Callable[..., Path], start: "Callable[..., Site]", tmp_path: Path
) -> None:
    source = f"""
import pathlib, subprocess
def handle(data, context):
    if data is None:
        helper = subprocess.Popen(["sleep", "1000"])
        pathlib.Path({str(tmp_path)!r}, f"helper-{{helper.pid}}").touch()
    return ["helped"] * len(data or [])
"""
    site = start(archive("helped", source=source))
    [first] = helpers(tmp_path)
    site.kill_worker(site.ready_workers("helped")[0])
    site.wait_ready("helped")
    [second] = set(helpers(tmp_path)) - {first}
    wait_until(lambda: not runs(first), 5, "the end of the first worker's helper")
    assert runs(second)
    os.kill(site.server.pid, signal.SIGTERM)
    site.server.wait(20)
    wait_until(lambda: not site.server.processes(), 5, "the end of everything")


def helpers(folder: Path) -> list[int]:
    return [int(path.name.rpartition("-")[2]) for path in folder.glob("helper-*")]


def runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def retry_delays(site: "Site") -> list[float]:
    lines = [line for line in site.server.log.splitlines() if "Retry worker: " in line]
    return [float(line.rpartition(" in ")[2].split()[0]) for line in lines]


def test_a_model_that_dies_by_itself_right_after_loading_is_not_started_over_and_over(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    """It never takes a batch: each death counts as a failed start, at growing distances."""
    short_lived = """
import os, threading
def handle(data, context):
    if data is None:
        threading.Timer(0.3, os._exit, [9]).start()
        return None
    return ["alive"] * len(data)
"""
    site = start(archive("actor"))
    archive("short", source=short_lived)
    wanted = {"url": "short.mar", "initial_workers": 1, "synchronous": "false"}
    assert site.manage("POST", "/models", **wanted).status_code == 202
    wait_until(lambda: len(retry_delays(site)) >= 3, 30, "three failed starts")
    assert retry_delays(site)[:3] == sorted(retry_delays(site)[:3])
    assert retry_delays(site)[2] > 2
    refused = site.predict("short", "")
    assert refused.status_code == 503
    assert refused.json()["type"] == "ServiceUnavailableException"
    assert "exited with code 9 before it had anything to do" in site.server.log


def test_a_worker_killed_again_and_again_while_it_loads_is_back_as_soon_as_it_is_let(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    """A kill from outside is no failure of the model: no growing distances, no giving up."""
    slow_to_load = """
import time
def handle(data, context):
    if data is None:
        print("loading", flush=True)
        time.sleep(0.5)
        return None
    return ["loaded"] * len(data)
"""
    site = start(archive("slow", source=slow_to_load))
    for kills in range(8):
        loadings = site.server.log.count(" loading")
        os.kill(site.server.workers()[0], signal.SIGKILL)
        wait_until(lambda seen=loadings: site.server.log.count(" loading") > seen, 10, f"start {kills + 1}")  # type: ignore[misc]
    begun = time.monotonic()
    assert site.predict("slow", "").text == "loaded"
    assert time.monotonic() - begun < 5
    assert retry_delays(site) == []

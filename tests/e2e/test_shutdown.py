"""How a server ends, and what it costs while nobody asks it anything."""

import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ringserve.server.testing import ServerProcess, wait_until

IDLE_S = 3.0
IDLE_SHARE_MAX = 0.01


@pytest.fixture
def gated(start_server: Callable[..., ServerProcess], archive: Callable[..., Path], tmp_path: Path) -> ServerProcess:
    """A server whose one model holds requests until told."""
    archive(tmp_path / "store", "gate", "gate.py:handle")
    return start_server(tmp_path / "store")


def ask(server: ServerProcess, folder: Path) -> httpx.Response:
    return httpx.post(f"{server.inference_url}/predictions/gate", content=str(folder), trust_env=False, timeout=30)


def test_ctrl_c_in_a_terminal_ends_a_server_in_order(gated: ServerProcess, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, gated, tmp_path)
        wait_until(lambda: (tmp_path / "started").exists(), 20, "the request runs")
        os.killpg(gated.pid, signal.SIGINT)  # as a terminal does: to the whole group
        gated.wait_for_log("stopping: answering what is in flight", 10)
        (tmp_path / "open").touch()
        assert asked.result().text == "passed"
    assert gated.wait(20) == 0


def test_a_signal_to_every_process_at_once_still_lets_the_running_request_finish(
    gated: ServerProcess, tmp_path: Path
) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, gated, tmp_path)
        wait_until(lambda: (tmp_path / "started").exists(), 20, "the request runs")
        for pid in gated.processes():  # as systemd does
            os.kill(pid, signal.SIGTERM)
        gated.wait_for_log("stopping: answering what is in flight", 10)
        (tmp_path / "open").touch()
        assert asked.result().text == "passed"
    assert gated.wait(20) == 0


def test_a_signal_during_the_start_ends_it_and_leaves_nothing(archive: Callable[..., Path], tmp_path: Path) -> None:
    archive(tmp_path / "store", "gate", "gate.py:handle")
    server = ServerProcess(tmp_path / "store", folder=tmp_path / "server")
    moments: dict[signal.Signals, Callable[[], object]] = {
        signal.SIGTERM: (server.tmp_dir / ".model_server.pid").exists,
        signal.SIGINT: lambda: "gate.mar: Processing worker updates..." in server.log,
    }
    for number, come in moments.items():
        server.launch()
        try:
            wait_until(come, 20, "the moment")
            os.kill(server.pid, number)
            assert server.wait(20) == 0
            assert server.remains() == []
        finally:
            server.stop(0)


def test_requests_that_run_and_wait_when_told_to_stop_are_answered(gated: ServerProcess, tmp_path: Path) -> None:
    with ThreadPoolExecutor(5) as pool:
        asked = [pool.submit(ask, gated, tmp_path) for _ in range(5)]
        describe = f"{gated.management_url}/models/gate"
        wait_until(lambda: (tmp_path / "started").exists(), 20, "the first request runs")
        wait_until(
            lambda: httpx.get(describe, trust_env=False).json()[0]["jobQueueStatus"]["pendingRequests"] == 3,
            10,
            "the others wait",
        )
        os.kill(gated.pid, signal.SIGTERM)
        gated.wait_for_log("stopping: answering what is in flight", 10)
        wait_until(lambda: refuses(gated), 10, "new connections are refused")
        (tmp_path / "open").touch()
        assert [each.result().text for each in asked] == ["passed"] * 5
    assert gated.wait(20) == 0
    assert gated.remains() == []


def refuses(server: ServerProcess) -> bool:
    try:
        httpx.get(f"{server.inference_url}/ping", trust_env=False, timeout=0.5)
    except httpx.HTTPError:
        return True
    return False


def test_an_idle_connection_does_not_hold_up_the_end_when_a_terminal_closes(gated: ServerProcess) -> None:
    with httpx.Client(base_url=gated.inference_url, trust_env=False) as client:
        assert client.get("/ping").status_code == 200
        started = time.monotonic()
        os.kill(gated.pid, signal.SIGHUP)
        assert gated.wait(20) == 0
        assert time.monotonic() - started < 5


def test_a_second_signal_does_not_wait(gated: ServerProcess, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask, gated, tmp_path)
        wait_until(lambda: (tmp_path / "started").exists(), 20, "the request runs")
        os.kill(gated.pid, signal.SIGTERM)
        gated.wait_for_log("stopping: answering what is in flight", 10)
        os.kill(gated.pid, signal.SIGTERM)
        gated.wait(10)
        with pytest.raises(httpx.HTTPError):
            asked.result()
    assert gated.remains() == []


def test_signals_until_the_last_moment_do_not_spoil_the_exit_code(start_server: Any, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    server: ServerProcess = start_server(tmp_path / "store")
    os.kill(server.pid, signal.SIGTERM)
    while server.running:
        os.kill(server.pid, signal.SIGTERM)
        time.sleep(0.001)
    assert server.wait(20) == 0
    assert server.remains() == []


def test_a_registration_that_is_under_way_is_told_that_the_server_stops(
    start_server: Any, archive: Callable[..., Path], tmp_path: Path
) -> None:
    source = f"import time\nopen({str(tmp_path / 'loading')!r}, 'w').close()\ntime.sleep(60)\n"
    archive(tmp_path / "store", "slow", "h.py:handle", source=source)
    server: ServerProcess = start_server(tmp_path / "store", models=())
    with ThreadPoolExecutor(1) as pool:
        url = f"{server.management_url}/models"
        asked = pool.submit(
            httpx.post, url, params={"url": "slow.mar", "initial_workers": 1}, timeout=60, trust_env=False
        )
        wait_until((tmp_path / "loading").exists, 20, "its worker loads")
        assert server.stop() == 0
        assert asked.result().status_code == 503
        assert "shutting down" in asked.result().json()["message"]
    assert "Traceback" not in server.log


def test_a_model_that_is_still_loading_does_not_hold_up_the_end(
    start_server: Any, archive: Callable[..., Path], tmp_path: Path
) -> None:
    archive(
        tmp_path / "store", "slow", "h.py:handle", source="import time\nprint('loading', flush=True)\ntime.sleep(60)\n"
    )
    server: ServerProcess = start_server(tmp_path / "store")
    server.wait_for_log("W-9000-slow_1.0 loading", 20)
    started = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - started < 5


def test_a_process_that_a_model_started_does_not_hold_up_the_end(
    start_server: Any, archive: Callable[..., Path], tmp_path: Path
) -> None:
    source = (
        "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\n"
        "def handle(data, context):\n    return None if data is None else [child.pid]\n"
    )
    archive(tmp_path / "store", "parent", "h.py:handle", source=source)
    server: ServerProcess = start_server(tmp_path / "store")
    pid = httpx.get(f"{server.inference_url}/predictions/parent", trust_env=False).json()
    assert psutil.pid_exists(pid)
    started = time.monotonic()
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait(20) == 0
    assert time.monotonic() - started < 5
    wait_until(lambda: pid not in server.processes(), 2, "the model's own process is gone")


def cpu_s(server: ServerProcess) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in (server.pid, *server.children())]
    return sum(each.user + each.system for each in times)


def test_an_idle_server_uses_less_than_a_hundredth_of_a_core(gated: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "open").touch()
    assert ask(gated, tmp_path).text == "passed"
    before, started = cpu_s(gated), time.monotonic()
    # The one wait by the clock: it is the measurement.
    time.sleep(IDLE_S)
    used, passed = cpu_s(gated) - before, time.monotonic() - started
    assert used / passed < IDLE_SHARE_MAX + 0.01 / passed, f"{used:.3f} s in {passed:.1f} s"  # one clock tick of noise

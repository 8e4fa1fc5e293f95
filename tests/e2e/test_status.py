"""`ringserve status` beside a real server: what it serves, over the server's own socket alone."""

import json
import os
import signal
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until


def status(server: ServerProcess, *words: str) -> subprocess.CompletedProcess[str]:
    return server.run("status", *words)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("status")
    store = folder / "store"
    archive(store, "good", "plain.py:handle")
    archive(store, "newer", "plain.py:handle", version="2.0", config="minWorkers: 1\nmaxWorkers: 3\n")
    archive(store, "raising", "h.py:handle", source="raise OSError('no weights')\n")
    models = ("good.mar", "newer=newer.mar", "raising.mar")
    server = ServerProcess(store, models=models, config={"default_workers_per_model": 1}, folder=folder / "server")
    with server:
        query = {"url": "newer.mar", "model_name": "good"}
        assert httpx.post(f"{server.management_url}/models", params=query, trust_env=False).status_code == 200
        server.wait_for_log("OSError: no weights")
        ping = f"{server.inference_url}/health/ready"
        for model in ("good/1.0", "newer"):
            wait_until(lambda: httpx.get(f"{ping}/{model}", trust_env=False).status_code == 200, 30, f"{model} ready")  # noqa: B023
        yield server
    assert server.wait(1) == 0, server.log
    assert server.remains() == []


def test_every_version_has_a_line(server: ServerProcess) -> None:
    said = status(server)
    assert (said.returncode, said.stderr) == (0, "")
    first, *table, failing, reason = said.stdout.splitlines()
    assert first.startswith(f"RingServe is running, pid {server.pid}, ")
    assert [line.split() for line in table] == [
        ["MODEL", "VERSION", "STATE", "WORKERS", "DEVICES", "SOURCE"],
        ["good", "1.0", "*", "ready", "1/1", "cpu", "good.mar"],
        ["good", "2.0", "ready", "1/1-3", "cpu", "newer.mar"],
        ["newer", "2.0", "*", "ready", "1/1-3", "cpu", "newer.mar"],
        ["raising", "1.0", "*", "failed", "0/1", "cpu", "raising.mar"],
    ]
    assert failing == "Failing:"
    assert reason.startswith(
        "  raising 1.0: Failed to start workers for model raising version: 1.0. OSError: no weights"
    )


def test_a_program_is_told_the_same_as_the_management_api_says(server: ServerProcess) -> None:
    said = status(server, "--json")
    assert said.returncode == 0
    told = json.loads(said.stdout)
    assert (told["running"], told["pid"]) == (True, server.pid)
    answer = httpx.get(f"{server.management_url}/status", trust_env=False)
    assert answer.status_code == 200
    assert {key: told[key] for key in ("models", "repository")} == answer.json()
    assert [each["state"] for each in told["models"]] == ["ready", "ready", "ready", "failed"]


def test_nobody_else_reaches_the_socket(server: ServerProcess) -> None:
    (path,) = server.tmp_dir.glob("ringserve-*/admin.sock")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_server_that_does_not_answer_is_said_to_run_and_no_more(server: ServerProcess) -> None:
    os.kill(server.pid, signal.SIGSTOP)
    try:
        said = status(server)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    assert said.returncode == 1
    assert said.stdout.startswith(f"RingServe is running, pid {server.pid}, ")
    assert said.stderr == f"RingServe (pid {server.pid}) does not say what it serves: it does not answer in time.\n"
    assert status(server).returncode == 0


def test_without_a_server_there_is_a_word_and_a_code(tmp_path: Path) -> None:
    server = ServerProcess(tmp_path, folder=tmp_path)
    said = status(server)
    assert (said.returncode, said.stdout) == (3, "RingServe is not currently running.\n")
    said = status(server, "--json")
    assert (said.returncode, json.loads(said.stdout)) == (3, {"running": False})

"""`ringserve.server.launcher`: a program starts the server, reads what it says, registers a model and stops it, or just goes."""

import queue
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from ringserve.server import launcher
from ringserve.server.launcher import ServerNotStarted
from ringserve.server.testing import ServerProcess

WAIT_S = 60


@pytest.fixture
def site(tmp_path: Path, archive: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Iterator[ServerProcess]:
    """A place where this program may start servers; used to look for what they leave."""
    site = ServerProcess(tmp_path / "store", folder=tmp_path)
    archive(tmp_path / "store", "plain", "plain.py:handle")
    site.config["default_workers_per_model"] = 1
    site.write_config()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(site.tmp_dir))
    monkeypatch.delenv("TS_CONFIG_FILE", raising=False)
    yield site
    assert site.kill_all() == []
    assert site.remains() == []


def read_to_the_end(lines: "queue.Queue[str | None]") -> list[str]:
    return [line for line in iter(lambda: lines.get(timeout=WAIT_S), None) if line is not None]


def test_a_program_starts_the_server_registers_a_model_and_stops_it(
    site: ServerProcess, capfd: pytest.CaptureFixture[str]
) -> None:
    lines = launcher.start("store", "config.properties", no_config_snapshots=True, enable_model_api=True)
    echoed = capfd.readouterr().out
    assert echoed.splitlines()[0] == "RingServe is not currently running.", "it looks for another first"
    assert echoed.splitlines()[-1] == "Model server started."
    assert "Inference API bind to: " in echoed

    response = launcher.register_model("plain", "plain.mar", management_address=site.management_url)
    assert (response.status_code, response.json()["status"]) == (
        200,
        'Model "plain" Version: 1.0 registered with 1 initial workers',
    )
    assert httpx.get(f"{site.inference_url}/predictions/plain", trust_env=False).text == "plain 1.0"
    again = launcher.register_model("plain", "plain.mar", management_address=site.management_url)
    assert (again.status_code, again.ok) == (409, False)

    launcher.stop()
    said = read_to_the_end(lines)
    assert all(line.endswith("\n") for line in said)
    assert [line for line in said if "Torchserve stopped." in line]


def test_a_server_that_cannot_start_raises_with_what_it_said(site: ServerProcess) -> None:
    with pytest.raises(ServerNotStarted, match=r"exit code 1[\s\S]*--model-store directory not found: nowhere"):
        launcher.start("nowhere")


def test_the_server_outlives_the_program_that_started_it(site: ServerProcess) -> None:
    script = (
        "from ringserve.server import launcher; "
        "launcher.start('store', 'config.properties', no_config_snapshots=True, models='plain.mar')"
    )
    subprocess.run([sys.executable, "-P", "-c", script], check=True, timeout=WAIT_S, stdout=subprocess.DEVNULL)
    # It has nobody to talk to any more, and says something nevertheless.
    assert httpx.get(f"{site.management_url}/models/plain", trust_env=False).status_code == 200
    assert httpx.put(f"{site.management_url}/models/plain?min_worker=2", trust_env=False).status_code == 202
    assert httpx.get(f"{site.inference_url}/predictions/plain", trust_env=False).text == "plain 1.0"
    stopped = site.run("stop")
    assert stopped.stdout == "RingServe has stopped.\n"

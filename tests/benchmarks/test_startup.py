"""What the start-up benchmark starts, and with what."""

import os
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
with pytest.MonkeyPatch.context() as path_patch:  # benchmarks are run from the root; nothing else may import from there
    path_patch.syspath_prepend(ROOT)
    from benchmarks import startup


def test_every_server_has_three_addresses_of_its_own(tmp_path: Path) -> None:
    port, path = startup.configuration(tmp_path)
    lines = dict(line.split("=", 1) for line in path.read_text().splitlines())
    assert lines["inference_address"] == f"http://127.0.0.1:{port}"
    assert len({lines[f"{name}_address"] for name in ("inference", "management", "metrics")}) == 3
    assert lines["default_workers_per_model"] == "1"


def test_torchserve_is_measured_where_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert startup.find_torchserve(None) is None
    with pytest.raises(SystemExit, match="expected a virtual environment with TorchServe"):
        startup.find_torchserve(tmp_path)
    program = tmp_path / "bin" / "torchserve"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert startup.find_torchserve(tmp_path) == program
    monkeypatch.setenv("PATH", str(program.parent))
    assert startup.find_torchserve(None) == program
    assert list(startup.commands(None)) == ["ringserve"]
    assert list(startup.commands(program)) == ["ringserve", "torchserve"]


def test_our_own_command_is_not_taken_for_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(Path(startup.commands(None)["ringserve"][0]).parent))
    assert startup.find_torchserve(None) is None


def test_what_a_process_has_used_is_not_rounded_to_ticks() -> None:
    own = [psutil.Process(os.getpid())]
    before_s = startup._cpu_s(own)
    sum(range(10_000))
    assert startup._cpu_s(own) >= before_s > 0

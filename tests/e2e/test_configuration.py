"""A server told by everybody at once: file, environment and command line; and what its models see of that."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until

SEEN = """
import os

def handle(data, context):
    return [sorted(os.environ)] if data else None
"""
CONFIG = {
    "enable_envvars_config": "true",
    "default_response_timeout": "11",
    "default_startup_timeout": "44",
    "default_service_handler": "seen.py:handle",
    "blacklist_env_vars": ".*HIDDEN.*",
    "frontends": "2",
    "vmargs": "-Xmx4g",
    "job_queue_sise": "7",
}
ENVIRON = {"TS_DEFAULT_RESPONSE_TIMEOUT": "33", "A_HIDDEN_ONE": "hunter2", "A_PLAIN_ONE": "x"}
FLAGS = ("--ncs", "--frontends", "1")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    store = tmp_path_factory.mktemp("configured") / "store"
    store.mkdir()
    with zipfile.ZipFile(store / "seen.mar", "w") as archive:
        # Its manifest names no handler.
        manifest = {"runtime": "python", "model": {"modelName": "seen", "modelVersion": "1.0"}}
        archive.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        archive.writestr("seen.py", SEEN)
    config = {**CONFIG, "default_workers_per_model": 1}
    server = ServerProcess(store, config=config, env=ENVIRON, flags=FLAGS, folder=tmp_path_factory.mktemp("server"))
    with server:
        healthy = f"{server.inference_url}/ping"
        wait_until(lambda: httpx.get(healthy, trust_env=False).status_code == 200, 60, f"healthy models\n{server.log}")
        yield server
    assert server.remains() == []


def test_models_do_not_see_what_is_hidden_from_them(told: ServerProcess) -> None:
    names = httpx.post(f"{told.inference_url}/predictions/seen", content=b"x", trust_env=False).json()
    assert "A_PLAIN_ONE" in names
    assert "A_HIDDEN_ONE" not in names


def test_the_environment_wins_over_the_file(told: ServerProcess) -> None:
    described = httpx.get(f"{told.management_url}/models/seen", trust_env=False).json()[0]
    assert (described["responseTimeout"], described["startupTimeout"]) == (33, 44)


def test_what_lost_and_what_has_no_effect_is_in_the_log(told: ServerProcess) -> None:
    file = told.config_file
    lines = {line: number for number, line in enumerate(file.read_text().splitlines(), 1)}
    for said in (
        f"{file}:{lines['frontends=2']}: frontends is overridden by --frontends.",
        f"{file}:{lines['default_response_timeout=11']}: default_response_timeout is overridden by TS_DEFAULT_RESPONSE_TIMEOUT.",
        f"{file}:{lines['vmargs=-Xmx4g']}: vmargs is for the Java virtual machine",
        f"{file}:{lines['job_queue_sise=7']}: job_queue_sise is not a setting and is ignored. Did you mean job_queue_size?",
    ):
        assert said in told.log
    assert "hunter2" not in told.log


def test_config_show_says_what_the_server_runs_with(told: ServerProcess) -> None:
    done = told.run("config", "show", "--json", "--origin", *told.arguments)
    assert done.returncode == 0
    shown: dict[str, Any] = json.loads(done.stdout)
    assert shown["frontends"] == {"value": 1, "origin": "--frontends"}
    assert shown["default_response_timeout"] == {"value": 33, "origin": "TS_DEFAULT_RESPONSE_TIMEOUT"}
    assert shown["inference_address"]["value"] == told.inference_url
    assert shown["inference_address"]["origin"].startswith(str(told.config_file))
    assert shown["config_file"] == {"value": str(Path(told.config_file)), "origin": "--ts-config"}


def test_a_configuration_that_cannot_be_used_ends_the_start_with_all_its_mistakes(told: ServerProcess) -> None:
    bad = told.folder / "bad.properties"
    bad.write_text("job_queue_size=0\ninference_address=nowhere\n")
    done = told.run("start", "--foreground", "--ts-config", bad)
    assert done.returncode == 1
    lines = done.stderr.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        [f"{bad}:1", "job_queue_size"],
        [f"{bad}:2", "inference_address"],
    ]

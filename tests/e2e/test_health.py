"""Probes of a real server: what they say while models load, work, die and are replaced."""

import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until

# Loads once the file `open` is in its folder, and writes down which process was asked what.
GATED = """
import os, pathlib, time

FOLDER = pathlib.Path({folder!r})

def handle(data, context):
    if data is None:
        while not (FOLDER / "open").exists():
            time.sleep(0.01)
        return None
    with (FOLDER / "asked").open("a") as file:
        file.write("".join(f"{{os.getpid()}} {{row['body']}}\\n" for row in data))
    return ["ok"] * len(data)
"""
WARMED = "minWorkers: 1\nmaxWorkers: 1\nwarmup:\n  - {text: warm}\n"
BROKEN = "def handle(data, context):\n    raise ValueError('never')\n"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("health")


@pytest.fixture(scope="module")
def server(folder: Path, archive: Callable[..., Path]) -> Iterator[ServerProcess]:
    """With a model that loads when it is let, two versions of one that loads at once, and an archive that cannot load."""
    store = folder / "store"
    archive(store, "gated", "gated.py:handle", source=GATED.format(folder=str(folder)), config=WARMED)
    archive(store, "plain", "plain.py:handle")
    archive(store, "plain", "plain.py:handle", version="2.0", file="plain-2")
    archive(store, "broken", "broken.py:handle", source=BROKEN)
    models = ["gated.mar", "plain.mar", "plain-2.mar"]
    config = {"default_workers_per_model": 1}
    with ServerProcess(store, models=models, config=config, folder=folder / "server") as server:
        yield server
    assert server.wait(1) == 0, server.log
    assert server.remains() == []


@pytest.fixture(scope="module", params=["inference", "management"])
def probe(request: pytest.FixtureRequest, server: ServerProcess) -> Callable[..., httpx.Response]:
    """Asks one of the two listeners, without any header."""
    base = server.inference_url if request.param == "inference" else server.management_url

    def ask(path: str, method: str = "GET") -> httpx.Response:
        return httpx.request(method, f"{base}{path}", trust_env=False, timeout=20)

    return ask


def asked(folder: Path) -> list[list[str]]:
    file = folder / "asked"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def ask(server: ServerProcess) -> Callable[..., httpx.Response]:
    def request(path: str, method: str = "GET", *, management: bool = False, **more: Any) -> httpx.Response:
        base = server.management_url if management else server.inference_url
        return httpx.request(method, f"{base}{path}", trust_env=False, timeout=20, **more)

    return request


def test_a_server_whose_models_still_load_lives_and_has_not_started(
    ask: Callable[..., httpx.Response], folder: Path
) -> None:
    missing = {"models": {"gated": {"1.0": "0 of 1 workers"}}}
    wait_until(lambda: ask("/health/ready/plain").status_code == 200, 20, "the others have loaded")
    for management in (False, True):
        assert ask("/health/live", management=management).json() == {"status": "live"}
        for kind in ("started", "ready"):
            said = ask(f"/health/{kind}", management=management)
            assert (said.status_code, said.json()) == (503, {"status": f"not {kind}", **missing})
            assert said.headers["retry-after"] == "1"
            assert ask(f"/health/{kind}/gated", management=management).status_code == 503
            assert ask(f"/health/{kind}/plain/2.0", management=management).json() == {"status": kind}
        assert ask("/v1/models/gated", management=management).json() == {"name": "gated", "ready": False}
    assert (ask("/ping").status_code, ask("/ping").json()) == (500, {"status": "Unhealthy"})
    assert asked(folder) == []
    (folder / "open").touch()
    wait_until(lambda: ask("/health/ready").status_code == 200, 20, "all have loaded")
    assert ask("/health/started").json() == {"status": "started"}
    assert ask("/ping").json() == {"status": "Healthy"}


@pytest.mark.parametrize("path", ["", "/plain", "/plain/2.0", "/plain/", "/gated/1.0"])
@pytest.mark.parametrize("kind", ["live", "started", "ready"])
def test_a_server_that_serves_says_so_to_every_probe(
    probe: Callable[..., httpx.Response], kind: str, path: str
) -> None:
    said, head = probe(f"/health/{kind}{path}"), probe(f"/health/{kind}{path}", "HEAD")
    assert (said.status_code, said.json()) == (200, {"status": kind})
    assert said.headers["content-type"] == "application/json"
    assert (head.status_code, head.content) == (200, b"")


def test_who_is_unknown_and_what_is_not_allowed_is_answered_as_everywhere(
    probe: Callable[..., httpx.Response],
) -> None:
    for path in ("/health/ready/nobody", "/health/live/nobody/1.0", "/v1/models/nobody"):
        said = probe(path)
        assert (said.status_code, said.json()["message"]) == (404, "Model not found: nobody")
    missing = probe("/health/started/plain/9.9").json()
    assert missing["message"] == "Model version: 9.9 does not exist for model: plain"
    assert probe("/v1/models/plain").json() == {"name": "plain", "ready": True}
    for method, path in (("POST", "/health/ready"), ("PUT", "/v1/models/plain"), ("DELETE", "/v1/models/plain")):
        assert probe(path, method).json()["type"] == "MethodNotAllowedException"
    assert probe("/health/well").status_code == 404


def not_ready(ask: Callable[..., httpx.Response], management: bool) -> bool:
    return ask("/health/ready", management=management).status_code == 503


def test_a_killed_only_worker_is_not_ready_until_its_successor_is_warm(
    ask: Callable[..., httpx.Response], folder: Path
) -> None:
    (worker,) = ask("/models/gated", management=True).json()[0]["workers"]
    assert asked(folder) == [[str(worker["pid"]), "warm"]]
    (folder / "open").unlink()
    os.kill(worker["pid"], signal.SIGKILL)
    for management in (False, True):
        wait_until(partial(not_ready, ask, management), 5, "not ready")
        assert ask("/health/ready/gated", management=management).status_code == 503
        assert ask("/v1/models/gated", management=management).json()["ready"] is False
        assert ask("/health/started", management=management).status_code == 200, "started it has for ever"
        assert ask("/health/ready/plain", management=management).status_code == 200
    assert ask("/ping").status_code == 500
    (folder / "open").touch()
    wait_until(lambda: ask("/health/ready").status_code == 200, 20, "ready again")
    warmed = asked(folder)
    (successor,) = ask("/models/gated", management=True).json()[0]["workers"]
    assert successor["pid"] != worker["pid"]
    assert warmed == [[str(worker["pid"]), "warm"], [str(successor["pid"]), "warm"]]
    assert ask("/ping").status_code == 200


def test_a_version_that_is_not_the_default_counts_as_well(ask: Callable[..., httpx.Response]) -> None:
    more = {"url": "broken.mar", "model_name": "plain", "initial_workers": 1, "synchronous": "false"}
    # The archive says version 1.0, which plain has: under another name.
    assert ask("/models", "POST", management=True, params=more).status_code == 409
    more["model_name"] = "broken"
    assert ask("/models", "POST", management=True, params=more).status_code == 202
    wait_until(lambda: ask("/health/started/broken").status_code == 200, 20, "its worker has failed once")
    said = ask("/health/ready").json()
    assert said == {"status": "not ready", "models": {"broken": {"1.0": "0 of 1 workers"}}}
    assert ask("/ping").json() == {"status": "Unhealthy"}
    assert ask("/models/broken", "DELETE", management=True).status_code == 200
    assert ask("/health/ready").status_code == 200
    scaled = ask("/models/plain/2.0", "PUT", management=True, params={"min_worker": 0, "synchronous": "true"})
    assert scaled.status_code == 200
    assert ask("/health/ready").status_code == 200, "nobody wants workers of it"
    assert ask("/health/ready/plain/2.0").json()["models"] == {"plain": {"2.0": "0 of 0 workers"}}

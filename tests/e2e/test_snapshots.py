"""Servers are killed right after they have acknowledged a change, and while they write it down: the next one serves what was
acknowledged."""

import contextlib
import os
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until
from ringserve.shm.faults import VARIABLE

TORCHSERVE = Path(__file__).parent.parent / "server" / "snapshots" / "torchserve-0.12-shutdown.cfg"


class Place:
    """A server with a store of its own that is killed and started again."""

    def __init__(self, folder: Path, archive: Callable[..., Path], **config: object) -> None:
        self.store = folder / "store"
        for name, version, file in (("light", "1.0", "light"), ("light", "2.0", "light-2"), ("other", "1.0", "other")):
            archive(self.store, name, "plain.py", version=version, file=file)
        models = ("all",) if "model_control_mode" in config else ()
        self.server = ServerProcess(
            self.store,
            models=models,
            flags=("--enable-model-api",),
            config={"default_workers_per_model": 1, **config},
            folder=folder / "server",
        )
        self.api = httpx.Client(base_url=self.server.management_url, timeout=30, trust_env=False)
        self.snapshots = self.server.folder / "logs" / "config"

    def ask(self, method: str, path: str, **parameters: object) -> httpx.Response:
        return self.api.request(method, path, params={key: str(value) for key, value in parameters.items()})

    def change(self, method: str, path: str, **parameters: object) -> None:
        response = self.ask(method, path, **parameters)
        assert response.status_code in (200, 202), response.text

    def dies_of(self, method: str, path: str, **parameters: object) -> None:
        """Of a change that it has not acknowledged."""
        with pytest.raises(httpx.TransportError):
            self.ask(method, path, **parameters)
        self.gone()

    def kill(self) -> None:
        """As a power cut would, all at once."""
        for pid in (self.server.pid, *self.server.children()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.gone()

    def gone(self) -> None:
        wait_until(lambda: not self.server.processes(), 20, "the end of every process")
        self.server.wait(5)

    def start(self, fault: str = "") -> None:
        self.server.env = {**self.server.env, VARIABLE: fault}
        self.server.start()

    def described(self) -> dict[str, Any]:
        """Everything but what differs from process to process."""
        found: dict[str, Any] = {}
        for each in self.ask("GET", "/models").json()["models"]:
            name = each["modelName"]
            found[name] = self.ask("GET", f"/models/{name}").json()[0]["modelVersion"]
            for version in self.ask("GET", f"/models/{name}/all").json():
                found[f"{name} {version['modelVersion']}"] = _lasting(version)
        return found

    def restarted(self, fault: str = "") -> None:
        """Killed and started again, and the same as before."""
        before = self.described()
        self.kill()
        self.start(fault)
        assert self.described() == before


def _lasting(version: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in version.items() if key not in ("workers", "jobQueueStatus", "repository")}


@pytest.fixture
def place(tmp_path: Path, archive: Callable[..., Path]) -> Iterator[Callable[..., Place]]:
    places: list[Place] = []

    def make(**config: object) -> Place:
        places.append(Place(tmp_path, archive, **config))
        return places[0]

    yield make
    for each in places:
        each.api.close()
        each.server.stop()
        assert each.server.remains() == []


def test_what_was_acknowledged_is_there_after_a_kill_and_what_was_not_is_whole_or_not_there(
    place: Callable[..., Place],
) -> None:
    here = place()
    here.start()
    here.change("POST", "/models", url="light.mar", initial_workers=1, handler="plain:handle", queue_timeout=7)
    here.change("POST", "/models", url="light-2.mar", synchronous="false", batch_size=4, max_batch_delay=50)
    here.restarted("snapshot-half-written=kill@3")
    here.change("PUT", "/models/light/1.0", min_worker=2, max_worker=3, synchronous="true")
    before = here.described()
    here.dies_of("PUT", "/models/light/2.0/set-default")
    here.start()
    assert here.described() == before
    here.change("PUT", "/models/light/2.0/set-default")
    here.restarted()
    here.change("PUT", "/models/light/1.0", min_worker=1)
    before = here.described()
    here.kill()
    here.start("snapshot-synced=kill@3")
    after = here.described()
    assert after["light 1.0"]["minWorkers"] == 1, "acknowledged before it was so"
    assert {**after, "light 1.0": None} == {**before, "light 1.0": None}
    here.change("POST", "/models", url="other.mar", model_name="named", initial_workers=0)
    before = here.described()
    here.dies_of("PUT", "/models/named", min_worker=1)
    here.start()
    assert here.described() == before
    here.change("DELETE", "/models/light/1.0")
    here.restarted("snapshot-named=kill@4")
    here.change("POST", "/models", url="light.mar")
    here.change("PUT", "/models/light/1.0/set-default")
    here.dies_of("DELETE", "/models/light/2.0")  # on the disk, though nobody was told
    here.start()
    assert {"light": "1.0", "named": "1.0"}.items() <= here.described().items()
    assert "light 2.0" not in here.described()
    here.change("DELETE", "/models/named")
    here.restarted()
    assert list(here.described()) == ["light", "light 1.0"]
    assert [path.name for path in here.snapshots.iterdir() if path.name.startswith(".")] == []
    here.server.stop()
    assert max(path.name for path in here.snapshots.iterdir()).endswith("-shutdown.cfg")


def test_a_snapshot_of_torchserve_restores_but_for_the_archive_that_is_gone(place: Callable[..., Place]) -> None:
    here = place()
    here.snapshots.mkdir(parents=True)
    text = TORCHSERVE.read_text().replace("/home/model-server/config.properties", str(here.server.config_file))
    (here.snapshots / "20261120185700268-shutdown.cfg").write_text(text)
    (here.snapshots / "20261120185700269-snapshot.cfg").write_text(text[: len(text) // 2])
    here.start()
    described = here.described()
    assert (described["light"], described["renamed"]) == ("2.0", "1.0")
    numbers = ("minWorkers", "maxWorkers", "batchSize", "maxBatchDelay", "modelUrl", "loadedAtStartup")
    assert [described["light 2.0"][key] for key in numbers] == [2, 2, 4, 50, "light-2.mar", False]
    assert [described["light 1.0"][key] for key in numbers] == [2, 3, 1, 100, "light.mar", False]
    gone = here.ask("GET", "/models/yamled")
    assert gone.status_code == 404
    reason = "Model not found at: yamled.mar"
    assert f"Version 1.0 was not restored: {reason}" in gone.json()["message"]
    assert here.ask("GET", "/status").json()["notRestored"] == [{"model": "yamled", "version": "1.0", "reason": reason}]
    assert "20261120185700269-snapshot.cfg" in here.server.log, "the torn one is named"
    wait_until(lambda: here.ask("GET", "/health/started").status_code == 200, 30, "everything loaded or refused")
    said = here.server.run("snapshot", "diff", "20261120185700268-shutdown.cfg", "running")
    assert said.stdout == "model yamled version 1.0 is not there any more.\n"


def test_of_a_watched_folder_what_was_said_about_its_models_comes_back_and_what_is_gone_stays_gone(
    place: Callable[..., Place], archive: Callable[..., Path]
) -> None:
    here = place(model_control_mode="watch")
    gone = archive(here.store, "gone", "plain.py")
    archive(here.store, "away", "plain.py")
    for path in here.store.iterdir():  # as if they had been there for long
        os.utime(path, (1e9, 1e9))
    here.start()
    wait_until(lambda: here.ask("GET", "/health/ready").status_code == 200, 30, "readiness")
    here.change("DELETE", "/models/away")
    here.change("PUT", "/models/light/1.0/set-default")
    here.change("PUT", "/models/light/2.0", min_worker=0, synchronous="true")
    here.change("POST", "/models", url="other.mar", model_name="named", initial_workers=0)
    before = here.described()
    assert before["light"] == "1.0"
    assert before["light 2.0"]["minWorkers"] == 0
    assert {key for key in before if " " not in key} == {"light", "other", "named", "gone"}
    here.kill()
    gone.unlink()
    here.start()
    assert here.described() == {key: value for key, value in before.items() if not key.startswith("gone")}

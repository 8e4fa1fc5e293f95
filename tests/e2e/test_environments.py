"""Models that bring requirements, on a real server: each runs with its own packages, and who installs keeps nobody waiting."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ringserve.server.testing import ServerProcess, wait_until

HANDLER = """
import json, sys
import iniconfig, ringtoy

def handle(data, context):
    said = {"toy": ringtoy.VERSION, "base": hasattr(iniconfig, "IniConfig"), "python": sys.executable}
    return [json.dumps(said)] * len(data or [])
"""


class Installing:
    """A server, the packages its models require, and an index that never answers."""

    def __init__(self, folder: Path, archive: Callable[..., Path], make_wheel: Callable[..., Path]) -> None:
        self.folder = folder
        self.cache = folder / "cache"
        self.store = folder / "store"
        self.store.mkdir()
        self._archive = archive
        for version in ("1.0", "2.0"):
            make_wheel(folder / "wheels", "ringtoy", version, f"VERSION = {version!r}\n")
        make_wheel(folder / "wheels", "iniconfig", "0.0.1", "# not what the server has\n")
        self.index = socket.create_server(("127.0.0.1", 0))
        self.index.settimeout(30)
        self.server = self._server("first", install_py_dep_per_model="true")

    def _server(self, name: str, **config: object) -> ServerProcess:
        config = {"default_workers_per_model": 1, "cache_dir": self.cache, **config}
        env = {"PIP_RETRIES": "0"}
        return ServerProcess(self.store, models=(), config=config, env=env, folder=self.folder / name)

    def start_another(self) -> None:
        """In place of the first, with its cache; it installs for those who ask."""
        self.server = self._server("second").start()

    def add(self, name: str, *requirements: str, config: str = "") -> None:
        """An archive that requires packages from the folder of wheels."""
        self.add_with(name, "--no-index", f"--find-links {self.folder / 'wheels'}", *requirements, config=config)

    def add_with(self, name: str, *lines: str, config: str = "") -> None:
        file = self.folder / name / "requirements.txt"
        file.parent.mkdir()
        file.write_text("\n".join(lines))
        self._archive(self.store, name, f"{name}.py:handle", source=HANDLER, requirements_file=file, config=config)

    def add_hanging(self, name: str) -> None:
        index = f"--index-url http://127.0.0.1:{self.index.getsockname()[1]}/simple"
        self.add_with(name, index, "no-such-package", config="useVenv: true\n")

    def register(self, name: str) -> httpx.Response:
        query = {"url": f"{name}.mar", "initial_workers": "1"}
        return httpx.post(f"{self.server.management_url}/models", params=query, timeout=60, trust_env=False)

    def predict(self, name: str) -> Any:
        return httpx.get(f"{self.server.inference_url}/predictions/{name}", timeout=60, trust_env=False).json()

    def installers(self) -> list[int]:
        """Processes of pip's and ours that work on an environment of this cache."""
        words = (str(self.cache), "ringserve.server.repository.environment_build")
        found = []
        for pid in self.server.processes():
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile: zombies count as that
                with_words = [word for word in psutil.Process(pid).cmdline() if word.startswith(words)]
                found += [pid] if with_words else []
        return found


@pytest.fixture(scope="module")
def installing(
    tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path], make_wheel: Callable[..., Path]
) -> Iterator[Installing]:
    made = Installing(tmp_path_factory.mktemp("environments"), archive, make_wheel)
    made.server.start()
    yield made
    made.server.stop()
    made.index.close()
    assert made.server.remains() == []


def test_models_with_conflicting_requirements_run_beside_each_other(installing: Installing) -> None:
    installing.add("one", "ringtoy==1.0", "iniconfig==0.0.1")
    installing.add("two", "ringtoy==2.0")
    for name in ("one", "two"):
        assert installing.register(name).status_code == 200, installing.server.log
    one, two = installing.predict("one"), installing.predict("two")
    assert (one["toy"], one["base"]) == ("1.0", False), "its own version comes before the server's"
    assert (two["toy"], two["base"]) == ("2.0", True), "what it does not require, the server has"
    for each in (one, two):
        assert Path(each["python"]).is_relative_to(installing.cache)
    running = {psutil.Process(pid).cmdline()[0] for pid in installing.server.workers()}
    assert running == {one["python"], two["python"]}
    assert "pip-one Successfully installed iniconfig-0.0.1 ringtoy-1.0" in installing.server.log


def test_the_same_requirements_are_installed_once(installing: Installing) -> None:
    installing.add("three", "ringtoy==1.0", "# the same", "iniconfig==0.0.1")
    assert installing.register("three").status_code == 200
    assert installing.predict("three") == installing.predict("one")
    assert "three: requirements.txt is installed in" in installing.server.log


def test_a_broken_requirement_refuses_its_model_alone_and_keeps_nobody_waiting(
    installing: Installing, archive: Callable[..., Path]
) -> None:
    installing.add_hanging("broken")
    archive(installing.store, "plain", "plain.py:handle")
    answers: list[httpx.Response] = []
    waiting = threading.Thread(target=lambda: answers.append(installing.register("broken")))
    waiting.start()
    pip, _ = installing.index.accept()
    with pip:
        assert installing.register("plain").status_code == 200
        assert answers == [], "it still installs"
    waiting.join(60)
    (refused,) = answers
    assert (refused.status_code, refused.json()["type"]) == (400, "ModelException")
    message = refused.json()["message"]
    assert message.startswith("Custom pip package installation failed for model broken. ")
    assert "No matching distribution found for no-such-package" in message
    listed = httpx.get(f"{installing.server.management_url}/models", trust_env=False).json()["models"]
    assert [each["modelName"] for each in listed] == ["one", "plain", "three", "two"]


def test_a_stop_ends_what_is_being_installed_and_the_next_server_uses_what_was(installing: Installing) -> None:
    installing.add_hanging("endless")
    statuses: list[int] = []
    waiting = threading.Thread(target=lambda: statuses.append(installing.register("endless").status_code))
    waiting.start()
    pip, _ = installing.index.accept()
    with pip:
        assert installing.installers() != []
        assert installing.server.stop() == 0
        waiting.join(60)
    assert statuses == [503]
    assert installing.installers() == []
    assert installing.server.remains() == []
    assert len([each for each in installing.cache.glob("envs/*") if each.is_dir()]) == 2, "the two that were made"

    installing.start_another()
    installing.add("asks", "ringtoy==1.0", "iniconfig==0.0.1", config="useVenv: true\n")
    installing.add("silent", "ringtoy==1.0")
    assert installing.register("asks").status_code == 200, installing.server.log
    assert installing.predict("asks")["toy"] == "1.0"
    assert "asks: requirements.txt is installed in" in installing.server.log
    refused = installing.register("silent")
    assert refused.status_code == 500
    assert "No module named 'ringtoy'" in refused.json()["message"]
    assert "silent: requirements.txt is not installed" in installing.server.log


def test_an_installation_does_not_outlive_a_server_that_is_killed(installing: Installing) -> None:
    installing.add_hanging("orphan")

    def register() -> None:
        with pytest.raises(httpx.TransportError):
            installing.register("orphan")

    waiting = threading.Thread(target=register)
    waiting.start()
    pip, _ = installing.index.accept()
    with pip:
        psutil.Process(installing.server.pid).kill()
        installing.server.wait(20)
        wait_until(lambda: installing.installers() == [], 20, "no installer")
    waiting.join(60)
    wait_until(lambda: installing.server.processes() == [], 60, "no process")
    (left,) = [each for each in installing.server.tmp_dir.iterdir() if each.is_dir()]
    installing.start_another()
    assert not left.exists()

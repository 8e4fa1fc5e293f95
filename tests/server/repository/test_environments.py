"""Environments for requirements: really installed, shared, and nothing left of one that could not be made."""

import asyncio
import fcntl
import logging
import os
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ringserve.protocol.errors import ModelError, ShuttingDown
from ringserve.server.repository.environment_build import MARKER
from ringserve.server.repository.environments import Environments, default_cache_dir
from ringserve.server.repository.manifest import Manifest
from ringserve.server.repository.model_config import ModelConfig
from ringserve.server.repository.store import UnpackedModel

pytestmark = pytest.mark.process
PATIENCE_S = 60.0


class Folder:
    """A folder with a cache, packages to install, and models that require them."""

    def __init__(self, path: Path, make_wheel: Callable[..., Path]) -> None:
        self.path = path
        self.cache = path / "cache"
        self.fallback = path / "fallback"
        self.wheels = path / "wheels"
        for version in ("1.0", "2.0"):
            make_wheel(self.wheels, "ringtoy", version, f"VERSION = {version!r}\n")
        # The base has another version of it.
        make_wheel(self.wheels, "iniconfig", "0.0.1", "VERSION = 'the model own'\n")

    def environments(self, **options: Any) -> Environments:
        options = {"every_model": True, "install_s_max": PATIENCE_S, **options}
        return Environments(self.cache, self.fallback, **options)

    def model(self, name: str, *requirements: str, use_venv: bool = False) -> UnpackedModel:
        model_dir = self.path / "models" / name
        model_dir.mkdir(parents=True)
        lines = ["--no-index", f"--find-links {self.wheels}", *requirements]
        (model_dir / "requirements.txt").write_text("\n".join(lines))
        manifest = Manifest(name, requirements_file="requirements.txt")
        return UnpackedModel(manifest, ModelConfig(use_venv=use_venv), model_dir, temporary=True)

    def kept(self) -> list[Path]:
        """The environments, without their locks."""
        return sorted(each for each in self.path.glob("*/envs/*") if each.is_dir())

    def processes(self) -> list[int]:
        """Those that have to do with an environment here."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self.path) in word for word in process.info["cmdline"] or ()):
                found.append(process.pid)
        return found


@pytest.fixture
def folder(tmp_path: Path, make_wheel: Callable[..., Path]) -> Folder:
    return Folder(tmp_path, make_wheel)


@pytest.fixture
def silent_index() -> Iterator[socket.socket]:
    """Accepts connections, by the kernel, and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, PATIENCE_S))


def slow_model(folder: Folder, index: socket.socket) -> UnpackedModel:
    """It asks the index for its package, and waits."""
    url = f"http://127.0.0.1:{index.getsockname()[1]}/simple"
    model = folder.model("slow", f"--index-url {url}", "no-such-package")
    lines = model.model_dir / "requirements.txt"
    lines.write_text(lines.read_text().replace("--no-index\n", ""))
    return model


async def asked(index: socket.socket) -> None:
    """Until pip has connected to it."""
    index.setblocking(False)
    connection, _ = await asyncio.get_running_loop().sock_accept(index)
    connection.detach()  # open, for as long as the test runs


def said_by(python: str, script: str) -> str:
    done = subprocess.run([python, "-P", "-c", script], capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    return done.stdout.strip()


def test_models_without_requirements_run_in_the_server_s_own(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    bare = UnpackedModel(Manifest("bare"), ModelConfig(use_venv=True), folder.path, temporary=False)
    assert run(folder.environments().python_for(bare, "bare")) == sys.executable
    unwanted = folder.model("unwanted", "ringtoy")
    assert run(folder.environments(every_model=False).python_for(unwanted, "unwanted")) == sys.executable
    assert "unwanted: requirements.txt is not installed" in caplog.text
    assert not folder.cache.exists()


def test_what_is_required_comes_before_what_the_server_has_and_is_shared(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    environments = folder.environments(every_model=False)

    async def all_three() -> list[str]:
        first, second = (
            folder.model(name, "ringtoy==1.0", "iniconfig==0.0.1", use_venv=True) for name in ("one", "two")
        )
        together = await asyncio.gather(
            environments.python_for(first, "one"),
            environments.python_for(second, "two"),
        )
        third = folder.model("three", "ringtoy==1.0   # comment", "", "iniconfig==0.0.1", use_venv=True)
        return [*together, await environments.python_for(third, "three")]

    pythons = run(all_three())
    assert len(set(pythons)) == 1
    assert len(folder.kept()) == 1
    assert stat.S_IMODE(folder.kept()[0].parent.stat().st_mode) == 0o700
    assert caplog.text.count(": installing requirements.txt into ") == 1
    assert caplog.text.count(": waits for what another model with the same requirements installs") == 1
    assert "three: requirements.txt is installed in" in caplog.text
    script = (
        "import iniconfig, ringtoy, sys, orjson, ringserve.server.worker; print(ringtoy.VERSION, iniconfig.VERSION)"
    )
    assert said_by(pythons[0], script) == "1.0 the model own"
    assert said_by(sys.executable, "import iniconfig; print(hasattr(iniconfig, 'VERSION'))") == "False"


def test_one_that_cannot_be_installed_leaves_nothing_and_names_the_model(folder: Folder) -> None:
    environments = folder.environments()
    with pytest.raises(ModelError) as raised:
        run(environments.python_for(folder.model("broken", "no-such-package"), "broken"))
    assert raised.value.message.startswith("Custom pip package installation failed for model broken. ")
    assert "No matching distribution found for no-such-package" in raised.value.message
    assert (raised.value.http_status, raised.value.type) == (400, "ModelException")
    assert folder.kept() == []


def test_an_installation_that_takes_too_long_is_killed_with_all_it_started(
    folder: Folder, silent_index: socket.socket
) -> None:
    model = slow_model(folder, silent_index)
    with pytest.raises(ModelError, match=r"for model slow\. It took longer than 1\.5 s \(model_install_timeout\)"):
        run(folder.environments(install_s_max=1.5).python_for(model, "slow"))
    assert folder.kept() == []
    assert folder.processes() == []


def test_a_server_that_stops_ends_its_installations_and_begins_none(
    folder: Folder, silent_index: socket.socket
) -> None:
    model = slow_model(folder, silent_index)
    environments = folder.environments()

    async def stopped() -> None:
        waiting = asyncio.ensure_future(environments.python_for(model, "slow"))
        await asked(silent_index)
        await environments.close()
        with pytest.raises(ShuttingDown):
            await waiting
        with pytest.raises(ShuttingDown):
            await environments.python_for(model, "slow")

    run(stopped())
    assert folder.kept() == []
    assert folder.processes() == []


def test_two_servers_do_not_make_the_same_one_at_once_and_one_left_half_made_is_made_again(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    model = folder.model("one", "ringtoy==2.0")
    late = folder.environments(install_s_max=0.3)

    async def refused_and_made() -> str:
        with pytest.raises(ModelError, match="longer than"):
            await late.python_for(model, "one")
        (path,) = folder.cache.glob("envs/*.lock")
        half_made = path.with_suffix("")
        (half_made / "lib").mkdir(parents=True)
        lock = os.open(path, os.O_RDWR)
        fcntl.flock(lock, fcntl.LOCK_EX)
        caplog.clear()
        waiting = asyncio.ensure_future(folder.environments().python_for(model, "one"))
        end = time.monotonic() + PATIENCE_S
        while "one: waits for another server" not in caplog.text and time.monotonic() < end:
            await asyncio.sleep(0.01)
        (half_made / "junk").touch()
        os.close(lock)
        python = str(await waiting)
        assert not (half_made / "junk").exists()
        assert (half_made / MARKER).exists()
        return python

    assert said_by(run(refused_and_made()), "import ringtoy; print(ringtoy.VERSION)") == "2.0"


@pytest.mark.parametrize("case", ["no folder", "everybody's"])
def test_where_nothing_can_be_kept_safely_the_server_s_own_folder_serves(
    folder: Folder, caplog: pytest.LogCaptureFixture, case: str
) -> None:
    if case == "no folder":
        folder.cache.write_text("a file")
    else:
        (folder.cache / "envs").mkdir(parents=True)
        (folder.cache / "envs").chmod(0o777)
    with pytest.raises(ModelError):
        run(folder.environments(install_s_max=0.3).python_for(folder.model("one", "ringtoy"), "one"))
    assert f"Python environments cannot be kept in {folder.cache}/envs: " in caplog.text
    assert [each.suffix for each in (folder.fallback / "envs").iterdir()] == [".lock"]


def test_the_cache_is_the_user_s_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert default_cache_dir() == Path("/somewhere/ringserve")
    monkeypatch.setenv("XDG_CACHE_HOME", "not/absolute")
    monkeypatch.setenv("HOME", "/home/of")
    assert default_cache_dir() == Path("/home/of/.cache/ringserve")

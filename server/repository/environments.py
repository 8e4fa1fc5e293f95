"""The Python environments of models that bring requirements: made once, kept by what is required, shared by all who require it.

An environment lies in `{cache}/envs/{digest}` and is complete once its marker says so. Whoever makes one holds its lock file
(flock), also over several servers; the process that installs holds it too, so a server that was killed leaves no environment in
which two install at once. One that is not complete is removed and made anew.
"""

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import site
import stat
import sys
import time
from collections.abc import AsyncIterator, Iterator
from importlib.machinery import PathFinder
from pathlib import Path

from ringserve.protocol.errors import ModelError, ShuttingDown
from ringserve.server.control import BuildEnvironment
from ringserve.server.process import Child
from ringserve.server.repository.environment_build import (
    EXIT_NO_ENVIRONMENT,
    EXIT_NOT_INSTALLED,
    MARKER,
    python_of,
)
from ringserve.server.repository.requirements import digest
from ringserve.server.repository.store import UnpackedModel

logger = logging.getLogger("ringserve.environments")

NOT_MADE = "Virtual environment creation failed"
NOT_INSTALLED = "Custom pip package installation failed"
LOCK_POLL_S = 0.1
CAUSE_LINES = 12
# Settings of pip's that would install somewhere else.
_PIP_ELSEWHERE = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PIP_DRY_RUN")


class _BuildFailed(Exception):
    """`what` failed, and the cause."""

    def __init__(self, what: str, cause: str) -> None:
        super().__init__(cause)
        self.what = what


def default_cache_dir() -> Path | None:
    """The user's; None for a user without a home."""
    stated = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(stated):
        return Path(stated) / "ringserve"
    with contextlib.suppress(RuntimeError):
        return Path.home() / ".cache" / "ringserve"
    return None


class Environments:
    """`cache_dir` is where environments are kept, by default the user's; where nothing can be written there, `fallback_dir`, which
    goes with the server. `every_model`: also for models that do not ask for it (`useVenv`)."""

    def __init__(self, cache_dir: Path | None, fallback_dir: Path, *, every_model: bool, install_s_max: float) -> None:
        kept = cache_dir or default_cache_dir()
        self._roots = [each / "envs" for each in (kept, fallback_dir) if each is not None]
        self._every_model = every_model
        self._install_s_max = install_s_max
        self._builds: dict[str, asyncio.Task[str]] = {}
        self._closed = False

    async def python_for(self, unpacked: UnpackedModel, model: str) -> str:
        """The interpreter for the workers of a model, with what it requires installed. Raises `ModelError`, `InvalidModel`, or
        `ShuttingDown` when the server stops meanwhile."""
        required = unpacked.manifest.requirements_file
        if required is None:
            return sys.executable
        if not (self._every_model or unpacked.config.use_venv):
            logger.warning(
                "%s: %s is not installed: neither install_py_dep_per_model nor the model's useVenv is true",
                model,
                required,
            )
            return sys.executable
        key = await asyncio.to_thread(_key_of, unpacked.model_dir, required)
        known = await asyncio.to_thread(self._known, key)
        if known is not None:
            logger.info("%s: %s is installed in %s already", model, required, known)
            return str(python_of(known))
        if self._closed:
            raise ShuttingDown("The server is shutting down.")
        build = self._builds.get(key)
        if build is None:
            build = self._builds[key] = asyncio.ensure_future(self._made(key, unpacked, model))
            build.add_done_callback(lambda ended: self._ended(key, ended))
        else:
            logger.info("%s: waits for what another model with the same requirements installs", model)
        try:
            return await asyncio.shield(build)
        except _BuildFailed as error:
            raise ModelError(f"{error.what} for model {model}. {error}") from None
        except asyncio.CancelledError:
            if build.cancelled():
                raise ShuttingDown("The server is shutting down.") from None
            raise

    async def close(self) -> None:
        """End the installations that run; whoever waits for one is told that the server stops."""
        self._closed = True
        builds = list(self._builds.values())
        for build in builds:
            build.cancel()
        await asyncio.gather(*builds, return_exceptions=True)

    def _ended(self, key: str, build: "asyncio.Task[str]") -> None:
        del self._builds[key]
        if not build.cancelled():
            build.exception()  # who asked for it may have gone

    def _known(self, key: str) -> Path | None:
        return next((root / key for root in self._roots if _is_ours(root) and _is_complete(root / key)), None)

    async def _made(self, key: str, unpacked: UnpackedModel, model: str) -> str:
        began_s = time.monotonic()
        late = f"It took longer than {self._install_s_max:g} s (model_install_timeout)."
        try:
            async with asyncio.timeout(self._install_s_max), self._locked(key, model) as (folder, lock):
                if await asyncio.to_thread(_is_complete, folder):
                    logger.info("%s: another server has made %s meanwhile", model, folder)
                else:
                    logger.info("%s: installing %s into %s", model, unpacked.manifest.requirements_file, folder)
                    await self._build(folder, lock, unpacked, model)
                    logger.info("%s: installed after %.1f s", model, time.monotonic() - began_s)
                return str(python_of(folder))
        except TimeoutError:
            raise _BuildFailed(NOT_INSTALLED, late) from None

    @contextlib.asynccontextmanager
    async def _locked(self, key: str, model: str) -> AsyncIterator[tuple[Path, int]]:
        """The folder to build in, and the descriptor of its lock."""
        root, lock = await asyncio.to_thread(self._open_lock, key)
        try:
            waited = False
            while not _try_lock(lock):
                if not waited:
                    logger.info("%s: waits for another server that installs the same requirements", model)
                waited = True
                await asyncio.sleep(LOCK_POLL_S)
            yield root / key, lock
        finally:
            os.close(lock)

    def _open_lock(self, key: str) -> tuple[Path, int]:
        causes = []
        for root in self._roots:
            try:
                root.mkdir(mode=0o700, parents=True, exist_ok=True)
                if not _is_ours(root):
                    raise PermissionError(None, "somebody else may write into it")
                return root, os.open(root / f"{key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                causes.append(f"{root}: {error.strerror or error}")
                logger.warning("Python environments cannot be kept in %s", causes[-1])
        raise _BuildFailed(NOT_MADE, f"There is no place for it: {'; '.join(causes)}.")

    async def _build(self, folder: Path, lock: int, unpacked: UnpackedModel, model: str) -> None:
        """Raises `_BuildFailed`; whatever ends it early, no process of it is left, and nothing of the folder."""
        requirements = unpacked.manifest.requirements_file
        assert requirements is not None
        wanted = BuildEnvironment(
            folder=str(folder),
            site_dirs=tuple(_site_dirs()),
            requirements=str(unpacked.model_dir / requirements),
            model_dir=str(unpacked.model_dir),
            own_pip=PathFinder.find_spec("pip") is None,  # not by setuptools' finder, which has things to say then
        )
        child = Child(f"pip-{model}", BuildEnvironment)
        try:
            child.start(
                "ringserve.server.repository.environment_build", _environment(), lambda message, fds: None, lambda: None
            )
        except OSError as error:
            raise _BuildFailed(NOT_MADE, f"No process could be started: {error}.") from None
        try:
            child.send(wanted, [lock])
            await child.exited.wait()
        finally:
            child.kill()
            await child.exited.wait()
            if not _is_complete(folder):
                await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
        if child.exit_code == 0:
            return
        what = NOT_MADE if child.exit_code == EXIT_NO_ENVIRONMENT else NOT_INSTALLED
        said = "" if child.exit_code in (EXIT_NO_ENVIRONMENT, EXIT_NOT_INSTALLED) else f"It {child.how_it_ended()}."
        raise _BuildFailed(what, "\n".join([said, *list(child.tail)[-CAUSE_LINES:]]).strip())


def _key_of(model_dir: Path, requirements_file: str) -> str:
    return digest(model_dir, requirements_file, "\0".join(_identity()))


def _identity() -> Iterator[str]:
    """The environment that is built upon: this Python, this server, and the packages there are."""
    yield sys.version
    yield sys.base_prefix
    yield sys.prefix
    yield str(Path(__file__).resolve().parent)
    for each in _site_dirs():
        yield each
        with contextlib.suppress(OSError):
            yield from sorted(
                name for name in os.listdir(each) if name.endswith((".dist-info", ".egg-info", ".egg-link"))
            )


def _site_dirs() -> list[str]:
    found = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    return [each for each in dict.fromkeys(found) if os.path.isdir(each)]


def _is_complete(folder: Path) -> bool:
    """An interpreter that has left since makes it useless."""
    try:
        return (folder / MARKER).is_file() and os.access(python_of(folder), os.X_OK)
    except OSError:
        return False


def _is_ours(root: Path) -> bool:
    """Whether nobody else could have put an interpreter there: workers will run it."""
    try:
        seen = root.stat()
    except OSError:
        return False
    return seen.st_uid in (os.geteuid(), 0) and not seen.st_mode & stat.S_IWOTH


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise _BuildFailed(NOT_MADE, f"Its lock file cannot be locked: {error.strerror}.") from None
    return True


def _environment() -> dict[str, str]:
    """The server's own, in which pip asks nothing and installs where it is told."""
    kept = {name: value for name, value in os.environ.items() if name not in _PIP_ELSEWHERE}
    return {**kept, "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1"}

"""The supervisor: opens the sockets, starts everything, waits to be told to stop, stops everything. No model code here.

Start: sockets, the private one answers; models are unpacked and begin to load; front ends, management listener, "Model server started.".
Stop:  management closes, what is downloaded or installed ends, the repository is not looked at any more, front ends answer what they
       have, workers finish and end, files go. A second signal does not wait.
"""

import asyncio
import contextlib
import logging
import os
import re
import resource
import shutil
import signal
import socket
import tempfile
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import replace
from importlib.metadata import version as package_version
from pathlib import Path

import psutil

from ringserve.server.admin_socket import SOCKET_NAME, listen_privately
from ringserve.server.app import BACKLOG, Listener, close_idle, serve_also, start_serving, stop_accepting
from ringserve.server.autoscale import PERIOD_S, Autoscaler
from ringserve.server.budget import front_ends_default
from ringserve.server.control import ServeHttp
from ringserve.server.device_watch import open_devices
from ringserve.server.dropin import DropIn
from ringserve.server.fleet import Fleet, FleetHooks
from ringserve.server.management import Management
from ringserve.server.recycling import LOOK_S, Recycler
from ringserve.server.repository.environments import Environments
from ringserve.server.repository.incoming import DownloadLimits
from ringserve.server.repository.remote import RemoteSources, sweep_parts
from ringserve.server.repository.store import ModelStore
from ringserve.server.repository.watch import Watcher
from ringserve.server.routes.management import ManagementRoutes
from ringserve.server.settings import Address, ConfigError, Settings
from ringserve.shm.link import END_FDS
from ringserve.shm.segment import sweep_names

logger = logging.getLogger("ringserve.supervisor")

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
DRAIN_S = 30.0
# More than that nobody needs, and programs that close whatever they might have inherited would be at it for minutes.
FILES_MAX = 1 << 20
FILES_MIN = 4096
_WORK_DIR = re.compile(r"ringserve-(\d+)-\w+")


def listen(name: str, address: Address) -> socket.socket:
    """A bound, listening socket. Raises `ConfigError`."""
    try:
        family, _, _, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except OSError as error:
        raise ConfigError(f"{name}_address: {address} cannot be bound: {error.strerror or error}") from None
    sock.setblocking(False)
    return sock


def make_work_dir(parent: Path) -> Path:
    """A private folder for unpacked archives, named by our pid; those of servers that died are removed."""
    for entry in parent.iterdir():
        match = _WORK_DIR.fullmatch(entry.name)
        if match and not psutil.pid_exists(int(match[1])):
            shutil.rmtree(entry, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"ringserve-{os.getpid()}-", dir=parent))


def raise_file_limit() -> int:
    """As many open files as the system allows, for us and our children: every connection is one, every pair of front end and
    worker some. Returns how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    limit = FILES_MAX if limit == resource.RLIM_INFINITY else limit
    if limit < FILES_MIN:
        logger.warning(
            "a process may open %d files only (RLIMIT_NOFILE): a front end needs one for every connection and %d for every worker",
            limit,
            END_FDS + 1,
        )
    return limit


async def every(period_s: float, look: Callable[[], Awaitable[None]], complaint: str) -> None:
    """Time and again, until cancelled."""
    while True:
        await asyncio.sleep(period_s)
        try:
            await look()
        except Exception:  # whatever it was, the next look may do better
            logger.exception("%s", complaint)


class Supervisor:
    """`run` starts and stops; `on_started` is called once when the listeners are up."""

    def __init__(self, settings: Settings, on_started: Callable[[], None]) -> None:
        self._settings = settings
        self._on_started = on_started
        limits = DownloadLimits(settings.max_model_download_bytes, settings.model_download_timeout_s)
        self._remote = RemoteSources(settings.allowed_urls, limits)
        self._stop_asked = asyncio.Event()
        self._hurry = asyncio.Event()
        self._dropin: DropIn | None = None
        self._routes: ManagementRoutes | None = None
        self._upkeep: list[asyncio.Task[None]] = []  # what adapts the workers to what there is to do

    async def run(self) -> None:
        """Until stopped by SIGTERM or SIGINT. Raises `ConfigError`, or `RingServeError` when a front end cannot start."""
        self._obey_signals()
        raise_file_limit()
        devices = await open_devices(os.environ, self._settings.number_of_gpu)
        settings = replace(self._settings, number_of_gpu=len(devices.placer.devices))
        assert settings.model_store is not None
        inference = listen("inference", settings.inference_address)
        shared = settings.management_address == settings.inference_address
        management_socket = None if shared else listen("management", settings.management_address)
        sweep_names()
        await asyncio.to_thread(sweep_parts, settings.model_store)
        work_dir = make_work_dir(Path(tempfile.gettempdir()))
        environments = Environments(
            settings.cache_dir,
            work_dir / "cache",
            every_model=settings.install_py_dep_per_model,
            install_s_max=settings.model_install_timeout_s,
        )
        store = ModelStore(settings.model_store, work_dir, self._remote)
        management = Management(settings, store, devices, environments)
        versions = management.versions
        front_ends = settings.frontends or front_ends_default()
        first = ServeHttp(
            settings.max_request_size,
            package_version("ringserve"),
            settings.header_timeout_s,
            settings.body_timeout_s,
            settings.write_timeout_s,
            front_ends,
            admin_socket=str(work_dir / SOCKET_NAME) if shared else "",
        )
        hooks = FleetHooks(versions.routes, versions.ready_workers, versions.kill_stuck)
        fleet = Fleet(inference, first, settings.max_response_size, hooks)
        try:
            routes = self._routes = ManagementRoutes(management, settings.max_request_size)
            server = await start_serving(routes.app, listen_privately(work_dir / SOCKET_NAME, BACKLOG))
            await self._until_stopped(self._load(settings, management, store))
            versions.fleet = fleet
            logger.info("front ends: %d", front_ends)
            await fleet.start(front_ends)
            autoscaler = Autoscaler(versions.serving, fleet.loads, versions.look_at_devices)
            recycler = Recycler(versions.serving)
            self._upkeep = [
                asyncio.ensure_future(every(PERIOD_S, autoscaler.look, "the workers could not be scaled")),
                asyncio.ensure_future(every(LOOK_S, recycler.look, "workers could not be looked at")),
            ]
            listening: list[Listener] = [server]
            if management_socket is not None:
                listening.append(await serve_also(server, routes.app, management_socket))
            logger.info("Inference API bind to: %s", settings.inference_address)
            logger.info("Management API bind to: %s", settings.management_address)
            self._on_started()
            await self._stop_asked.wait()
            logger.info("stopping: answering what is in flight")
            for each in listening:
                stop_accepting(each)
            close_idle(server)
        finally:
            await self._stop(fleet, management)
            devices.close()
            inference.close()
            if management_socket is not None:
                management_socket.close()
            await asyncio.get_running_loop().shutdown_default_executor()  # nobody may still unpack into it
            shutil.rmtree(work_dir, ignore_errors=True)
            for number in STOP_SIGNALS:  # one more must not spoil the exit code, nor leave the PID file
                signal.signal(number, signal.SIG_IGN)

    def _obey_signals(self) -> None:
        """Not by the loop's own handlers: they end with it, and for a moment the system's would be back, which kill."""
        loop = asyncio.get_running_loop()

        def asked(number: int, frame: object) -> None:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(self._stop_requested)

        for number in STOP_SIGNALS:
            signal.signal(number, asked)

    async def _load(self, settings: Settings, management: Management, store: ModelStore) -> None:
        """What is there from the start: the models that were named, and what lies in the folder when that is looked at."""
        mode, root = settings.model_control_mode, settings.model_store
        assert root is not None
        watched = mode in ("watch", "poll")
        everything = [entry.lower() for entry in settings.models] == ["all"]
        if mode != "explicit" and not (watched and everything):
            await management.load_at_startup(settings.models)
        if watched:
            poll_s = float(settings.repository_poll_s)
            watcher = Watcher(root, poll_s=poll_s if mode == "poll" else None, fallback_poll_s=poll_s)
            ready = management.versions.why_not_ready
            management.repository = self._dropin = DropIn(
                root, management, watcher, came_by_url=store.came_by_url, why_not_ready=ready
            )
            await self._dropin.start()

    async def _until_stopped(self, work: Coroutine[None, None, None]) -> None:
        """Archives and packages may take their time: who wants us to end does not wait for them."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self._stop_asked.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _stop(self, fleet: Fleet, management: Management) -> None:
        orderly = asyncio.ensure_future(self._stop_in_order(fleet, management))
        hurry = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({orderly, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not orderly.done():
            logger.warning("told to stop twice: killing what still runs")
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):  # another's end may have been its own
                    child.kill()
        await orderly

    async def _stop_in_order(self, fleet: Fleet, management: Management) -> None:
        for task in self._upkeep:
            task.cancel()
        await management.environments.close()
        if self._dropin is not None:
            await self._dropin.stop()
        await fleet.stop(DRAIN_S)
        await management.versions.stop()
        if self._routes is not None:
            await self._routes.finished()

    def _stop_requested(self) -> None:
        if self._stop_asked.is_set():
            self._hurry.set()
        self._stop_asked.set()
        self._remote.stop()

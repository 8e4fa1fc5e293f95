"""The supervisor: opens the sockets, starts everything, waits to be told to stop, stops everything. No model code here.

Start: sockets, the private one answers; models are unpacked and begin to load; front ends, the other listeners, "Model server
       started.".
Drain: nothing changes any more and probes are told, while everything is still accepted and answered for the drain delay. When
       a new instance has taken over (handover.py), it accepts instead.
Stop:  the listeners close, what is downloaded or installed ends, the repository is not looked at any more, front ends answer what
       they have, workers finish and end, files go. A second signal does not wait.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import psutil

from ringserve.protocol.errors import ShuttingDown
from ringserve.server.acceptor import turn_away
from ringserve.server.admin_socket import SOCKET_NAME, listen_privately
from ringserve.server.app import (
    ACCEPT_LAST_S,
    BACKLOG,
    LAST_WORDS_S,
    UNUSED_S_MIN,
    PlainHttp,
    cut_off,
    log_access,
    prepare,
    serve_also,
    start_serving,
    stop_accepting,
    wind_down,
)
from ringserve.server.autoscale import PERIOD_S, Autoscaler
from ringserve.server.control import Keys
from ringserve.server.dropin import DropIn
from ringserve.server.handover import (
    CALLED_OFF,
    STOP_S_MAX,
    HandOver,
    HandOverHooks,
    HandOverListener,
    Predecessor,
    Start,
)
from ringserve.server.host import raise_file_limit
from ringserve.server.logs.access import access_log_path, open_access_log
from ringserve.server.parts import Parts, put_together
from ringserve.server.pid_file import keep_pid_file, take_pid_file
from ringserve.server.recycling import LOOK_S, Recycler
from ringserve.server.repository.incoming import DownloadLimits
from ringserve.server.repository.remote import RemoteSources
from ringserve.server.repository.watch import Watcher
from ringserve.server.routes.guard import GuardedHttp
from ringserve.server.routes.metrics import metrics_app
from ringserve.server.security.key_file import remove_key_file
from ringserve.server.security.keyring import LOOK_S as KEY_LOOK_S
from ringserve.server.security.keyring import take_keys
from ringserve.server.security.tls import CERTIFICATE_LOOK_S
from ringserve.server.settings import Settings, grpc_addresses
from ringserve.server.snapshots.restoring import Restoring, named_models, stays_away, wanted_state
from ringserve.server.stop_request import StopRequest, ignore_stop_signals

logger = logging.getLogger("ringserve.supervisor")

# How much longer the connections of management may be busy, after the time in which all would have become idle.
STALE_S = 1.0
# For how long gRPC waits for models that are loading.
GRPC_WAITS_S_MAX = 5.0
GRPC_LOOK_S = 0.05


async def every(period_s: float, look: Callable[[], Awaitable[None]], complaint: str) -> None:
    """Time and again, until cancelled."""
    while True:
        await asyncio.sleep(period_s)
        try:
            await look()
        except Exception:  # whatever it was, the next look may do better
            logger.exception("%s", complaint)


class Supervisor:
    """`run` starts and stops; `on_started` is called once when the listeners are up. `words` is the command line, for whoever starts
    this server anew; a `predecessor` is the running instance that this one takes over from."""

    def __init__(
        self,
        settings: Settings,
        on_started: Callable[[], None],
        words: Sequence[str] = (),
        predecessor: Predecessor | None = None,
    ) -> None:
        self._settings = settings
        self._on_started = on_started
        self._words = tuple(words)
        self._predecessor = predecessor
        self._handed_over = False
        self._others_accept = predecessor is not None  # another instance has our sockets, and they are not to be spoilt
        limits = DownloadLimits(settings.max_model_download_bytes, settings.model_download_timeout_s)
        self._remote = RemoteSources(settings.allowed_urls, limits)
        self._handover: HandOverListener | None = None
        self._stopping = StopRequest(self._withdraw, self._remote.stop)

    async def run(self) -> None:
        """Until told to stop. Raises `ConfigError`, or `RingServeError` when a front end cannot start."""
        self._stopping.obey_signals()
        environment_keys = take_keys(os.environ)
        raise_file_limit()
        parts = await put_together(
            self._settings, self._remote, environment_keys, self._predecessor, self._stopping.ask
        )
        try:
            await self._start(parts)
            if self._predecessor is not None and self._stopping.asked.is_set():
                raise ShuttingDown(CALLED_OFF)
            if self._predecessor is not None:
                take_pid_file()
                await self._predecessor.taken_over()
                parts.sockets.own_files()
                self._others_accept = False
            self._on_started()
            await self._stopping.asked.wait()
            await self._drain(parts)
            if parts.keyring is not None and not self._handed_over:
                remove_key_file(Path.cwd())
        finally:
            await self._stop(parts)
            parts.devices.close()
            parts.sockets.close()
            if parts.access is not None:
                await asyncio.to_thread(parts.access.close)
            await asyncio.get_running_loop().shutdown_default_executor()  # nobody may still unpack into it
            shutil.rmtree(parts.work_dir, ignore_errors=True)
            ignore_stop_signals()

    # ---- start

    async def _start(self, parts: Parts) -> None:
        """In TorchServe's order: models begin to load, then the listeners."""
        parts.access = open_access_log(access_log_path(parts.settings), parts.settings.log_format)
        if parts.access is not None:
            log_access(parts.routes.app, parts.access)
        private = listen_privately(parts.work_dir / SOCKET_NAME, BACKLOG)
        parts.server = await start_serving(parts.routes.app, private)
        parts.apps.append(parts.routes.app)
        parts.listeners.append(parts.server)
        parts.telemetry.start()
        await self._stopping.unless(self._load(parts))
        if self._predecessor is not None:
            versions, not_loaded = parts.management.versions, parts.management.not_loaded
            await self._stopping.unless(self._predecessor.equalled(versions, not_loaded))
        await self._hand_out_keys(parts)
        await self._start_front_ends(parts)
        self._start_upkeep(parts)
        await self._start_listeners(parts)
        if self._predecessor is not None:  # which is going to close its own
            await self._stopping.unless(self._start_grpc(parts))
        else:
            parts.upkeep.append(asyncio.ensure_future(self._start_grpc(parts)))
        if not self._stopping.asked.is_set():  # what was not loaded to its end would be forgotten
            await parts.management.recorder.start()
        self._offer_hand_over(parts)

    async def _load(self, parts: Parts) -> None:
        """What is there from the start: the models that were named, and what lies in the folder when that is looked at."""
        settings, management = parts.settings, parts.management
        mode, root = settings.model_control_mode, settings.model_store
        assert root is not None
        watched = mode in ("watch", "poll")
        everything = [entry.lower() for entry in settings.models] == ["all"]
        named = () if mode == "explicit" or (watched and everything) else named_models(settings)
        state = await asyncio.to_thread(wanted_state, settings)
        restoring = Restoring(management, state, watched=watched, named=bool(named))
        await restoring.before()
        management.away = stays_away(settings, state)
        await management.load_at_startup(named)
        if watched:
            poll_s = float(settings.repository_poll_s)
            watcher = Watcher(root, poll_s=poll_s if mode == "poll" else None, fallback_poll_s=poll_s)
            ready = management.versions.why_not_ready
            came, away, name = parts.store.came_by_url, state.unregistered, settings.model_config_name
            management.repository = parts.dropin = DropIn(
                root, management, watcher, came_by_url=came, why_not_ready=ready, away=away, config_name=name
            )
            await parts.dropin.start()
        named_now = settings.load_models_by_name
        names = named_now if "*" in named_now else (*named_now, *sorted(restoring.by_name - set(named_now)))
        if names:
            management.versions.loading_at_start(True)
            parts.upkeep.append(asyncio.ensure_future(self._load_by_name(parts, names)))
        await restoring.after()

    @staticmethod
    async def _load_by_name(parts: Parts, names: tuple[str, ...]) -> None:
        """While everything else starts; what cannot be loaded is in the log, and in the index."""
        try:
            parts.management.not_loaded += await parts.control.models.load_all(names)
        finally:
            parts.management.versions.loading_at_start(False)

    async def _hand_out_keys(self, parts: Parts) -> None:
        """Now and whenever they change, to whoever asks clients for them."""
        keyring, shared = parts.keyring, "management" not in parts.sockets
        if keyring is None:
            return

        async def let_in(keys: Keys) -> None:
            parts.routes.guard.set(keys)
            # The management key opens what changes the server over the Open Inference Protocol as well.
            told = keys if shared else Keys(keys.epoch, keys.inference, keys.management)
            await parts.fleet.let_in(told)

        await keyring.hand_out(let_in)
        look = every(KEY_LOOK_S, keyring.look, "the key files could not be looked at")
        parts.upkeep.append(asyncio.ensure_future(look))

    async def _start_front_ends(self, parts: Parts) -> None:
        parts.management.versions.fleet = parts.fleet
        if parts.certificate is not None:
            use = partial(parts.fleet.use_certificate, http=parts.settings.inference_address.tls)
            parts.certificate.on_renewed = use
            use(parts.certificate.pem)
        await parts.fleet.start()

    async def _start_grpc(self, parts: Parts) -> None:
        """When the others have begun, and the models: those who wait for HTTP and for the first prediction do not wait for this."""
        end = time.monotonic() + (GRPC_WAITS_S_MAX if self._predecessor is None else 0.0)
        while not parts.management.versions.started and time.monotonic() < end:
            await asyncio.sleep(GRPC_LOOK_S)
        await parts.fleet.start_grpc()

    def _start_upkeep(self, parts: Parts) -> None:
        """What happens time and again."""
        versions = parts.management.versions
        autoscaler = Autoscaler(versions.serving, parts.fleet.loads, versions.look_at_devices)
        recycler = Recycler(versions.serving)
        for period_s, look, complaint in (
            (PERIOD_S, autoscaler.look, "the workers could not be scaled"),
            (LOOK_S, recycler.look, "workers could not be looked at"),
        ):
            parts.upkeep.append(asyncio.ensure_future(every(period_s, look, complaint)))
        if parts.certificate is not None:
            renewal = every(CERTIFICATE_LOOK_S, parts.certificate.look, "the certificate could not be looked at")
            parts.upkeep.append(asyncio.ensure_future(renewal))

    async def _start_listeners(self, parts: Parts) -> None:
        """Those of this process; the front ends have the inference address."""
        assert parts.server is not None
        if "management" in parts.sockets:
            sock, protocol = parts.sockets["management"], parts.protocol(parts.settings.management_address, GuardedHttp)
            parts.listeners.append(await serve_also(parts.server, parts.routes.app, sock, protocol))
        if "metrics" in parts.sockets and parts.metrics is not None:
            app = metrics_app(parts.metrics.scrape, lambda: parts.management.versions.health)
            app.ctx.responses = parts.metrics.responses
            if parts.access is not None:
                log_access(app, parts.access)
            await prepare(app)
            parts.apps.append(app)
            sock, protocol = parts.sockets["metrics"], parts.protocol(parts.settings.metrics_address, PlainHttp)
            parts.listeners.append(await serve_also(parts.server, app, sock, protocol))
        logger.info("Inference API bind to: %s", parts.settings.inference_address)
        logger.info("Management API bind to: %s", parts.settings.management_address)
        if parts.metrics is not None:
            logger.info("Metrics API bind to: %s", parts.settings.metrics_address)
        for name, address in grpc_addresses(parts.settings).items():
            port = parts.sockets[name].getsockname()[1]
            what = name.removeprefix("grpc_").capitalize()
            logger.info("%s gRPC bind to: %s", what, replace(address, port=port))

    def _offer_hand_over(self, parts: Parts) -> None:
        stop_s_max = float(parts.settings.drain_delay_s + parts.settings.drain_timeout_s + STOP_S_MAX)
        start = Start(self._words, str(Path.cwd()), str(parts.settings.log_location), stop_s_max)
        hooks = HandOverHooks(
            partial(self._prepare_hand_over, parts), partial(self._keep_serving, parts), self._taken_over
        )
        self._handover = HandOverListener(parts.work_dir, start, hooks)
        if self._stopping.asked.is_set():
            self._handover.withdraw()

    # ---- stop

    def _withdraw(self) -> None:
        """Who is told to stop does not hand over any more."""
        if self._handover is not None:
            self._handover.withdraw()

    async def _prepare_hand_over(self, parts: Parts) -> tuple[HandOver, list[int]]:
        """What is acknowledged from here on would be lost, so nothing is."""
        parts.routes.close("A new instance is taking over: nothing can be changed for a moment.")
        await parts.routes.finished()
        await parts.management.settled()
        settings, versions = parts.settings, parts.management.versions
        addresses = {
            "inference": settings.inference_address,
            "management": settings.management_address,
            "metrics": settings.metrics_address,
            **grpc_addresses(settings),
        }
        served = tuple((each.name, each.version) for each in versions.registry if versions.ready_count(each))
        keys = {} if parts.keyring is None else parts.keyring.handed_over
        sockets = tuple((name, str(addresses[name])) for name in parts.sockets)
        handed = HandOver(sockets, served, parts.management.recorder.text(), keys)
        return handed, [sock.fileno() for sock in parts.sockets.values()]

    def _keep_serving(self, parts: Parts) -> None:
        """The one that was to take over does not."""
        parts.routes.open()
        keep_pid_file()

    def _taken_over(self) -> None:
        self._handed_over = self._others_accept = True
        self._stopping.ask()

    async def _drain(self, parts: Parts) -> None:
        """Told to stop: whoever asks learns it, and all that comes is still answered."""
        assert parts.server is not None
        if self._handed_over:
            parts.sockets.hand_over()
            parts.management.recorder.retire()
            parts.routes.close("A new instance has taken over: connect again.")
            logger.info("a new instance has taken over: answering what is in flight")
            return
        parts.routes.close("The server is shutting down.")
        parts.management.versions.drain()
        parts.answer_last()
        if parts.settings.drain_delay_s:
            logger.info("told to stop: accepting for %d s more", parts.settings.drain_delay_s)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.hurry.wait(), parts.settings.drain_delay_s)
        logger.info("stopping: answering what is in flight")

    async def _stop(self, parts: Parts) -> None:
        orderly = asyncio.ensure_future(self._stop_in_order(parts))
        hurry = asyncio.ensure_future(self._stopping.hurry.wait())
        await asyncio.wait({orderly, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        if not orderly.done():
            logger.warning("told to stop twice: killing what still runs")
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):  # another's end may have been its own
                    child.kill()
        await orderly

    async def _stop_in_order(self, parts: Parts) -> None:
        """Also after a start that failed half-way."""
        for task in parts.upkeep:
            task.cancel()
        if not self._others_accept:
            parts.sockets.remove_files()
        drain_s = float(parts.settings.drain_timeout_s)
        # Whose connections a successor accepts has no hurry: clients that come back to one in all that time find it.
        unused_s = drain_s if self._handed_over else UNUSED_S_MIN
        closing = asyncio.ensure_future(self._close_listeners(parts, unused_s))
        await parts.management.environments.close()
        if parts.dropin is not None:
            await parts.dropin.stop()
        await parts.management.recorder.stop()
        await parts.fleet.stop(drain_s, unused_s, handed_over=self._others_accept)
        await parts.management.versions.stop()
        await parts.telemetry.close()
        await parts.control.tracing.close()
        await parts.routes.finished()
        await closing
        if parts.server is not None:
            await cut_off(parts.server, 0.0 if self._stopping.hurry.is_set() else LAST_WORDS_S)
        if self._handover is not None:
            self._handover.close()

    async def _close_listeners(self, parts: Parts, unused_s: float) -> None:
        """Those of this process, and their connections as they are not used any more: each gets an answer that says so, or is idle."""
        if parts.server is None:
            return
        if not self._others_accept:
            for name, sock in parts.sockets.items():
                if name in ("management", "metrics"):
                    turn_away(sock)
            await asyncio.sleep(ACCEPT_LAST_S)
        for each in parts.listeners:
            stop_accepting(each)
        parts.answer_last()
        end = time.monotonic() + unused_s + STALE_S
        while wind_down(parts.server, unused_s) and time.monotonic() < end and not self._stopping.hurry.is_set():
            await asyncio.sleep(0.02)

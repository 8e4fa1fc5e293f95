"""What a server consists of, put together before anything is served: sockets, keys, folders, and who knows whom."""

import asyncio
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version as package_version
from pathlib import Path
from typing import TYPE_CHECKING

from ringserve.server.admin_socket import SOCKET_NAME
from ringserve.server.app import App, HttpServer, Listener, MakeProtocol, answer_last
from ringserve.server.banner import banner
from ringserve.server.budget import front_ends_default
from ringserve.server.control import ServeHttp
from ringserve.server.control_plane.extensions import server_extensions
from ringserve.server.control_plane.plane import ControlPlane, open_control_plane
from ringserve.server.device_watch import DeviceWatch, open_devices
from ringserve.server.dropin import DropIn
from ringserve.server.fleet import Fleet
from ringserve.server.front_end_slot import FleetHooks, Send
from ringserve.server.handover import Predecessor
from ringserve.server.host import make_work_dir
from ringserve.server.listening import ListeningSockets
from ringserve.server.logs.access import AccessLog, access_log_path
from ringserve.server.management import Management
from ringserve.server.metrics.observing import Metrics, open_metrics
from ringserve.server.metrics.telemetry import Telemetry
from ringserve.server.repository.environments import Environments
from ringserve.server.repository.remote import RemoteSources, sweep_parts
from ringserve.server.repository.store import ModelStore
from ringserve.server.routes.management import ManagementRoutes
from ringserve.server.routes.metrics import add_metrics
from ringserve.server.routes.open_inference_control import ControlRoutes
from ringserve.server.rpc.starting import grpc_front_ends
from ringserve.server.security.cors import cors_headers
from ringserve.server.security.keyring import Keyring, open_keyring
from ringserve.server.security.tls import open_certificate
from ringserve.server.security.tokens import Plane
from ringserve.server.settings import Address, Settings, grpc_addresses
from ringserve.server.shared_regions import SharedRegions
from ringserve.server.wire import add_fixed_headers
from ringserve.shm.segment import sweep_names

if TYPE_CHECKING:
    from ringserve.server.security.certificate import CertificateKeeper

logger = logging.getLogger("ringserve.supervisor")


@dataclass(slots=True)
class Parts:
    """Up to `telemetry` this is there before anything runs; the rest is what runs of it in this process."""

    settings: Settings
    work_dir: Path
    sockets: ListeningSockets  # "inference", and the others that have addresses of their own
    devices: DeviceWatch
    store: ModelStore
    management: Management
    fleet: Fleet
    routes: ManagementRoutes
    keyring: Keyring | None  # None: without tokens
    certificate: "CertificateKeeper | None"  # None: no address begins with https://
    metrics: Metrics | None  # None: nothing is measured
    telemetry: Telemetry
    control: ControlPlane
    server: HttpServer | None = None  # the private listener, whose connections are those of all listeners here
    listeners: list[Listener] = field(default_factory=list)
    apps: list[App] = field(default_factory=list)  # whose listeners these are
    access: AccessLog | None = None  # None: requests are not logged
    dropin: DropIn | None = None
    upkeep: list[asyncio.Task[None]] = field(default_factory=list)  # what adapts the server to what there is to do

    def protocol(self, address: Address, make: MakeProtocol) -> MakeProtocol:
        """What a listener of this process at that address makes of its connections."""
        if self.certificate is None or not address.tls:
            return make
        return self.certificate.tls.protocol(make)

    def answer_last(self) -> None:
        """Every answer of this process is the last one of its connection from now on."""
        if self.server is not None:
            for app in self.apps:
                answer_last(self.server, app)


async def put_together(
    settings: Settings,
    remote: RemoteSources,
    environment_keys: Mapping[Plane, str],
    predecessor: Predecessor | None,
    on_withdrawn: Callable[[], None],
) -> Parts:
    """No process is started yet. `on_withdrawn` is called when the predecessor is told to stop. Raises `ConfigError`, or
    `NotHandedOver`."""
    devices = await open_devices(os.environ, settings.number_of_gpu)
    settings = replace(settings, number_of_gpu=len(devices.placer.devices))
    logger.info("%s", banner(settings, len(devices.placer.devices)))
    cors = cors_headers(settings)
    certificate = await open_certificate(settings)
    sockets = await _open_sockets(settings, predecessor, on_withdrawn)
    before = None if predecessor is None else predecessor.handed
    if before is not None and before.desired:
        origins = {**settings.origins, "model_snapshot": "the running instance"}
        settings = replace(settings, model_snapshot=before.desired, origins=origins)
    assert settings.model_store is not None
    handed_keys = None if before is None else before.keys
    keyring = await asyncio.to_thread(open_keyring, settings, environment_keys, Path.cwd(), handed_keys)
    sweep_names()
    await asyncio.to_thread(sweep_parts, settings.model_store)
    work_dir = make_work_dir(settings.temp_dir or Path(tempfile.gettempdir()))
    environments = Environments(
        settings.cache_dir,
        work_dir / "cache",
        every_model=settings.install_py_dep_per_model,
        install_s_max=settings.model_install_timeout_s,
    )
    store = ModelStore(settings.model_store, work_dir, remote, config_name=settings.model_config_name)
    management = Management(settings, store, devices, environments)
    versions = management.versions
    front_ends = (settings.frontends or front_ends_default()) + (settings.grpc_frontends if settings.enable_grpc else 0)
    first = _first_message(settings, front_ends, work_dir, tokens=keyring is not None, cors=cors)
    regions = SharedRegions(allowed=_may_share_memory(settings))
    metrics = open_metrics(settings, front_ends)
    counters = None if metrics is None else metrics.pages
    control = open_control_plane(management, work_dir / "uploads", counters)

    hooks = _fleet_hooks(management, regions, control)
    grpc = grpc_front_ends(settings, sockets, first)
    fleet = Fleet(sockets["inference"], first, settings.max_response_size, hooks, counters, grpc)
    regions.tell_all = control.tracing.tell_all = fleet.tell_all
    add_fixed_headers(cors)
    routes = ManagementRoutes(management, settings.max_request_size, keyring)
    if metrics is not None:
        metrics.observe(management, fleet)
        routes.app.ctx.responses = metrics.responses
        if "metrics" in first.passed_on or "metrics" not in sockets:
            add_metrics(routes.app, metrics.scrape)
    ControlRoutes(routes.app, control, routes.to_its_end, regions)
    telemetry = Telemetry(settings, devices, None if metrics is None else metrics.scrape)
    versions.handler_metrics = telemetry.custom
    return Parts(
        settings,
        work_dir,
        sockets,
        devices,
        store,
        management,
        fleet,
        routes,
        keyring,
        certificate,
        metrics,
        telemetry,
        control,
    )


def _fleet_hooks(management: Management, regions: SharedRegions, control: ControlPlane) -> FleetHooks:
    versions = management.versions

    def equip(send: Send, epoch: int) -> None:
        regions.equip(send, epoch)
        control.tracing.equip(send, epoch)

    return FleetHooks(
        versions.routes,
        versions.ready_workers,
        versions.kill_stuck,
        versions.sequences.heard,
        versions.sequences.front_end_gone,
        equip,
        control.tracing.heard,
    )


async def _open_sockets(
    settings: Settings, predecessor: Predecessor | None, on_withdrawn: Callable[[], None]
) -> ListeningSockets:
    wanted = {"inference": settings.inference_address}
    if settings.management_address != settings.inference_address:
        wanted["management"] = settings.management_address
    if settings.enable_metrics_api and settings.metrics_address not in wanted.values():
        wanted["metrics"] = settings.metrics_address
    wanted |= grpc_addresses(settings)
    inherited = {} if predecessor is None else await predecessor.ask(wanted, on_withdrawn)
    return ListeningSockets(wanted, inherited)


def _first_message(
    settings: Settings, front_ends: int, work_dir: Path, *, tokens: bool, cors: dict[str, str]
) -> ServeHttp:
    """To every front end."""
    passed_on = tuple(each for each in ("management", "metrics") if _is_passed_on(each, settings))
    return ServeHttp(
        settings.max_request_size,
        package_version("ringserve"),
        settings.header_timeout_s,
        settings.body_timeout_s,
        settings.write_timeout_s,
        front_ends,
        admin_socket=str(work_dir / SOCKET_NAME),
        passed_on=passed_on,
        tokens=tokens,
        cors=cors,
        access_log=access_log_path(settings),
        log_format=settings.log_format,
        server_id=settings.server_id,
        extensions=server_extensions(settings, shared_memory=_may_share_memory(settings)),
        strict_readiness=settings.strict_readiness,
    )


def _may_share_memory(settings: Settings) -> bool:
    """Whether clients may have the server read and write memory of theirs: who reaches it from elsewhere has none to share."""
    if settings.allow_client_shm == "auto":
        addresses = [settings.inference_address, *grpc_addresses(settings).values()]
        return all(address.loopback for address in addresses)
    return settings.allow_client_shm == "true"


def _is_passed_on(listener: str, settings: Settings) -> bool:
    """Whether a listener of this process has the address of the front ends. As with TorchServe, one address for both APIs has the
    metrics too, but for those who need no token."""
    both = settings.management_address == settings.inference_address
    if listener == "management":
        return both
    metrics = settings.metrics_address == settings.inference_address
    return settings.enable_metrics_api and (metrics or (both and settings.disable_token_authorization))

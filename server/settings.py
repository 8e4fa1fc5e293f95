"""What the server runs with: every setting, its default, and what no single one shows. `server/configuration/` makes them."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


class ConfigError(Exception):
    """The server cannot start with this configuration; the message names the key, what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener is found: a host and a port, or the `path` of a socket file (scheme `unix`)."""

    host: str
    port: int
    scheme: str = "http"
    path: str = ""

    def __str__(self) -> str:
        if self.path:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def tls(self) -> bool:
        return self.scheme == "https"

    @property
    def loopback(self) -> bool:
        """Whether it can be reached from this machine only."""
        if self.path or self.host in ("localhost", "::1"):
            return True
        return re.fullmatch(r"127(\.[0-9]+){1,3}", self.host) is not None


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting, frozen. `models` holds `all`, `name=location` or `location` entries."""

    model_store: Path | None = None
    models: tuple[str, ...] = ()
    inference_address: Address = Address("127.0.0.1", 8080)
    management_address: Address = Address("127.0.0.1", 8081)
    metrics_address: Address = Address("127.0.0.1", 8082)
    enable_grpc: bool = True
    grpc_inference_address: str = "127.0.0.1"
    grpc_inference_port: int = 7070  # 0: any that is free
    grpc_management_address: str = "127.0.0.1"
    grpc_management_port: int = 7071
    grpc_inference_max_connection_age_ms: int = 0  # 0: connections may grow as old as they like
    grpc_inference_max_connection_age_grace_ms: int = 0
    grpc_management_max_connection_age_ms: int = 0
    grpc_management_max_connection_age_grace_ms: int = 0
    enable_grpc_ssl: bool = False
    grpc_frontends: int = 1
    grpc_keepalive_time_ms: int = 7_200_000
    grpc_keepalive_timeout_ms: int = 20_000
    grpc_keepalive_permit_without_calls: bool = False
    grpc_http2_max_pings_without_data: int = 2
    grpc_http2_min_recv_ping_interval_without_data_ms: int = 300_000
    grpc_http2_max_ping_strikes: int = 2
    grpc_compression: str = "none"  # of answers
    grpc_reflection: bool = True
    frontends: int = 0  # 0: as many as the processors allow
    job_queue_size: int = 100
    default_workers_per_model: int = 0
    default_response_timeout_s: int = 120
    default_startup_timeout_s: int = 120
    default_queue_timeout_s: int = 0  # 0: a request waits for a worker as long as it takes
    header_timeout_s: int = 60
    body_timeout_s: int = 120
    write_timeout_s: int = 60
    unregister_model_timeout_s: int = 120
    max_request_size: int = 6_553_500
    max_response_size: int = 6_553_500
    decode_input_request: bool = True
    limit_max_image_pixels: bool = True
    enable_model_api: bool = False
    disable_token_authorization: bool = False
    token_expiration_min: float = 60.0
    inference_key_file: Path | None = None  # a key of the user's own; None: one is made at start
    management_key_file: Path | None = None
    api_key_file: Path | None = None
    insecure: bool = False  # serve others than this machine without tokens
    certificate_file: Path | None = None
    private_key_file: Path | None = None
    keystore: Path | None = None
    keystore_pass: str = field(default="changeit", repr=False)
    keystore_type: str = "PKCS12"
    cors_allowed_origin: str = ""
    cors_allowed_methods: str = ""
    cors_allowed_headers: str = ""
    drain_delay_s: int = 0  # how long a server that was told to stop still accepts
    drain_timeout_s: int = 30
    snapshots: bool = True
    snapshots_kept: int = 100
    model_snapshot: str = ""  # desired state as JSON (contract section 8)
    config_file: Path | None = None
    log_location: Path = Path("logs")
    metrics_location: Path = Path("logs")
    log_format: str = "text"
    access_log: bool = True
    enable_metrics_api: bool = True
    metrics_mode: str = "log"
    metrics_config: Path | None = None
    model_metrics_auto_detect: bool = False
    disable_system_metrics: bool = False
    metric_time_interval_s: int = 60
    blacklist_env_vars: str = ""
    default_service_handler: str = ""
    # Headers by which requests say which sequence they belong to, and that it begins or ends with them.
    ts_header_key_sequence_id: str = "ts_request_sequence_id"
    ts_header_key_sequence_start: str = "ts_request_sequence_start"
    ts_header_key_sequence_end: str = "ts_request_sequence_end"
    service_envelope: str = ""
    model_control_mode: str = "auto"
    repository_poll_s: int = 5
    allowed_urls: tuple[str, ...] = ()  # regular expressions; none: no remote sources
    use_env_allowed_urls: bool = False
    max_model_download_bytes: int = 16 << 30
    model_download_timeout_s: int = 600
    install_py_dep_per_model: bool = False
    model_install_timeout_s: int = 900
    cache_dir: Path | None = None  # None: the user's
    number_of_gpu: int | None = None  # None: as many as there are
    initial_worker_port: int = 9000  # the first worker's id
    # `models` of config.properties (contract section 7.6)
    model_defaults: Mapping[str, Any] = field(default_factory=dict)
    enable_envvars_config: bool = False
    # The Open Inference Protocol.
    server_id: str = "ringserve"  # what server metadata calls it
    strict_readiness: bool = True  # not ready while any version that is wanted is not
    load_models_by_name: tuple[str, ...] = ()  # --load-model: at the start, where only what is asked for is loaded
    allow_load_files: bool = False  # a load may bring the model's files, which are code
    allow_client_shm: str = "auto"  # auto: where only this machine reaches the server
    model_config_name: str = ""  # configs/<this>.pbtxt of a model is read instead of its config.pbtxt
    disable_auto_complete_config: bool = False  # models add nothing to their configuration
    nv_metrics: bool = True  # Triton's names at a scrape, beside the others
    trace_level: str = "OFF"  # OFF or TIMESTAMPS
    trace_rate: int = 1000  # one of so many requests
    trace_count: int = -1  # so many traces, -1: without end
    trace_log_frequency: int = 0  # traces in a file, 0: all in one, at the end
    trace_file: str = ""
    temp_dir: Path | None = None  # for unpacked archives and sockets; None: the system's
    # Beside the settings: who said each field, TorchServe's keys that have none, and what is logged about it all.
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    carried: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


INT_MAX = 2**31 - 1
GRPC_SCHEME = "grpc"
GRPC_COMPRESSIONS = ("none", "low", "medium", "high")
# `auto` is `watch` when everything in the folder is to be served (`--models all`, or no model store named at all), else `none`.
MODEL_CONTROL_MODES = ("auto", "none", "watch", "poll", "explicit")
# TorchServe's: what stands for a port that an address leaves out, by the listener's own port and the scheme.
PORTS_SAID_BY_NOBODY = {(8080, "http"): 80, (8080, "https"): 443, (8081, "https"): 8444, (8082, "https"): 8445}
SOCKET_PATH_BYTES_MAX = 107  # of 108 one ends it
DEFAULT_REPOSITORY = Path("model_repository")
FRONT_ENDS_MAX = 256
GRPC_FRONT_ENDS_MAX = 64
# What a model version may ask for.
WORKERS_MAX = 1024
BATCH_SIZE_MAX = 65_536


def parse_address(text: str, where: str, default_port: int) -> Address:
    """`http://host[:port]`, `https://host[:port]` or `unix:/path`. Raises `ConfigError`."""
    expected = f"{where}: expected http://host:port, https://host:port or unix:/path, got {text!r}"
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        if not path.startswith("/") or path.endswith("/") or "\0" in path:
            raise ConfigError(expected)
        length = len(os.fsencode(path))
        if length > SOCKET_PATH_BYTES_MAX:
            limit = f"a path of at most {SOCKET_PATH_BYTES_MAX} bytes, which is what a socket's address holds"
            raise ConfigError(f"{where}: expected {limit}, got {length}: {path}")
        return Address("", 0, "unix", path)
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ConfigError(expected) from None
    plain_or_tls = parts.scheme in ("http", "https") and parts.path in ("", "/")
    if not plain_or_tls or not parts.hostname or parts.username is not None or parts.query or parts.fragment:
        raise ConfigError(expected)
    if port is None:
        port = PORTS_SAID_BY_NOBODY.get((default_port, parts.scheme), default_port)
    return Address(parts.hostname, port, parts.scheme)


def grpc_addresses(settings: Settings) -> dict[str, Address]:
    """By the names of their listeners; none where gRPC is off."""
    if not settings.enable_grpc:
        return {}
    inference, management = settings.grpc_inference_address, settings.grpc_management_address
    return {
        "grpc_inference": Address(inference, settings.grpc_inference_port, GRPC_SCHEME),
        "grpc_management": Address(management, settings.grpc_management_port, GRPC_SCHEME),
    }


def with_repository(settings: Settings, repository: Path | None = None, default: Path = DEFAULT_REPOSITORY) -> Settings:
    """With a folder of models and a mode of looking at it that leaves nothing open: a `repository` is served whole and watched,
    and so is the one of the `default` name when no model store was named at all."""
    if repository is None and settings.model_store is None and default.is_dir():
        repository = default
    if repository is not None:
        settings = replace(settings, model_store=repository)
    mode = settings.model_control_mode
    if mode == "auto":
        everything = [entry.lower() for entry in settings.models] == ["all"]
        mode = "watch" if everything or repository is not None else "none"
    return replace(settings, model_control_mode=mode, enable_model_api=settings.enable_model_api or mode == "explicit")


def check(settings: Settings) -> None:
    """What no single key shows. Raises `ConfigError`."""
    if settings.model_store is None:
        raise ConfigError("Missing mandatory parameter --model-store")
    if not settings.model_store.is_dir():
        raise ConfigError(f"--model-store directory not found: {settings.model_store}")
    addresses = {"inference": settings.inference_address, "management": settings.management_address}
    for name, address in {**addresses, **grpc_addresses(settings)}.items():
        if settings.disable_token_authorization and not (address.loopback or settings.insecure):
            raise ConfigError(
                f"{name}_address: expected a loopback address, got {address}: without tokens, whoever reaches the address may use"
                " it. Leave token authorization on, or say --insecure (insecure=true) to serve it all the same."
            )
    if settings.frontends > FRONT_ENDS_MAX:
        raise ConfigError(f"frontends: expected at most {FRONT_ENDS_MAX}, got {settings.frontends}")
    inference, management = settings.grpc_inference_port, settings.grpc_management_port
    if settings.enable_grpc and inference == management != 0:
        raise ConfigError(
            f"grpc_management_port: expected another port than grpc_inference_port, got {management} for both"
        )
    if settings.trace_level == "TIMESTAMPS" and not settings.trace_file:
        raise ConfigError("trace_file: expected the name of a file, where trace_level is TIMESTAMPS, got none")
    if "/" in settings.model_config_name or settings.model_config_name in (".", ".."):
        raise ConfigError(
            f"model_config_name: expected a file's name without .pbtxt, got {settings.model_config_name!r:.100}"
        )
    if settings.load_models_by_name and settings.model_control_mode != "explicit":
        raise ConfigError(
            f"--load-model: expected model_control_mode=explicit, got {settings.model_control_mode}, where the folder or --models says"
            " what is loaded"
        )
    if "*" in settings.load_models_by_name and len(settings.load_models_by_name) > 1:
        raise ConfigError(f"--load-model: expected * alone, got it with {len(settings.load_models_by_name) - 1} more")

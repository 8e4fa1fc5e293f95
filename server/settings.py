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
    temp_dir: Path | None = None  # for unpacked archives and sockets; None: the system's
    # Beside the settings: who said each field, TorchServe's keys that have none, and what is logged about it all.
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    carried: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


INT_MAX = 2**31 - 1
# `auto` is `watch` when everything in the folder is to be served (`--models all`, or no model store named at all), else `none`.
MODEL_CONTROL_MODES = ("auto", "none", "watch", "poll", "explicit")
# TorchServe's: what stands for a port that an address leaves out, by the listener's own port and the scheme.
PORTS_SAID_BY_NOBODY = {(8080, "http"): 80, (8080, "https"): 443, (8081, "https"): 8444, (8082, "https"): 8445}
SOCKET_PATH_BYTES_MAX = 107  # of 108 one ends it
DEFAULT_REPOSITORY = Path("model_repository")
FRONT_ENDS_MAX = 256
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
    for name, address in (("inference", settings.inference_address), ("management", settings.management_address)):
        if settings.disable_token_authorization and not (address.loopback or settings.insecure):
            raise ConfigError(
                f"{name}_address: expected a loopback address, got {address}: without tokens, whoever reaches the address may use"
                " it. Leave token authorization on, or say --insecure (insecure=true) to serve it all the same."
            )
    if settings.frontends > FRONT_ENDS_MAX:
        raise ConfigError(f"frontends: expected at most {FRONT_ENDS_MAX}, got {settings.frontends}")

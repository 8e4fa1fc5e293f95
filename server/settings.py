"""What the server was told, read once: defaults < config.properties < command line.

Keys, defaults and the file's format are TorchServe's (contract sections 7.1, 7.4, 7.5). A key that is not honoured yet is
reported by name with its line, never silently dropped.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from ringserve.server.repository.allowed_urls import AllowedUrls


class ConfigError(Exception):
    """The server cannot start with this configuration; the message names the key, what was expected and what came."""


@dataclass(frozen=True, slots=True)
class Address:
    host: str
    port: int

    def __str__(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        return self.host == "localhost" or re.fullmatch(r"127(\.[0-9]+){1,3}", self.host) is not None


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
    keystore_pass: str = "changeit"
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
    model_defaults: Mapping[str, Any] = field(
        default_factory=dict
    )  # `models` of config.properties (contract section 7.6)
    warnings: tuple[str, ...] = ()


# config.properties key -> field, for the keys whose value is the field's own type.
_HONOURED = {
    "model_store": "model_store",
    "load_models": "models",
    "inference_address": "inference_address",
    "management_address": "management_address",
    "frontends": "frontends",
    "job_queue_size": "job_queue_size",
    "default_workers_per_model": "default_workers_per_model",
    "default_response_timeout": "default_response_timeout_s",
    "default_startup_timeout": "default_startup_timeout_s",
    "default_queue_timeout": "default_queue_timeout_s",
    "header_timeout": "header_timeout_s",
    "body_timeout": "body_timeout_s",
    "write_timeout": "write_timeout_s",
    "unregister_model_timeout": "unregister_model_timeout_s",
    "max_request_size": "max_request_size",
    "max_response_size": "max_response_size",
    "decode_input_request": "decode_input_request",
    "limit_max_image_pixels": "limit_max_image_pixels",
    "enable_model_api": "enable_model_api",
    "disable_token_authorization": "disable_token_authorization",
    "model_control_mode": "model_control_mode",
    "repository_poll_s": "repository_poll_s",
    "allowed_urls": "allowed_urls",
    "use_env_allowed_urls": "use_env_allowed_urls",
    "max_model_download_bytes": "max_model_download_bytes",
    "model_download_timeout": "model_download_timeout_s",
    "install_py_dep_per_model": "install_py_dep_per_model",
    "model_install_timeout": "model_install_timeout_s",
    "cache_dir": "cache_dir",
    "number_of_gpu": "number_of_gpu",
    "initial_worker_port": "initial_worker_port",
    "models": "model_defaults",
    "metrics_address": "metrics_address",
    "token_expiration_min": "token_expiration_min",
    "inference_key_file": "inference_key_file",
    "management_key_file": "management_key_file",
    "api_key_file": "api_key_file",
    "insecure": "insecure",
    "certificate_file": "certificate_file",
    "private_key_file": "private_key_file",
    "keystore": "keystore",
    "keystore_pass": "keystore_pass",
    "keystore_type": "keystore_type",
    "cors_allowed_origin": "cors_allowed_origin",
    "cors_allowed_methods": "cors_allowed_methods",
    "cors_allowed_headers": "cors_allowed_headers",
    "drain_delay": "drain_delay_s",
    "drain_timeout": "drain_timeout_s",
    "snapshots_kept": "snapshots_kept",
    "model_snapshot": "model_snapshot",
    "log_format": "log_format",
    "access_log": "access_log",
    "enable_metrics_api": "enable_metrics_api",
    "metrics_mode": "metrics_mode",
    "metrics_config": "metrics_config",
    "model_metrics_auto_detect": "model_metrics_auto_detect",
    "disable_system_metrics": "disable_system_metrics",
    "metric_time_interval": "metric_time_interval_s",
    "blacklist_env_vars": "blacklist_env_vars",
    "default_service_handler": "default_service_handler",
}
# TorchServe's other keys: a file that works there is no mistake here, but it is told what does not apply yet.
_NOT_YET_HONOURED = """
grpc_inference_address grpc_management_address grpc_inference_port grpc_management_port
grpc_inference_max_connection_age_ms grpc_management_max_connection_age_ms
grpc_inference_max_connection_age_grace_ms grpc_management_max_connection_age_grace_ms enable_grpc_ssl
workflow_store number_of_netty_threads netty_client_threads enable_envvars_config service_envelope
prefer_direct_buffer async_logging system_metrics_cmd initial_distribution_port ipex_enable ipex_gpu_enable
cpu_launcher_enable cpu_launcher_args cpp_log_config ts_open_inference_protocol ts_header_key_sequence_id
ts_header_key_sequence_start ts_header_key_sequence_end debug model_server_home use_native_io io_ratio vmargs
plugins_path NUM_WORKERS
"""
_PATHS = {
    "model_store",
    "cache_dir",
    "inference_key_file",
    "management_key_file",
    "api_key_file",
    "certificate_file",
    "private_key_file",
    "keystore",
    "metrics_config",
}
_AT_LEAST = {
    "frontends": 0,
    "job_queue_size": 1,
    "default_workers_per_model": 0,
    "default_response_timeout": 0,
    "default_startup_timeout": 0,
    "default_queue_timeout": 0,
    "header_timeout": 1,
    "body_timeout": 1,
    "write_timeout": 1,
    "unregister_model_timeout": 0,
    "max_model_download_bytes": 1,
    "model_download_timeout": 1,
    "max_request_size": 1,
    "max_response_size": 1,
    "repository_poll_s": 1,
    "number_of_gpu": 0,
    "initial_worker_port": 0,
    "model_install_timeout": 1,
    "drain_delay": 0,
    "drain_timeout": 0,
    "snapshots_kept": 1,
    "metric_time_interval": 1,
}
# `auto` is `watch` when everything in the folder is to be served (`--models all`, or no model store named at all), else `none`.
MODEL_CONTROL_MODES = ("auto", "none", "watch", "poll", "explicit")
INT_MAX = 2**31 - 1
_AT_MOST = {"max_model_download_bytes": 2**53}  # every other one: INT_MAX
DEFAULT_REPOSITORY = Path("model_repository")
FRONT_ENDS_MAX = 256
# What a model version may ask for.
WORKERS_MAX = 1024
BATCH_SIZE_MAX = 65_536
_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_ENVIRONMENT = re.compile(r"\$\$([A-Za-z_][A-Za-z0-9_]*)\$\$")
_LINE_END = re.compile(r"\r\n|\r|\n")
_BLANKS = " \t\f"
# A key ends at the first blank, = or : that no backslash escapes; one = or : may stand among the blanks that follow.
_KEY_AND_VALUE = re.compile(r"((?:[^\\=: \t\f]|\\.)*)[ \t\f]*[=:]?[ \t\f]*(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Property:
    key: str
    value: str
    line: int


def parse_properties(text: str) -> list[Property]:
    """A Java properties file: comments, continued lines, escapes."""
    found: list[Property] = []
    pending: str | None = None  # a logical line that is not complete yet
    started = 0
    for number, raw in enumerate(_LINE_END.split(text), 1):
        line = raw.lstrip(_BLANKS)
        if pending is None:
            if not line or line[0] in "#!":
                continue
            pending, started = "", number
        pending += line
        if (len(line) - len(line.rstrip("\\"))) % 2:
            pending = pending[:-1]
        else:
            found.append(_property(pending, started))
            pending = None
    if pending:
        found.append(_property(pending, started))
    return found


def _property(text: str, line: int) -> Property:
    match = _KEY_AND_VALUE.fullmatch(text)
    assert match is not None, "the pattern takes any text"
    return Property(_unescaped(match[1]), _unescaped(match[2]), line)


def _unescaped(text: str) -> str:
    known = {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}

    def plain(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code[1:], 16)) if len(code) == 5 else known.get(code, code)

    return _ESCAPE.sub(plain, text)


def read_config_file(path: Path, environ: Mapping[str, str]) -> Settings:
    """Settings from a config.properties. Raises `ConfigError` naming the file and the line."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"--ts-config file not found: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--ts-config file {path} cannot be read: {error}") from None
    fields: dict[str, Any] = {}
    warnings: list[str] = []
    for entry in parse_properties(text):
        where = f"{path}:{entry.line}: {entry.key}"
        if entry.key not in _HONOURED:
            warnings.append(f"{where} {_why_ignored(entry.key)}")
            continue
        field = _HONOURED[entry.key]
        fields[field] = _value(field, entry.key, _expanded(entry.value, environ, where), where)
    if fields.get("use_env_allowed_urls") and "TS_ALLOWED_URLS" in environ:
        fields["allowed_urls"] = _url_patterns(environ["TS_ALLOWED_URLS"], "TS_ALLOWED_URLS")
    return replace(Settings(), **fields, warnings=tuple(warnings))


def _why_ignored(key: str) -> str:
    if key in _NOT_YET_HONOURED.split():
        return "is TorchServe's, and this version does not honour it."
    near = difflib.get_close_matches(key, [*_HONOURED, *_NOT_YET_HONOURED.split()], 1)
    return "is not a setting and is ignored." + (f" Did you mean {near[0]}?" if near else "")


def _expanded(value: str, environ: Mapping[str, str], where: str) -> str:
    def lookup(match: re.Match[str]) -> str:
        if match[1] not in environ:
            raise ConfigError(f"{where}: Invalid Environment Variable {match[1]}")
        return environ[match[1]]

    return _ENVIRONMENT.sub(lookup, value).strip()


def _value(field: str, key: str, text: str, where: str) -> Any:
    default = getattr(Settings(), field)
    if field in _PATHS:
        return Path(text)
    if field == "models":
        return _listed(text)
    if field == "allowed_urls":
        return _url_patterns(text, where)
    if field == "model_defaults":
        return _model_defaults(text, where)
    if field == "model_control_mode":
        return _choice(text, MODEL_CONTROL_MODES, where)
    if isinstance(default, str):
        return text
    if isinstance(default, float):
        return float(text)
    if isinstance(default, Address):
        return parse_address(text, where, default.port)
    if isinstance(default, bool):
        if text.lower() not in ("true", "false"):
            raise ConfigError(f"{where}: expected true or false, got {text!r}")
        return text.lower() == "true"
    largest = _AT_MOST.get(key, INT_MAX)
    if not re.fullmatch(r"[+-]?[0-9]{1,18}", text) or not _AT_LEAST[key] <= int(text) <= largest:
        raise ConfigError(f"{where}: expected a whole number from {_AT_LEAST[key]} to {largest}, got {text!r}")
    return int(text)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(entry.strip() for entry in text.split(",") if entry.strip())


def _url_patterns(text: str, where: str) -> tuple[str, ...]:
    patterns = _listed(text)
    try:
        AllowedUrls(patterns)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
    return patterns


def _choice(text: str, accepted: Sequence[str], where: str) -> str:
    if text not in accepted:
        raise ConfigError(f"{where}: expected one of {', '.join(accepted)}, got {text!r}")
    return text


def _model_defaults(text: str, where: str) -> dict[str, Any]:
    """`{"model": {"version": {"batchSize": 4, ...}}}`."""
    try:
        models = msgspec.json.decode(text, type=dict[str, dict[str, dict[str, Any]]])
    except msgspec.MsgspecError as error:
        expected = "a JSON object of models, each an object of versions, each an object of settings"
        raise ConfigError(f"{where}: expected {expected}: {error}") from None
    return models


def parse_address(text: str, where: str, default_port: int) -> Address:
    """`http://host[:port]`. Raises `ConfigError`; https and unix addresses are not served yet and say so."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ConfigError(f"{where}: expected http://host:port, got {text!r}") from None
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
        raise ConfigError(f"{where}: expected http://host:port, got {text!r}")
    if port is None:
        port = 80 if default_port == 8080 else default_port  # TorchServe: 80 for inference, its own port for management
    return Address(parts.hostname, port)


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
        if not (address.loopback or settings.disable_token_authorization):
            raise ConfigError(
                f"{name}_address: expected a loopback address, got {address}: this version has no tokens, so whoever reaches"
                " the address may use it. Say --disable-token-auth (disable_token_authorization=true) to serve it all the same."
            )
    if settings.frontends > FRONT_ENDS_MAX:
        raise ConfigError(f"frontends: expected at most {FRONT_ENDS_MAX}, got {settings.frontends}")

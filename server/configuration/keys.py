"""Every key of config.properties, once: TorchServe's (contract section 7.5) and ours. Each is honoured, always so, or ignored for a
reason; a key that is none of these is not one."""

import difflib
from dataclasses import dataclass

from ringserve.server.configuration import kinds
from ringserve.server.configuration.kinds import Reader, whole
from ringserve.server.settings import FRONT_ENDS_MAX, GRPC_COMPRESSIONS, GRPC_FRONT_ENDS_MAX, MODEL_CONTROL_MODES

TOKEN_MINUTES_MAX = 1e9


@dataclass(frozen=True, slots=True)
class Key:
    """A key that sets a field. `variable` is the environment's name for it: TS_<KEY>, and none where TorchServe has none."""

    name: str
    field: str
    read: Reader
    variable: str | None
    falls_back: bool = False  # as in TorchServe, a value that cannot be used leaves the default
    secret: bool = False
    opens: bool = False  # lets more people do more: said at every start, never taken from a snapshot


@dataclass(frozen=True, slots=True)
class Ignored:
    """Keys with which nothing happens, each with the values at which nothing would happen in TorchServe either."""

    about: str
    reason: str  # goes on after the key's name
    keys: dict[str, tuple[str, ...]]


def _key(name: str, read: Reader, field: str = "", *, variable: str | None = "", **more: bool) -> Key:
    return Key(name, field or name, read, f"TS_{name.upper()}" if variable == "" else variable, **more)


_FROM_0, _FROM_1, _PORT = whole(0), whole(1), whole(0, 65_535)

HONOURED: dict[str, Key] = {
    key.name: key
    for key in (
        _key("inference_address", kinds.address(8080)),
        _key("management_address", kinds.address(8081)),
        _key("metrics_address", kinds.address(8082)),
        _key("enable_grpc", kinds.truth),
        _key("grpc_inference_address", kinds.host),
        _key("grpc_inference_port", _PORT),
        _key("grpc_management_address", kinds.host),
        _key("grpc_management_port", _PORT),
        _key("grpc_inference_max_connection_age_ms", _FROM_0),
        _key("grpc_inference_max_connection_age_grace_ms", _FROM_0),
        _key("grpc_management_max_connection_age_ms", _FROM_0),
        _key("grpc_management_max_connection_age_grace_ms", _FROM_0),
        _key("enable_grpc_ssl", kinds.truth),
        _key("grpc_frontends", whole(1, GRPC_FRONT_ENDS_MAX)),
        _key("grpc_keepalive_time", _FROM_1, "grpc_keepalive_time_ms"),
        _key("grpc_keepalive_timeout", _FROM_1, "grpc_keepalive_timeout_ms"),
        _key("grpc_keepalive_permit_without_calls", kinds.truth),
        _key("grpc_http2_max_pings_without_data", _FROM_0),
        _key(
            "grpc_http2_min_recv_ping_interval_without_data",
            _FROM_0,
            "grpc_http2_min_recv_ping_interval_without_data_ms",
        ),
        _key("grpc_http2_max_ping_strikes", _FROM_0),
        _key("grpc_compression", kinds.choice(*GRPC_COMPRESSIONS)),
        _key("grpc_reflection", kinds.truth),
        _key("disable_token_authorization", kinds.truth, opens=True),
        _key(
            "token_expiration_min",
            kinds.number(0, TOKEN_MINUTES_MAX),
            variable="TS_TOKEN_EXPIRATION_TIME_MIN",
            falls_back=True,
        ),
        _key("inference_key_file", kinds.path),
        _key("management_key_file", kinds.path),
        _key("api_key_file", kinds.path),
        _key("insecure", kinds.truth, opens=True),
        _key("certificate_file", kinds.path),
        _key("private_key_file", kinds.path),
        _key("keystore", kinds.path),
        _key("keystore_pass", kinds.words, secret=True),
        _key("keystore_type", kinds.words),
        _key("cors_allowed_origin", kinds.header_value),
        _key("cors_allowed_methods", kinds.header_value),
        _key("cors_allowed_headers", kinds.header_value),
        _key("enable_model_api", kinds.truth, opens=True),
        _key("model_store", kinds.path),
        _key("load_models", kinds.listed, "models"),
        _key("model_snapshot", kinds.words, variable=None),
        _key("snapshots_kept", _FROM_1),
        _key("model_control_mode", kinds.choice(*MODEL_CONTROL_MODES)),
        _key("repository_poll_s", _FROM_1),
        _key("models", kinds.model_defaults, "model_defaults", variable=None),
        _key("default_service_handler", kinds.words),
        _key("service_envelope", kinds.module_name),
        _key("ts_header_key_sequence_id", kinds.header_name, variable="TS_HEADER_KEY_SEQUENCE_ID"),
        _key("ts_header_key_sequence_start", kinds.header_name, variable="TS_HEADER_KEY_SEQUENCE_START"),
        _key("ts_header_key_sequence_end", kinds.header_name, variable="TS_HEADER_KEY_SEQUENCE_END"),
        _key("default_workers_per_model", _FROM_0),
        _key("default_response_timeout", _FROM_0, "default_response_timeout_s"),
        _key("default_startup_timeout", _FROM_0, "default_startup_timeout_s"),
        _key("default_queue_timeout", _FROM_0, "default_queue_timeout_s"),
        _key("unregister_model_timeout", _FROM_0, "unregister_model_timeout_s"),
        _key("initial_worker_port", _FROM_0),
        _key("number_of_gpu", _FROM_0),
        _key("blacklist_env_vars", kinds.pattern),
        _key("job_queue_size", _FROM_1),
        _key("max_request_size", _FROM_1),
        _key("max_response_size", _FROM_1),
        _key("frontends", whole(0, FRONT_ENDS_MAX)),
        _key("header_timeout", _FROM_1, "header_timeout_s"),
        _key("body_timeout", _FROM_1, "body_timeout_s"),
        _key("write_timeout", _FROM_1, "write_timeout_s"),
        _key("drain_delay", _FROM_0, "drain_delay_s"),
        _key("drain_timeout", _FROM_0, "drain_timeout_s"),
        _key("decode_input_request", kinds.truth),
        _key("limit_max_image_pixels", kinds.truth),
        _key("allowed_urls", kinds.url_patterns),
        _key("use_env_allowed_urls", kinds.truth, variable=None),
        _key("max_model_download_bytes", whole(1, 2**53)),
        _key("model_download_timeout", _FROM_1, "model_download_timeout_s"),
        _key("install_py_dep_per_model", kinds.truth),
        _key("model_install_timeout", _FROM_1, "model_install_timeout_s"),
        _key("cache_dir", kinds.path),
        _key("log_format", kinds.choice("text", "json")),
        _key("access_log", kinds.truth),
        _key("enable_metrics_api", kinds.truth),
        _key("metrics_mode", kinds.choice("log", "prometheus", "legacy", any_case=True), falls_back=True),
        _key("metrics_config", kinds.path),
        _key("model_metrics_auto_detect", kinds.truth),
        _key("disable_system_metrics", kinds.truth),
        _key("metric_time_interval", _FROM_1, "metric_time_interval_s", variable=None),
        _key("server_id", kinds.words),
        _key("strict_readiness", kinds.truth),
        _key("load_model_names", kinds.listed, "load_models_by_name"),
        _key("allow_load_files", kinds.truth, opens=True),
        _key("allow_client_shm", kinds.choice("auto", "true", "false", any_case=True)),
        _key("model_config_name", kinds.words),
        _key("disable_auto_complete_config", kinds.truth),
        _key("nv_metrics", kinds.truth),
        _key("trace_level", kinds.choice("OFF", "TIMESTAMPS")),
        _key("trace_rate", _FROM_1),
        _key("trace_count", whole(-1)),
        _key("trace_log_frequency", _FROM_0),
        _key("trace_file", kinds.words),
        _key("enable_envvars_config", kinds.truth, variable=None),
    )
}
BY_FIELD: dict[str, Key] = {key.field: key for key in HONOURED.values()}
assert len(BY_FIELD) == len(HONOURED), "a field has one key"

# What TorchServe lets one choose and this server always does: no mistake, whatever the file says.
ALWAYS_SO: dict[str, str] = {
    "async_logging": "is always so: logs are written beside the requests, never in their way.",
    "ts_open_inference_protocol": "is always so: the Open Inference Protocol is served, over REST and gRPC.",
    "use_native_io": "is always so: the event loop is the system's own, and unix: addresses need nothing else.",
}
# What TorchServe writes into its snapshots about itself.
RECORDED = frozenset({"version", "tsConfigFile", "python"})
_OFF = ("", "false")
_NEVER: tuple[str, ...] = ("",)

IGNORED: tuple[Ignored, ...] = (
    Ignored(
        "threads of the front end",
        "sizes a thread pool of TorchServe's Java front end. `frontends` says how many processes answer requests here.",
        {"number_of_netty_threads": ("", "0"), "netty_client_threads": ("", "0")},
    ),
    Ignored(
        "the Java virtual machine",
        "is for the Java virtual machine, and this server runs in none.",
        {"vmargs": _NEVER, "prefer_direct_buffer": _OFF, "io_ratio": ("", "50")},
    ),
    Ignored(
        "plugins",
        "is for TorchServe's Java plugins, which are not loaded.",
        {"plugins_path": _NEVER, "NUM_WORKERS": _NEVER},
    ),
    Ignored(
        "the place of the installation",
        "is where TorchServe is installed, which this server has no need to know.",
        {"model_server_home": _NEVER},
    ),
    Ignored(
        "the C++ backend",
        "is for TorchServe's C++ backend, which is not served.",
        {"cpp_log_config": _NEVER},
    ),
    Ignored(
        "the launcher of PyTorch's workers",
        "is not served by this version: each worker gets its share of the processors as threads, and OMP_NUM_THREADS in the"
        " environment says otherwise.",
        {"cpu_launcher_enable": _OFF, "cpu_launcher_args": _NEVER},
    ),
    Ignored(
        "Intel's extension for PyTorch",
        "is not passed on to workers. TS_IPEX_ENABLE=true in the environment of the server makes BaseHandler use Intel's extension"
        " for PyTorch on processors.",
        {"ipex_enable": _OFF, "ipex_gpu_enable": _OFF},
    ),
    Ignored(
        "workers started by hand",
        "is not served by this version: workers are always started by the server. To debug a handler, see the log of its worker.",
        {"debug": _OFF},
    ),
    Ignored(
        "a command that measures the system",
        "is not used: the server measures the system itself, in its own process. disable_system_metrics=true switches that off.",
        {"system_metrics_cmd": _NEVER},
    ),
    Ignored(
        "models of several processes",
        "is not served by this version: a worker is one process.",
        {"initial_distribution_port": ("", "29500")},
    ),
    Ignored("workflows", "is not served by this version: it has no workflows.", {"workflow_store": _NEVER}),
)
_REASON = {name: group.reason for group in IGNORED for name in group.keys}
_HARMLESS = {name: values for group in IGNORED for name, values in group.keys.items()}
NOT_HONOURED = frozenset({*_REASON, *ALWAYS_SO})

# The variables of the environment that count whatever the file says.
ALWAYS_READ: dict[str, str] = {
    "LOG_LOCATION": "log_location",
    "METRICS_LOCATION": "metrics_location",
    "TEMP": "temp_dir",
}
_IRREGULAR = {"TS_OPEN_INFERENCE_PROTOCOL": "ts_open_inference_protocol"}
# TorchServe reads these in the file only; TS_IPEX_ENABLE is read by handlers.
_NO_VARIABLE = {
    "ipex_enable",
    "system_metrics_cmd",
    "use_native_io",
    "io_ratio",
    "vmargs",
    "plugins_path",
    "NUM_WORKERS",
}
# TS_... -> the key it stands for, where the file says enable_envvars_config=true.
VARIABLES: dict[str, str] = {
    **{key.variable: key.name for key in HONOURED.values() if key.variable},
    **{f"TS_{name.upper()}": name for name in NOT_HONOURED - _NO_VARIABLE - set(_IRREGULAR.values())},
    **_IRREGULAR,
}
# Variables with that beginning that are not settings.
OTHER_VARIABLES = frozenset(
    {
        "TS_CONFIG_FILE",
        "TS_IPEX_ENABLE",
        "TS_BENCHMARK",
        "TS_REQUEST_SEQUENCE_ID",
        "TS_REQUEST_SEQUENCE_START",
        "TS_REQUEST_SEQUENCE_END",
    }
)


def why_without_effect(name: str, text: str) -> str | None:
    """The sentence to a key of TorchServe's that is not honoured; None where its value asks for nothing."""
    assert name in NOT_HONOURED
    if name in ALWAYS_SO or text.lower() in _HARMLESS[name]:
        return None
    return _REASON[name]


def nearest(name: str, known: frozenset[str] | set[str], cutoff: float = 0.6) -> str | None:
    """The known name that was probably meant; names that differ in nothing but case are the nearest."""
    lower = {each.lower(): each for each in sorted(known)}
    near = difflib.get_close_matches(name.lower(), lower, 1, cutoff)
    return lower[near[0]] if near else None


# A flag of `ringserve start` -> the field it sets; `--model-repository` and `--ts-config` say more than one.
FLAGS: dict[str, str] = {
    "--model-store": "model_store",
    "--models": "models",
    "--frontends": "frontends",
    "--grpc-frontends": "grpc_frontends",
    "--grpc-inference-port": "grpc_inference_port",
    "--grpc-management-port": "grpc_management_port",
    "--enable-model-api": "enable_model_api",
    "--disable-token-auth": "disable_token_authorization",
    "--insecure": "insecure",
    "--model-control-mode": "model_control_mode",
    "--repository-poll-s": "repository_poll_s",
    "--drain-delay": "drain_delay_s",
    "--drain-timeout": "drain_timeout_s",
    "--load-model": "load_models_by_name",
    "--model-config-name": "model_config_name",
    "--disable-auto-complete-config": "disable_auto_complete_config",
}
SNAPSHOTS_OFF, REPOSITORY, CONFIG_FILE = "--no-config-snapshots", "--model-repository", "--ts-config"

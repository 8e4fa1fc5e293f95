"""Every key of TorchServe's configuration, one by one: honoured, always so, or named with the reason why nothing comes of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from ringserve.server.configuration.keys import ALWAYS_SO, HONOURED, NOT_HONOURED, RECORDED, VARIABLES, nearest
from ringserve.server.configuration.sources import configure
from ringserve.server.settings import Address, ConfigError, Settings

DEFAULT = Settings()
# All keys of TorchServe 0.12, as its documents and its code have them.
TORCHSERVE = """
inference_address management_address metrics_address grpc_inference_address grpc_management_address grpc_inference_port
grpc_management_port grpc_inference_max_connection_age_ms grpc_management_max_connection_age_ms
grpc_inference_max_connection_age_grace_ms grpc_management_max_connection_age_grace_ms enable_grpc_ssl model_store
workflow_store load_models models model_snapshot default_workers_per_model default_response_timeout default_startup_timeout
unregister_model_timeout job_queue_size number_of_gpu number_of_netty_threads netty_client_threads max_request_size
max_response_size enable_envvars_config enable_model_api disable_token_authorization token_expiration_min allowed_urls
use_env_allowed_urls install_py_dep_per_model blacklist_env_vars decode_input_request service_envelope
default_service_handler limit_max_image_pixels prefer_direct_buffer async_logging enable_metrics_api metrics_mode
metrics_config model_metrics_auto_detect disable_system_metrics metric_time_interval system_metrics_cmd keystore
keystore_pass keystore_type private_key_file certificate_file cors_allowed_origin cors_allowed_methods cors_allowed_headers
initial_worker_port initial_distribution_port ipex_enable ipex_gpu_enable cpu_launcher_enable cpu_launcher_args
cpp_log_config ts_open_inference_protocol ts_header_key_sequence_id ts_header_key_sequence_start
ts_header_key_sequence_end debug model_server_home use_native_io io_ratio vmargs plugins_path NUM_WORKERS
"""

# key, text, field, value
EFFECTS: list[tuple[str, str, str, Any]] = [
    ("inference_address", "http://127.0.0.1:9000", "inference_address", Address("127.0.0.1", 9000)),
    ("management_address", "http://0.0.0.0/", "management_address", Address("0.0.0.0", 8081)),
    ("metrics_address", "http://127.0.0.1:9002", "metrics_address", Address("127.0.0.1", 9002)),
    ("enable_grpc", "false", "enable_grpc", False),
    ("grpc_inference_address", "0.0.0.0", "grpc_inference_address", "0.0.0.0"),
    ("grpc_inference_address", "[::1]", "grpc_inference_address", "::1"),
    ("grpc_inference_port", "0", "grpc_inference_port", 0),
    ("grpc_management_address", "localhost", "grpc_management_address", "localhost"),
    ("grpc_management_port", "65535", "grpc_management_port", 65535),
    ("grpc_inference_max_connection_age_ms", "1", "grpc_inference_max_connection_age_ms", 1),
    ("grpc_inference_max_connection_age_grace_ms", "2", "grpc_inference_max_connection_age_grace_ms", 2),
    ("grpc_management_max_connection_age_ms", "3", "grpc_management_max_connection_age_ms", 3),
    ("grpc_management_max_connection_age_grace_ms", "4", "grpc_management_max_connection_age_grace_ms", 4),
    ("enable_grpc_ssl", "true", "enable_grpc_ssl", True),
    ("grpc_frontends", "64", "grpc_frontends", 64),
    ("grpc_keepalive_time", "5", "grpc_keepalive_time_ms", 5),
    ("grpc_keepalive_timeout", "6", "grpc_keepalive_timeout_ms", 6),
    ("grpc_keepalive_permit_without_calls", "true", "grpc_keepalive_permit_without_calls", True),
    ("grpc_http2_max_pings_without_data", "7", "grpc_http2_max_pings_without_data", 7),
    (
        "grpc_http2_min_recv_ping_interval_without_data",
        "8",
        "grpc_http2_min_recv_ping_interval_without_data_ms",
        8,
    ),
    ("grpc_http2_max_ping_strikes", "9", "grpc_http2_max_ping_strikes", 9),
    ("grpc_compression", "high", "grpc_compression", "high"),
    ("grpc_reflection", "false", "grpc_reflection", False),
    ("disable_token_authorization", "true", "disable_token_authorization", True),
    ("allow_client_shm", "True", "allow_client_shm", "true"),
    ("token_expiration_min", "0.25", "token_expiration_min", 0.25),
    ("token_expiration_min", " 1e3 ", "token_expiration_min", 1000.0),
    ("inference_key_file", "/keys/inference", "inference_key_file", Path("/keys/inference")),
    ("management_key_file", "/keys/management", "management_key_file", Path("/keys/management")),
    ("api_key_file", "/keys/api", "api_key_file", Path("/keys/api")),
    ("insecure", "true", "insecure", True),
    ("certificate_file", "c.pem", "certificate_file", Path("c.pem")),
    ("private_key_file", "k.pem", "private_key_file", Path("k.pem")),
    ("keystore", "k.p12", "keystore", Path("k.p12")),
    ("keystore_pass", "secret\\ ", "keystore_pass", "secret "),
    ("keystore_type", "JKS", "keystore_type", "JKS"),
    ("cors_allowed_origin", "https://a", "cors_allowed_origin", "https://a"),
    ("cors_allowed_methods", "GET, POST", "cors_allowed_methods", "GET, POST"),
    ("cors_allowed_headers", "X-Custom-Header", "cors_allowed_headers", "X-Custom-Header"),
    ("enable_model_api", "True", "enable_model_api", True),
    ("model_store", "/models", "model_store", Path("/models")),
    ("load_models", "a.mar, b=b.mar ,,", "models", ("a.mar", "b=b.mar")),
    ("model_snapshot", '{"name": "x", "modelCount": 0, "models": {}}', "model_snapshot", None),
    ("snapshots_kept", "1", "snapshots_kept", 1),
    ("model_control_mode", "poll", "model_control_mode", "poll"),
    ("repository_poll_s", "2", "repository_poll_s", 2),
    ("models", '{"m": {"1.0": {"batchSize": 4}}}', "model_defaults", {"m": {"1.0": {"batchSize": 4}}}),
    ("default_service_handler", "image_classifier", "default_service_handler", "image_classifier"),
    ("service_envelope", "kserve", "service_envelope", "kserve"),
    ("service_envelope", "my.own", "service_envelope", "my.own"),
    ("ts_header_key_sequence_id", "X-Sequence", "ts_header_key_sequence_id", "X-Sequence"),
    ("ts_header_key_sequence_start", "X-Start", "ts_header_key_sequence_start", "X-Start"),
    ("ts_header_key_sequence_end", "X-End", "ts_header_key_sequence_end", "X-End"),
    ("default_workers_per_model", "+4", "default_workers_per_model", 4),
    ("default_response_timeout", "0", "default_response_timeout_s", 0),
    ("default_startup_timeout", "7", "default_startup_timeout_s", 7),
    ("default_queue_timeout", "3", "default_queue_timeout_s", 3),
    ("unregister_model_timeout", "8", "unregister_model_timeout_s", 8),
    ("initial_worker_port", "9500", "initial_worker_port", 9500),
    ("number_of_gpu", "2", "number_of_gpu", 2),
    ("blacklist_env_vars", ".*SECRET.*|AWS_.+", "blacklist_env_vars", ".*SECRET.*|AWS_.+"),
    ("job_queue_size", "1", "job_queue_size", 1),
    ("max_request_size", "2147483647", "max_request_size", 2**31 - 1),
    ("max_response_size", "1", "max_response_size", 1),
    ("frontends", "256", "frontends", 256),
    ("header_timeout", "1", "header_timeout_s", 1),
    ("body_timeout", "2", "body_timeout_s", 2),
    ("write_timeout", "3", "write_timeout_s", 3),
    ("drain_delay", "5", "drain_delay_s", 5),
    ("drain_timeout", "0", "drain_timeout_s", 0),
    ("decode_input_request", "FALSE", "decode_input_request", False),
    ("limit_max_image_pixels", "false", "limit_max_image_pixels", False),
    ("allowed_urls", "https?://a/.*, file:///b/.*", "allowed_urls", ("https?://a/.*", "file:///b/.*")),
    ("use_env_allowed_urls", "true", "use_env_allowed_urls", True),
    ("max_model_download_bytes", "68719476736", "max_model_download_bytes", 64 << 30),
    ("model_download_timeout", "30", "model_download_timeout_s", 30),
    ("install_py_dep_per_model", "true", "install_py_dep_per_model", True),
    ("model_install_timeout", "5", "model_install_timeout_s", 5),
    ("cache_dir", "/cache", "cache_dir", Path("/cache")),
    ("log_format", "json", "log_format", "json"),
    ("access_log", "false", "access_log", False),
    ("enable_metrics_api", "false", "enable_metrics_api", False),
    ("metrics_mode", "PROMETHEUS", "metrics_mode", "prometheus"),
    ("metrics_config", "metrics.yaml", "metrics_config", Path("metrics.yaml")),
    ("model_metrics_auto_detect", "true", "model_metrics_auto_detect", True),
    ("disable_system_metrics", "true", "disable_system_metrics", True),
    ("metric_time_interval", "1", "metric_time_interval_s", 1),
    ("server_id", "mine", "server_id", "mine"),
    ("strict_readiness", "false", "strict_readiness", False),
    ("load_model_names", "a, b", "load_models_by_name", ("a", "b")),
    ("allow_load_files", "true", "allow_load_files", True),
    ("model_config_name", "small", "model_config_name", "small"),
    ("disable_auto_complete_config", "true", "disable_auto_complete_config", True),
    ("nv_metrics", "false", "nv_metrics", False),
    ("trace_level", "TIMESTAMPS", "trace_level", "TIMESTAMPS"),
    ("trace_rate", "5", "trace_rate", 5),
    ("trace_count", "5", "trace_count", 5),
    ("trace_log_frequency", "10", "trace_log_frequency", 10),
    ("trace_file", "traces.json", "trace_file", "traces.json"),
    ("enable_envvars_config", "true", "enable_envvars_config", True),
]
# key, text that asks for something, what the warning says of it
WARNINGS: list[tuple[str, str, str]] = [
    ("number_of_netty_threads", "4", "Java front end"),
    ("netty_client_threads", "4", "Java front end"),
    ("prefer_direct_buffer", "true", "virtual machine"),
    ("io_ratio", "70", "virtual machine"),
    ("vmargs", "-Xmx4g", "virtual machine"),
    ("plugins_path", "/plugins", "Java plugins"),
    ("model_server_home", "/opt", "installed"),
    ("NUM_WORKERS", "2", "Java plugins"),
    ("cpp_log_config", "/log.yaml", "C++ backend"),
    ("cpu_launcher_enable", "true", "OMP_NUM_THREADS"),
    ("cpu_launcher_args", "--use_logical_core", "OMP_NUM_THREADS"),
    ("ipex_enable", "true", "TS_IPEX_ENABLE"),
    ("ipex_gpu_enable", "true", "TS_IPEX_ENABLE"),
    ("debug", "true", "started by the server"),
    ("system_metrics_cmd", "python x.py", "measures the system itself"),
    ("initial_distribution_port", "29600", "one process"),
    ("workflow_store", "/workflows", "workflows"),
]
WITHOUT_EFFECT = [
    *((key, "false") for key in ("debug", "ipex_enable", "ipex_gpu_enable", "cpu_launcher_enable")),
    *((key, "0") for key in ("number_of_netty_threads", "netty_client_threads")),
    ("prefer_direct_buffer", "FALSE"),
    ("io_ratio", "50"),
    ("initial_distribution_port", "29500"),
]


def read(tmp_path: Path, text: str, **environ: str) -> Settings:
    (tmp_path / "config.properties").write_text(text, encoding="utf-8")
    return configure({"--ts-config": "config.properties"}, environ, tmp_path)


@pytest.mark.parametrize(("key", "text", "field", "value"), EFFECTS)
def test_an_honoured_key_sets_its_field_and_nothing_else(
    tmp_path: Path, key: str, text: str, field: str, value: object
) -> None:
    settings = read(tmp_path, f"{key}={text}")
    names = [
        name for name in Settings.__slots__ if name not in ("config_file", "model_control_mode", "origins", "carried")
    ]
    changed = {name for name in names if getattr(settings, name) != getattr(DEFAULT, name)}
    assert getattr(settings, field) == (text if value is None else value)
    assert changed | {"model_control_mode"} == {field, "model_control_mode"}
    assert settings.origins[field] == "config.properties:1"


@pytest.mark.parametrize(("key", "text", "said"), WARNINGS)
def test_a_key_without_effect_is_named_with_its_line_and_the_reason(
    tmp_path: Path, key: str, text: str, said: str
) -> None:
    settings = read(tmp_path, f"# one\n{key}={text}")
    (warning,) = settings.warnings
    assert warning.startswith(f"config.properties:2: {key} ")
    assert warning.endswith(".")
    assert said in warning
    assert settings.notes == ()


@pytest.mark.parametrize(("key", "text"), WITHOUT_EFFECT)
def test_a_key_without_effect_may_say_what_is_so_anyhow(tmp_path: Path, key: str, text: str) -> None:
    settings = read(tmp_path, f"{key}={text}")
    assert (settings.warnings, settings.notes) == ((), ())


@pytest.mark.parametrize("key", sorted(ALWAYS_SO))
@pytest.mark.parametrize("text", ["true", "false"])
def test_what_this_server_always_does_is_no_mistake(tmp_path: Path, key: str, text: str) -> None:
    settings = read(tmp_path, f"{key}={text}")
    assert settings.warnings == ()
    assert settings.notes[0].startswith(f"config.properties:1: {key} is always so:")


def test_every_key_of_torchserve_has_a_fate_and_a_test() -> None:
    assert set(TORCHSERVE.split()) <= set(HONOURED) | NOT_HONOURED
    assert {key for key, *_ in EFFECTS} == set(HONOURED)
    assert {key for key, *_ in WARNINGS} | set(ALWAYS_SO) == NOT_HONOURED
    assert NOT_HONOURED.isdisjoint(HONOURED)


def test_what_torchserve_records_of_itself_is_passed_over(tmp_path: Path) -> None:
    settings = read(tmp_path, "".join(f"{key}=x\n" for key in RECORDED))
    assert (settings.warnings, settings.notes) == ((), ())


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("job_queue_size=0", "expected a whole number from 1 to 2147483647, got '0'"),
        ("model_control_mode=on", "expected one of auto, none, watch, poll, explicit, got 'on'"),
        ("log_format=JSON", "expected one of text, json, got 'JSON'"),
        ('models={"m": 1}', "expected a JSON object of models, each an object of versions, each an object of settings"),
        ("models=" + "[" * 5000, "expected a JSON object of models"),
        ("max_model_download_bytes=0", "expected a whole number from 1 to 9007199254740992, got '0'"),
        (
            "allowed_urls=https://a/.*, http://(b",
            "expected regular expressions separated by commas, got 'http://(b' (missing",
        ),
        ("blacklist_env_vars=(", "expected a regular expression, got '(' (missing"),
        ("service_envelope=../kserve", "expected the name of a module, got '../kserve'"),
        ("job_queue_size=ten", "expected a whole number from 1 to 2147483647, got 'ten'"),
        ("job_queue_size=1.5", "expected a whole number from 1 to 2147483647, got '1.5'"),
        ("job_queue_size=\\u0661", "expected a whole number from 1 to 2147483647, got '\u0661'"),
        ("job_queue_size=", "expected a whole number from 1 to 2147483647, got ''"),
        ("max_request_size=2147483648", "expected a whole number from 1 to 2147483647, got '2147483648'"),
        ("max_response_size=" + "9" * 5000, f"expected a whole number from 1 to 2147483647, got '{'9' * 200}...'"),
        ("default_response_timeout=-1", "expected a whole number from 0 to 2147483647, got '-1'"),
        ("frontends=257", "expected a whole number from 0 to 256, got '257'"),
        ("grpc_inference_address=http://h", "expected a host without scheme and port, got 'http://h'"),
        ("grpc_inference_address=h:7070", "expected a host without scheme and port, got 'h:7070'"),
        ("grpc_management_port=65536", "expected a whole number from 0 to 65535, got '65536'"),
        ("grpc_compression=gzip", "expected one of none, low, medium, high, got 'gzip'"),
        ("grpc_frontends=0", "expected a whole number from 1 to 64, got '0'"),
        ("header_timeout=0", "expected a whole number from 1 to 2147483647, got '0'"),
        ("enable_model_api=yes", "expected true or false, got 'yes'"),
        ("model_store=", "expected a path, got ''"),
        ("model_store=a\\u0000b", "expected a path, got 'a\\x00b'"),
        ("inference_address=127.0.0.1:8080", "expected http://host:port"),
        ("management_address=http://h:99999", "expected http://host:port"),
        ("metrics_address=", "expected http://host:port"),
        ("model_store=$$NOT_SET$$", "Invalid Environment Variable NOT_SET"),
    ],
)
def test_a_bad_value_ends_the_start_with_file_line_and_key(tmp_path: Path, line: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"# one\n\n{line}")
    key = line.partition("=")[0]
    assert str(caught.value).startswith(f"config.properties:3: {key}: {sentence}")


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e400", "0", "-1", "", "an hour", "0x10", "1_0", "1e10"])
def test_an_expiry_that_is_none_falls_back_as_in_torchserve(tmp_path: Path, text: str) -> None:
    settings = read(tmp_path, f"token_expiration_min=5\ntoken_expiration_min={text}")
    assert settings.token_expiration_min == DEFAULT.token_expiration_min
    expected = f"config.properties:2: token_expiration_min: expected a number above 0, 1e+09 at most, got {text!r}."
    assert f"{expected} As in TorchServe, 60.0 is taken instead." in settings.warnings


def test_a_metrics_mode_that_is_none_falls_back_as_in_torchserve(tmp_path: Path) -> None:
    settings = read(tmp_path, "metrics_mode=off")
    assert settings.metrics_mode == "log"
    (warning,) = settings.warnings
    assert "expected one of log, prometheus, legacy, got 'off'. As in TorchServe, log is taken instead." in warning


def test_every_bad_line_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "job_queue_size=x\nfrontends=-1\naccess_log=maybe\n")
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("job_queue_sise", "job_queue_size"),
        ("Job_Queue_Size", "job_queue_size"),
        ("INFERENCE_ADDRESS", "inference_address"),
        ("num_workers", "NUM_WORKERS"),
        ("grpc_inference_prt", "grpc_inference_port"),
        ("zzz", None),
        ("", None),
    ],
)
def test_a_key_that_is_none_is_reported_with_the_nearest_one(tmp_path: Path, key: str, meant: str | None) -> None:
    settings = read(tmp_path, f"\n{key}=5")
    (warning,) = settings.warnings
    hint = "" if meant is None else f" Did you mean {meant}?"
    assert warning == f"config.properties:2: {key} is not a setting and is ignored.{hint}"


def test_what_a_key_says_cannot_forge_a_line_of_the_log(tmp_path: Path) -> None:
    (warning,) = read(tmp_path, "x\\nERROR=1").warnings
    assert warning == r"config.properties:1: 'x\nERROR' is not a setting and is ignored."


def test_of_a_key_said_twice_the_last_counts_and_both_lines_are_named(tmp_path: Path) -> None:
    settings = read(tmp_path, "job_queue_size=5\n\njob_queue_size=6")
    assert settings.job_queue_size == 6
    assert settings.warnings == ("config.properties:3: job_queue_size is said in line 1 as well: line 3 counts.",)


def test_a_password_is_in_no_message(tmp_path: Path) -> None:
    settings = read(tmp_path, "keystore_pass=hunter2\nkeystore_pass=hunter2!\nkeystore_paas=hunter2\n")
    assert settings.keystore_pass == "hunter2!"
    assert "hunter2" not in repr(settings)


def test_the_environment_names_every_key_but_those_that_torchserve_keeps_to_the_file() -> None:
    named = set(VARIABLES.values())
    kept_to_the_file = {
        *("models", "model_snapshot", "enable_envvars_config", "use_env_allowed_urls", "metric_time_interval"),
        *("ipex_enable", "system_metrics_cmd", "use_native_io", "io_ratio", "vmargs", "plugins_path", "NUM_WORKERS"),
    }
    assert named == (set(HONOURED) | NOT_HONOURED) - kept_to_the_file
    irregular = {variable: key for variable, key in VARIABLES.items() if variable != f"TS_{key.upper()}"}
    assert irregular == {
        "TS_TOKEN_EXPIRATION_TIME_MIN": "token_expiration_min",
        "TS_OPEN_INFERENCE_PROTOCOL": "ts_open_inference_protocol",
        "TS_HEADER_KEY_SEQUENCE_ID": "ts_header_key_sequence_id",
        "TS_HEADER_KEY_SEQUENCE_START": "ts_header_key_sequence_start",
        "TS_HEADER_KEY_SEQUENCE_END": "ts_header_key_sequence_end",
    }


def test_names_that_differ_in_nothing_but_case_are_the_nearest() -> None:
    assert nearest("Ab", {"aB", "abc"}) == "aB"
    assert nearest("q", {"aB"}) is None


def test_a_reason_is_a_sentence() -> None:
    assert all(re.fullmatch(r"is .+\.", reason) for reason in ALWAYS_SO.values())


def test_a_value_that_does_not_count_keeps_nobody_from_starting(tmp_path: Path) -> None:
    settings = read(tmp_path, "job_queue_size=many\njob_queue_size=5\n")
    assert settings.job_queue_size == 5
    assert [each for each in settings.warnings if "line 2 counts" in each]


def test_defaults_of_models_that_are_passed_over_are_named(tmp_path: Path) -> None:
    models = {
        "a": {"1.0": {"batchSize": "4", "minWorkers": 0, "maxWorkers": 2, "maxBatchDelai": 5, "marName": "a.mar"}}
    }
    settings = read(tmp_path, f"models={json.dumps(models)}\n")
    assert settings.model_defaults == models
    size, low, delay = settings.warnings
    assert ":1: models: 'a' '1.0' batchSize: expected a whole number above 0, got '4'" in size
    assert "minWorkers: expected a whole number above 0, got 0" in low
    assert delay.endswith("maxBatchDelai is not a setting and is ignored. Did you mean maxBatchDelay?")


def test_what_would_break_out_of_a_header_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=":1: cors_allowed_origin: expected printable ASCII characters, got "):
        read(tmp_path, "cors_allowed_origin=a\\r\\nset-cookie: x\n")

"""What the server was told: Java's file format, every key that is honoured, and refusals that name file and line."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.server.settings import (
    _HONOURED,
    Address,
    ConfigError,
    Property,
    Settings,
    check,
    parse_address,
    parse_properties,
    read_config_file,
    with_repository,
)

DEFAULT = Settings()


def read(tmp_path: Path, text: str, **environ: str) -> Settings:
    path = tmp_path / "config.properties"
    path.write_text(text, encoding="utf-8")
    return read_config_file(path, environ)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("a=b", "a", "b"),
        ("a:b", "a", "b"),
        ("a b", "a", "b"),
        ("a", "a", ""),
        ("a=", "a", ""),
        ("  a  =  b c  ", "a", "b c  "),
        ("a\t:\tb", "a", "b"),
        ("a = = b", "a", "= b"),
        ("a  b=c", "a", "b=c"),
        ("address=http://127.0.0.1:80", "address", "http://127.0.0.1:80"),
        ("a\\=b=c", "a=b", "c"),
        ("a\\:b:c", "a:b", "c"),
        ("a\\ b c", "a b", "c"),
        ("a\\\\=b", "a\\", "b"),
        ("a\\\\ b", "a\\", "b"),
        ("a\\ =b", "a ", "b"),
        ("a=b\\\n   c", "a", "bc"),
        ("a=b\\\r\n\tc\\\r\nd", "a", "bcd"),
        ("a=b\\\n#c", "a", "b#c"),
        ("a\\\n=b", "a", "b"),
        ("\\\n#a=b", "#a", "b"),
        ("a=b\\\\\n#c", "a", "b\\"),
        ("a=b\\", "a", "b"),
        ("a=b\\\n", "a", "b"),
        ("a=b\\\n\n#c", "a", "b"),
        ("# c\n! d\n\n   \n  # e\na=b", "a", "b"),
        ("a=\\u0041\\t\\n\\x", "a", "A\t\nx"),
        ("\\u0061=b", "a", "b"),
        ("a=C:\\\\models", "a", "C:\\models"),
        ("a=1\rb" + "\\\n", "a", "1"),
        ("a=one\u2028line\x0b\x85", "a", "one\u2028line\x0b\x85"),
        ("a=\u00a0b", "a", "\u00a0b"),
        ("=b", "", "b"),
    ],
)
def test_a_line_reads_as_in_java(text: str, key: str, value: str) -> None:
    first = parse_properties(text)[0]
    assert (first.key, first.value) == (key, value)


def test_a_property_knows_the_line_it_begins_on() -> None:
    text = "# comment\na=1\\\n  2\\\n  3\r\n\r\nb=4\rc=5"
    assert parse_properties(text) == [Property("a", "123", 2), Property("b", "4", 6), Property("c", "5", 7)]


plain = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\\"), min_size=1)


@given(st.lists(st.tuples(plain, plain), max_size=4))
def test_escaped_keys_and_values_come_back(pairs: list[tuple[str, str]]) -> None:
    """What `java.util.Properties.store` would write is read as it was."""

    def escaped(text: str) -> str:
        return (
            "".join("\\" + each if each in "=:#! \t\f" else each for each in text)
            .replace("\\\t", "\\t")
            .replace("\\\f", "\\f")
        )

    text = "\n".join(f"{escaped(key)}={escaped(value)}" for key, value in pairs)
    assert [(each.key, each.value) for each in parse_properties(text)] == pairs


@given(st.text(st.sampled_from("ab=: \\\n\r\t#!u0")))
def test_any_text_is_a_properties_file(text: str) -> None:
    lines = [each.line for each in parse_properties(text)]
    assert lines == sorted(set(lines))


KEYS: list[tuple[str, str, str, Any]] = [
    ("model_store", "/models", "model_store", Path("/models")),
    ("load_models", "all", "models", ("all",)),
    ("load_models", " a.mar, b=b.mar ,,", "models", ("a.mar", "b=b.mar")),
    ("inference_address", "http://127.0.0.1:9000", "inference_address", Address("127.0.0.1", 9000)),
    ("inference_address", "http://localhost", "inference_address", Address("localhost", 80)),
    ("management_address", "http://0.0.0.0/", "management_address", Address("0.0.0.0", 8081)),
    ("frontends", "4", "frontends", 4),
    ("job_queue_size", "1", "job_queue_size", 1),
    ("default_workers_per_model", "+4", "default_workers_per_model", 4),
    ("default_response_timeout", "0", "default_response_timeout_s", 0),
    ("default_startup_timeout", "7", "default_startup_timeout_s", 7),
    ("default_queue_timeout", "3", "default_queue_timeout_s", 3),
    ("header_timeout", "1", "header_timeout_s", 1),
    ("body_timeout", "2", "body_timeout_s", 2),
    ("write_timeout", "3", "write_timeout_s", 3),
    ("unregister_model_timeout", "8", "unregister_model_timeout_s", 8),
    ("model_control_mode", "poll", "model_control_mode", "poll"),
    ("repository_poll_s", "2", "repository_poll_s", 2),
    ("number_of_gpu", "2", "number_of_gpu", 2),
    ("initial_worker_port", "9500", "initial_worker_port", 9500),
    ("models", '{"m": {"1.0": {"batchSize": 4}}}', "model_defaults", {"m": {"1.0": {"batchSize": 4}}}),
    ("allowed_urls", "https?://a/.*, file:///b/.*", "allowed_urls", ("https?://a/.*", "file:///b/.*")),
    ("use_env_allowed_urls", "true", "use_env_allowed_urls", True),
    ("max_model_download_bytes", "68719476736", "max_model_download_bytes", 64 << 30),
    ("model_download_timeout", "30", "model_download_timeout_s", 30),
    ("install_py_dep_per_model", "true", "install_py_dep_per_model", True),
    ("model_install_timeout", "5", "model_install_timeout_s", 5),
    ("cache_dir", "/cache", "cache_dir", Path("/cache")),
    ("max_request_size", "2147483647", "max_request_size", 2**31 - 1),
    ("max_response_size", "1", "max_response_size", 1),
    ("decode_input_request", "FALSE", "decode_input_request", False),
    ("limit_max_image_pixels", "false", "limit_max_image_pixels", False),
    ("enable_model_api", "True", "enable_model_api", True),
    ("disable_token_authorization", "true", "disable_token_authorization", True),
]


@pytest.mark.parametrize(("key", "text", "field", "value"), KEYS)
def test_an_honoured_key_sets_its_field_and_nothing_else(
    tmp_path: Path, key: str, text: str, field: str, value: object
) -> None:
    settings = read(tmp_path, f"{key}={text}")
    changed = {name for name in Settings.__slots__ if getattr(settings, name) != getattr(DEFAULT, name)}
    assert getattr(settings, field) == value
    assert changed == {field}


def test_every_honoured_key_is_in_the_table() -> None:
    assert {key for key, *_ in KEYS} == set(_HONOURED)


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "# nothing\n") == DEFAULT


def test_of_a_key_set_twice_the_last_counts(tmp_path: Path) -> None:
    assert read(tmp_path, "job_queue_size=5\njob_queue_size=6").job_queue_size == 6


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("job_queue_size=0", "expected a whole number from 1 to 2147483647, got '0'"),
        ("model_control_mode=on", "expected one of auto, none, watch, poll, explicit, got 'on'"),
        ('models={"m": 1}', "expected a JSON object of models, each an object of versions, each an object of settings"),
        ("max_model_download_bytes=0", "expected a whole number from 1 to 9007199254740992, got '0'"),
        (
            "allowed_urls=https://a/.*, http://(b",
            "expected regular expressions separated by commas, got 'http://(b' (missing",
        ),
        ("job_queue_size=ten", "expected a whole number from 1 to 2147483647, got 'ten'"),
        ("job_queue_size=1.5", "expected a whole number from 1 to 2147483647, got '1.5'"),
        ("job_queue_size=", "expected a whole number from 1 to 2147483647, got ''"),
        ("max_request_size=2147483648", "expected a whole number from 1 to 2147483647, got '2147483648'"),
        ("max_response_size=" + "9" * 5000, "expected a whole number from 1 to 2147483647, got '999"),
        ("default_response_timeout=-1", "expected a whole number from 0 to 2147483647, got '-1'"),
        ("frontends=-1", "expected a whole number from 0 to 2147483647, got '-1'"),
        ("header_timeout=0", "expected a whole number from 1 to 2147483647, got '0'"),
        ("enable_model_api=yes", "expected true or false, got 'yes'"),
        ("inference_address=127.0.0.1:8080", "expected http://host:port, got '127.0.0.1:8080'"),
        ("inference_address=https://127.0.0.1", "expected http://host:port, got 'https://127.0.0.1'"),
        ("inference_address=unix:/tmp/x", "expected http://host:port, got 'unix:/tmp/x'"),
        ("inference_address=http://[::1:8080", "expected http://host:port, got 'http://[::1:8080'"),
        ("management_address=http://h:99999", "expected http://host:port, got 'http://h:99999'"),
        ("management_address=http://h:x", "expected http://host:port, got 'http://h:x'"),
        ("management_address=http://h/path", "expected http://host:port, got 'http://h/path'"),
        ("model_store=$$NOT_SET$$", "Invalid Environment Variable NOT_SET"),
    ],
)
def test_a_bad_value_is_refused_with_file_line_and_key(tmp_path: Path, line: str, sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, f"# one\n\n{line}")
    key = line.partition("=")[0]
    assert str(caught.value).startswith(f"{tmp_path}/config.properties:3: {key}: {sentence}")


def test_environment_variables_are_filled_in_anywhere_in_a_value(tmp_path: Path) -> None:
    settings = read(tmp_path, "model_store=$$ROOT$$/of/$$WHO_1$$/$x", ROOT="/models", WHO_1="me")
    assert settings.model_store == Path("/models/of/me/$x")


def test_a_key_that_is_not_honoured_is_reported_with_its_line(tmp_path: Path) -> None:
    settings = read(tmp_path, "metrics_address=http://127.0.0.1:8082\n\njob_queue_sise=5\nzzz=1")
    path = tmp_path / "config.properties"
    known, mistyped, unknown = settings.warnings
    assert known == f"{path}:1: metrics_address is TorchServe's, and this version does not honour it."
    assert mistyped.startswith(f"{path}:3: job_queue_sise is not a setting")
    assert mistyped.endswith("Did you mean job_queue_size?")
    assert unknown == f"{path}:4: zzz is not a setting and is ignored."
    assert settings.job_queue_size == DEFAULT.job_queue_size


def test_a_file_that_is_not_there_or_not_text_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--ts-config file not found: .*/none$"):
        read_config_file(tmp_path / "none", {})
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"^--ts-config file .*/binary cannot be read: "):
        read_config_file(tmp_path / "binary", {})
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config_file(tmp_path, {})


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("127.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("127.0.0.1.example.com", False),
        ("127.example.com", False),
        ("1127.0.0.1", False),
        ("::1", False),
    ],
)
def test_loopback_is_an_address_of_this_machine_only(host: str, loopback: bool) -> None:
    assert Address(host, 1).loopback is loopback


def settings_for(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(**{"model_store": tmp_path, **changes})


def test_defaults_with_a_model_store_are_fine(tmp_path: Path) -> None:
    check(settings_for(tmp_path))


@pytest.mark.parametrize("which", ["inference", "management"])
def test_an_open_address_needs_a_word_of_consent(tmp_path: Path, which: str) -> None:
    """There are no tokens yet: nobody is to be reachable from outside by accident."""
    changes: dict[str, Any] = {f"{which}_address": Address("0.0.0.0", 9000)}
    with pytest.raises(ConfigError, match=rf"^{which}_address: expected a loopback address, got http://0.0.0.0:9000"):
        check(settings_for(tmp_path, **changes))
    check(settings_for(tmp_path, **changes, disable_token_authorization=True))


def test_what_no_single_key_shows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^Missing mandatory parameter --model-store$"):
        check(Settings())
    with pytest.raises(ConfigError, match=r"^--model-store directory not found: .*/none$"):
        check(settings_for(tmp_path / "none"))


def test_both_apis_may_have_one_address(tmp_path: Path) -> None:
    same = Address("127.0.0.1", 8080)
    check(settings_for(tmp_path, inference_address=same, management_address=same))


def test_an_address_without_a_port_has_torchserves() -> None:
    assert parse_address("http://h", "here", 8080) == Address("h", 80)
    assert parse_address("http://h", "here", 8081) == Address("h", 8081)
    assert str(Address("h", 80)) == "http://h:80"


@pytest.mark.parametrize(
    ("said", "environ", "patterns"),
    [
        ("true", {"TS_ALLOWED_URLS": "https://b/.*"}, ("https://b/.*",)),
        ("true", {"TS_ALLOWED_URLS": ""}, ()),
        ("true", {}, ("https://a/.*",)),
        ("false", {"TS_ALLOWED_URLS": "https://b/.*"}, ("https://a/.*",)),
    ],
)
def test_the_environment_lists_allowed_urls_only_where_the_file_lets_it(
    tmp_path: Path, said: str, environ: dict[str, str], patterns: tuple[str, ...]
) -> None:
    text = f"allowed_urls=https://a/.*\nuse_env_allowed_urls={said}\n"
    assert read(tmp_path, text, **environ).allowed_urls == patterns


def test_a_pattern_of_the_environment_that_is_none_is_refused_by_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^TS_ALLOWED_URLS: expected regular expressions .*got '\('"):
        read(tmp_path, "use_env_allowed_urls=true", TS_ALLOWED_URLS="(")


@pytest.mark.parametrize(
    ("changes", "named", "here", "folder", "mode"),
    [
        ({}, None, False, None, "none"),
        ({}, None, True, "here", "watch"),
        ({}, "named", True, "named", "watch"),
        ({"model_store": Path("store")}, None, True, "store", "none"),
        ({"model_store": Path("store"), "models": ("a.mar",)}, None, True, "store", "none"),
        ({"model_store": Path("store"), "models": ("ALL",)}, None, True, "store", "watch"),
        ({"model_store": Path("store"), "models": ("all",), "model_control_mode": "none"}, None, True, "store", "none"),
        ({"model_control_mode": "poll"}, "named", False, "named", "poll"),
        ({"model_control_mode": "explicit"}, None, True, "here", "explicit"),
    ],
)
def test_a_folder_is_watched_where_all_of_it_is_to_be_served(
    tmp_path: Path, changes: dict[str, Any], named: str | None, here: bool, folder: str | None, mode: str
) -> None:
    default = tmp_path / "here"
    if here:
        default.mkdir()
    found = with_repository(Settings(**changes), Path(named) if named else None, default)
    assert (found.model_store.name if found.model_store else None, found.model_control_mode) == (folder, mode)
    assert found.enable_model_api == (mode == "explicit")

"""Who wins: command line > environment > config.properties > what a snapshot remembers > default, and what is said about it."""

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.server.configuration.keys import HONOURED, NOT_HONOURED
from ringserve.server.configuration.properties import parse_properties, write_properties
from ringserve.server.configuration.sources import SHOWN_FIELDS, configure, remembered_properties, shown
from ringserve.server.settings import Address, ConfigError, Settings

SNAPSHOT = "20261120071355459-startup.cfg"
STATE = '{"name":"x","modelCount":0,"models":{}}'
LETTING = "enable_envvars_config=true\n"


class Place:
    """A folder with what a server would find there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.snapshot: Path | None = None

    def write(self, name: str, text: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    def remember(self, text: str) -> None:
        self.snapshot = self.write(f"logs/config/{SNAPSHOT}", text)

    def configure(self, told: Mapping[str, object] | None = None, /, **environ: str) -> Settings:
        return configure(told or {}, environ, self.folder, lambda logs: self.snapshot)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


WHO = ("snapshot", "file", "environment", "flag")
VALUES = {"snapshot": 1, "file": 2, "environment": 3, "flag": 4}
ORIGINS = {
    "snapshot": f"snapshot {SNAPSHOT}",
    "file": "config.properties:2",
    "environment": "TS_FRONTENDS",
    "flag": "--frontends",
}


@pytest.mark.parametrize("speaking", range(16))
def test_the_strongest_who_says_anything_wins(place: Place, speaking: int) -> None:
    speakers = [who for at, who in enumerate(WHO) if speaking >> at & 1]
    place.write("config.properties", LETTING + ("frontends=2\n" if "file" in speakers else ""))
    if "snapshot" in speakers:
        place.remember("frontends=1\n")
    environ = {"TS_FRONTENDS": "3"} if "environment" in speakers else {}
    settings = place.configure({"--frontends": 4} if "flag" in speakers else {}, **environ)
    strongest = speakers[-1] if speakers else None
    assert settings.frontends == (VALUES[strongest] if strongest else Settings().frontends)
    assert settings.origins["frontends"] == (ORIGINS[strongest] if strongest else "default")
    assert settings.warnings == ()
    # Everybody who lost against somebody is told.
    lines = [note for note in settings.notes if "frontends" in note]
    assert len(lines) == max(0, len(speakers) - 1)


def test_a_file_that_is_overridden_is_named_with_its_line(place: Place) -> None:
    place.write("config.properties", LETTING + "frontends=2\njob_queue_size=5\nenable_model_api=true\n")
    settings = place.configure({"--frontends": 4, "--enable-model-api": True}, TS_JOB_QUEUE_SIZE="6")
    assert settings.notes == (
        "config.properties:2: frontends is overridden by --frontends.",
        "config.properties:3: job_queue_size is overridden by TS_JOB_QUEUE_SIZE.",
    )


def test_what_a_snapshot_remembered_and_lost_is_said_a_line_a_key(place: Place) -> None:
    place.write("config.properties", "job_queue_size=5\n")
    place.remember(
        f"job_queue_size=50\nfrontends=1\nkeystore_pass=old\ninitial_worker_port=9500\nmodel_snapshot={STATE}\n"
    )
    settings = place.configure({"--frontends": 2})
    assert (settings.job_queue_size, settings.frontends, settings.initial_worker_port) == (5, 2, 9500)
    assert settings.model_snapshot == STATE
    assert settings.notes == (
        f"snapshot {SNAPSHOT} remembers job_queue_size=50; what counts is 5 (config.properties:1).",
        f"snapshot {SNAPSHOT} remembers frontends=1; what counts is 2 (--frontends).",
    )


@pytest.mark.parametrize("key", ["disable_token_authorization", "insecure", "enable_model_api"])
def test_a_door_that_was_open_is_not_opened_by_memory(place: Place, key: str) -> None:
    place.remember(f"{key}=true\njob_queue_size=5\n")
    settings = place.configure()
    assert getattr(settings, key) is False
    assert settings.job_queue_size == 5
    assert settings.notes == (f"snapshot {SNAPSHOT} remembers {key}=true; what counts is the default, false.",)


def test_a_password_that_a_snapshot_remembers_is_not_said(place: Place) -> None:
    place.write("config.properties", "keystore_pass=now\n")
    place.remember("keystore_pass=then\n")
    (note,) = place.configure().notes
    assert note == f"snapshot {SNAPSHOT} remembers keystore_pass=***; what counts is *** (config.properties:1)."


@pytest.mark.parametrize("by", ["--ts-config", "TS_CONFIG_FILE"])
def test_a_file_that_is_named_gets_the_models_of_its_own_snapshot_and_nothing_else(place: Place, by: str) -> None:
    path = place.write("mine.properties", "job_queue_size=5\n")
    place.remember(f"tsConfigFile={path}\nfrontends=3\nmodel_snapshot={STATE}\n")
    told, environ = ({by: "mine.properties"}, {}) if by.startswith("--") else ({}, {by: "mine.properties"})
    settings = place.configure(told, **environ)
    assert (settings.model_snapshot, settings.frontends, settings.job_queue_size) == (STATE, Settings().frontends, 5)
    assert settings.origins["model_snapshot"] == f"snapshot {SNAPSHOT}"
    assert settings.origins["config_file"] == by
    assert settings.notes == (f"snapshot {SNAPSHOT} remembers frontends=3; what counts is the default, 0.",)


def test_a_file_that_is_named_gets_nothing_of_the_snapshot_of_another(place: Place) -> None:
    path = place.write("mine.properties", "job_queue_size=5\n")
    place.remember(f"tsConfigFile=/other\nfrontends=3\nmodel_snapshot={STATE}\n")
    settings = place.configure({"--ts-config": "mine.properties"})
    assert (settings.model_snapshot, settings.frontends) == ("", Settings().frontends)
    assert settings.notes == (f"snapshot {SNAPSHOT} is not restored: it was not made under {path}.",)


def test_a_file_with_models_of_its_own_is_served_as_it_says(place: Place) -> None:
    path = place.write("mine.properties", 'load_models=all\nmodel_snapshot={"models":{}}\n')
    place.remember(f"tsConfigFile={path}\nmodel_snapshot={STATE}\n")
    settings = place.configure({"--ts-config": "mine.properties"})
    assert settings.model_snapshot == '{"models":{}}'
    assert settings.notes == ("mine.properties:1: load_models has no effect: the same file says model_snapshot.",)


def test_without_snapshots_none_is_looked_for(place: Place) -> None:
    def newest(logs: Path) -> Path | None:
        raise AssertionError("looked")

    settings = configure({"--no-config-snapshots": True}, {}, place.folder, newest)
    assert settings.snapshots is False
    assert settings.origins["snapshots"] == "--no-config-snapshots"


def test_snapshots_are_looked_for_where_the_logs_are(place: Place) -> None:
    looked: list[Path] = []
    configure({}, {"LOG_LOCATION": "here"}, place.folder, looked.append)
    assert looked == [place.folder / "here"]


@pytest.mark.parametrize(
    "text", ["job_queue_size=none\n", "frontends=999\n", "model_store=\n", "\\", "=\n", "metrics_mode=x\n"]
)
def test_a_snapshot_never_keeps_a_server_from_starting(place: Place, text: str) -> None:
    place.remember(text)
    settings = place.configure()
    assert all(
        line.startswith(f"snapshot {SNAPSHOT}: ") and line.endswith(": not restored.") for line in settings.warnings
    )
    assert {name for name, origin in settings.origins.items() if origin != "default"} == set()


def test_a_snapshot_that_cannot_be_read_is_named(place: Place) -> None:
    place.remember("")
    assert place.snapshot is not None
    place.snapshot.write_bytes(b"\xff\xfe")
    (warning,) = place.configure().warnings
    assert warning.startswith(f"snapshot {place.snapshot} cannot be read and is not restored: ")


def test_of_a_snapshot_of_torchserve_what_has_a_meaning_is_taken(place: Place) -> None:
    place.remember(
        "#Saving snapshot\n#Fri Nov 20 07:13:55 UTC 2026\nversion=0.12.0\ntsConfigFile=logs/config/x.cfg\npython=/usr/bin/python\n"
        "model_store=/models\nworkflow_store=/models\nnumber_of_gpu=0\nload_models=all\nasync_logging=true\n"
        f"inference_address=http\\://127.0.0.1\\:9080\nmodel_snapshot={STATE}\n"
    )
    settings = place.configure()
    assert settings.model_store == Path("/models")
    assert settings.number_of_gpu is None, "there may be others now"
    assert settings.inference_address == Address("127.0.0.1", 9080)
    assert settings.carried == {"workflow_store": "/models", "async_logging": "true"}
    assert (settings.warnings, settings.notes) == ((), ())


@pytest.mark.parametrize(
    ("told", "file", "mode"),
    [
        ({}, "", "watch"),
        ({"--model-store": Path("other")}, "", "none"),
        ({"--models": ("a.mar",)}, "", "none"),
        ({"--models": ("all",)}, "", "watch"),
        ({"--model-control-mode": "explicit"}, "", "explicit"),
        ({}, "model_store=other\n", "none"),
    ],
)
def test_whether_a_folder_is_watched_is_remembered_for_that_folder_only(
    place: Place, told: dict[str, object], file: str, mode: str
) -> None:
    place.remember("model_store=/repository\nmodel_control_mode=watch\n")
    if file:
        place.write("config.properties", file)
    assert place.configure(told).model_control_mode == mode


@pytest.mark.parametrize(
    ("told", "store", "mode"),
    [
        ({}, "./model_repository", "./model_repository"),
        ({"--model-repository": Path("r")}, "--model-repository", "--model-repository"),
        ({"--model-store": Path("s"), "--models": ("all",)}, "--model-store", "by load_models"),
        ({"--model-store": Path("s")}, "--model-store", "default"),
    ],
)
def test_the_folder_and_what_follows_from_it_know_who_said_so(
    place: Place, told: dict[str, object], store: str, mode: str
) -> None:
    (place.folder / "model_repository").mkdir()
    origins = place.configure(told).origins
    assert (origins["model_store"], origins["model_control_mode"]) == (store, mode)


def test_a_file_in_the_folder_is_read_unless_one_is_named(place: Place) -> None:
    place.write("config.properties", "job_queue_size=5\n")
    place.write("named.properties", "job_queue_size=6\n")
    found = place.configure()
    assert (found.job_queue_size, found.config_file) == (5, place.folder / "config.properties")
    assert place.configure({"--ts-config": "named.properties"}).job_queue_size == 6
    assert place.configure({"--ts-config": "config.properties"}, TS_CONFIG_FILE="named.properties").job_queue_size == 6
    assert place.configure({"--ts-config": "named.properties"}, TS_CONFIG_FILE="").job_queue_size == 6


def test_nothing_said_is_the_defaults(place: Place) -> None:
    assert place.configure() == replace(Settings(), model_control_mode="none")
    assert set(place.configure().origins) == set(SHOWN_FIELDS)


def test_a_file_that_is_not_there_or_not_text_is_named(place: Place) -> None:
    with pytest.raises(ConfigError, match=r"^--ts-config file not found: none$"):
        place.configure({"--ts-config": Path("none")})
    (place.folder / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"^--ts-config file binary cannot be read: "):
        place.configure(TS_CONFIG_FILE="binary")
    with pytest.raises(ConfigError, match=r"^--ts-config file not found: \.$"):
        place.configure(TS_CONFIG_FILE=".")


def test_a_byte_order_mark_belongs_to_no_key(place: Place) -> None:
    place.write("config.properties", "\ufeffjob_queue_size=5")
    assert place.configure().job_queue_size == 5


def test_environment_variables_are_filled_in_anywhere_in_a_value(place: Place) -> None:
    place.write("config.properties", "model_store=$$ROOT$$/of/$$WHO_1$$/$x")
    assert place.configure(ROOT="/models", WHO_1="me").model_store == Path("/models/of/me/$x")


# ---- the environment


def test_the_environment_counts_only_where_the_file_lets_it(place: Place) -> None:
    settings = place.configure(TS_JOB_QUEUE_SIZE="7")
    assert settings.job_queue_size == Settings().job_queue_size
    assert settings.notes == ("TS_JOB_QUEUE_SIZE has no effect: no file says enable_envvars_config=true.",)


def test_a_bad_value_of_the_environment_is_refused_by_its_name(place: Place) -> None:
    place.write("config.properties", LETTING)
    with pytest.raises(
        ConfigError, match=r"^TS_JOB_QUEUE_SIZE: expected a whole number from 1 to 2147483647, got 'x'$"
    ):
        place.configure(TS_JOB_QUEUE_SIZE="x")


@pytest.mark.parametrize(
    ("variable", "text", "field", "value"),
    [
        ("TS_TOKEN_EXPIRATION_TIME_MIN", "5", "token_expiration_min", 5.0),
        ("TS_DISABLE_TOKEN_AUTHORIZATION", "true", "disable_token_authorization", True),
        ("TS_LOAD_MODELS", "a,b", "models", ("a", "b")),
        ("TS_INFERENCE_ADDRESS", "http://127.0.0.1:1", "inference_address", Address("127.0.0.1", 1)),
        ("TS_DRAIN_DELAY", "3", "drain_delay_s", 3),
    ],
)
def test_a_variable_sets_what_its_key_sets(place: Place, variable: str, text: str, field: str, value: object) -> None:
    place.write("config.properties", LETTING)
    settings = place.configure(**{variable: text})
    assert getattr(settings, field) == value
    assert settings.origins[field] == variable


@pytest.mark.parametrize("variable", ["TS_MODELS", "TS_MODEL_SNAPSHOT", "TS_METRIC_TIME_INTERVAL", "TS_IO_RATIO"])
def test_what_torchserve_keeps_to_the_file_no_variable_sets(place: Place, variable: str) -> None:
    place.write("config.properties", LETTING)
    assert place.configure(**{variable: "x"}) == place.configure()


def test_a_variable_that_is_nearly_one_is_reported(place: Place) -> None:
    place.write("config.properties", LETTING)
    (warning,) = place.configure(TS_JOB_QUEUE_SISE="7", TS_BENCHMARK="1", TS_MY_OWN="x", TS_CONFIG_FIL="x").warnings
    assert warning == "TS_JOB_QUEUE_SISE is not a setting and is ignored. Did you mean TS_JOB_QUEUE_SIZE?"


def test_a_variable_without_effect_is_named(place: Place) -> None:
    place.write("config.properties", LETTING)
    (warning,) = place.configure(TS_DEBUG="true").warnings
    assert warning.startswith("TS_DEBUG is not served by this version: ")


@pytest.mark.parametrize(("text", "let", "warns"), [("oip", False, True), ("true", False, False), ("true", True, True)])
def test_the_open_inference_protocol_has_a_word_of_its_own(place: Place, text: str, let: bool, warns: bool) -> None:
    place.write("config.properties", LETTING if let else "")
    assert bool(place.configure(TS_OPEN_INFERENCE_PROTOCOL=text).warnings) is warns


@pytest.mark.parametrize(
    ("said", "environ", "patterns"),
    [
        ("true", {"TS_ALLOWED_URLS": "https://b/.*"}, ("https://b/.*",)),
        ("true", {"TS_ALLOWED_URLS": ""}, ()),
        ("true", {}, ("https://a/.*",)),
        ("false", {"TS_ALLOWED_URLS": "https://b/.*"}, ("https://a/.*",)),
    ],
)
@pytest.mark.parametrize("let", ["", LETTING])
def test_the_environment_lists_allowed_urls_only_where_the_file_lets_it(
    place: Place, said: str, environ: dict[str, str], patterns: tuple[str, ...], let: str
) -> None:
    place.write("config.properties", f"{let}allowed_urls=https://a/.*\nuse_env_allowed_urls={said}\n")
    assert place.configure(**environ).allowed_urls == patterns


def test_a_pattern_of_the_environment_that_is_none_is_refused_by_its_name(place: Place) -> None:
    place.write("config.properties", "use_env_allowed_urls=true")
    with pytest.raises(ConfigError, match=r"^TS_ALLOWED_URLS: expected regular expressions .*got '\('"):
        place.configure(TS_ALLOWED_URLS="(")


def test_folders_of_the_environment_count_whatever_the_file_says(place: Place) -> None:
    settings = place.configure(LOG_LOCATION="l", METRICS_LOCATION="m", TEMP=str(place.folder))
    assert (settings.log_location, settings.metrics_location) == (Path("l"), Path("m"))
    assert settings.temp_dir == place.folder
    assert place.configure(LOG_LOCATION="", METRICS_LOCATION="", TEMP="").origins == place.configure().origins


def test_a_temp_that_is_no_folder_is_refused_in_torchserves_words(place: Place) -> None:
    with pytest.raises(ConfigError, match=r"^Invalid temp directory: /none, please check TEMP environment variable\.$"):
        place.configure(TEMP="/none")


def test_a_flag_is_bounded_as_its_key_is(place: Place) -> None:
    with pytest.raises(ConfigError, match=r"^--frontends: expected a whole number from 0 to 256, got '999'$"):
        place.configure({"--frontends": 999})


# ---- what is remembered


def test_a_signed_url_is_not_remembered_and_its_next_signature_is_no_difference(place: Place) -> None:
    place.write("config.properties", "load_models=https://u:p@h/a.mar?sig=1\n")
    pairs = remembered_properties(place.configure())
    assert dict(pairs) == {"load_models": "https://***@h/a.mar?***"}
    place.write("config.properties", "load_models=https://u:p@h/a.mar?sig=2\n")
    place.remember(write_properties(pairs))
    after = place.configure()
    assert (after.models, after.notes) == (("https://u:p@h/a.mar?sig=2",), ())


def test_what_was_said_is_remembered_and_comes_back(place: Place) -> None:
    place.write(
        "config.properties",
        "job_queue_size=5\nkeystore_pass=secret\nvmargs=-Dpass=secret\nworkflow_store=w\nzz=secret\n",
    )
    told: dict[str, object] = {"--models": ("a.mar", "b=b.mar"), "--model-store": Path("store"), "--frontends": 2}
    before = place.configure(told, LOG_LOCATION="logs")
    pairs = remembered_properties(before)
    assert dict(pairs) == {
        "job_queue_size": "5",
        "frontends": "2",
        "load_models": "a.mar,b=b.mar",
        "model_store": str(Path("store").absolute()),
        "workflow_store": "w",
    }
    (place.folder / "config.properties").unlink()
    place.remember(write_properties(pairs))
    after = place.configure()
    assert (after.job_queue_size, after.frontends, after.models) == (5, 2, ("a.mar", "b=b.mar"))
    assert dict(remembered_properties(after)) == dict(pairs)
    assert (after.warnings, after.notes) == ((), ())


def test_what_follows_from_something_else_is_not_remembered_for_itself(place: Place) -> None:
    everything = place.configure({"--model-store": Path("s"), "--models": ("all",)})
    assert everything.model_control_mode == "watch"
    assert dict(remembered_properties(everything)).keys() == {"model_store", "load_models"}
    explicit = place.configure({"--model-store": Path("s"), "--model-control-mode": "explicit"})
    assert explicit.enable_model_api
    assert dict(remembered_properties(explicit)).keys() == {"model_store", "model_control_mode"}


values = st.fixed_dictionaries(
    {},
    optional={
        "job_queue_size": st.integers(1, 2**31 - 1).map(str),
        "token_expiration_min": st.floats(1e-3, 1e9).map(repr),
        "access_log": st.sampled_from(["true", "false"]),
        "default_service_handler": st.text(
            st.characters(codec="utf-8", categories=["L", "P", "S"], exclude_characters="$"), min_size=1
        ),
        "blacklist_env_vars": st.sampled_from(["A.*", "a|b", r"\w+"]),
        "model_store": st.sampled_from(["/a b", "/\u00e9=:#"]),
        "models": st.just('{"m":{"1.0":{"batchSize":4}}}'),
    },
)


@given(values)
def test_whatever_is_remembered_is_read_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, said: dict[str, str]
) -> None:
    place = Place(tmp_path_factory.getbasetemp())
    place.write("config.properties", write_properties(said.items()))
    first = place.configure()
    pairs = remembered_properties(first)
    place.write("config.properties", write_properties(pairs))
    again = place.configure()
    fields = [name for name in SHOWN_FIELDS if name != "config_file"]
    assert [getattr(again, name) for name in fields] == [getattr(first, name) for name in fields]
    assert remembered_properties(again) == pairs
    assert [each.key for each in parse_properties(write_properties(pairs))] == [key for key, _ in pairs]


texts = st.text(st.sampled_from("09-+.eE:/{}[]\",'$ *(\\\n\0\u0661aXtrue"), max_size=12)


@given(st.lists(st.tuples(st.sampled_from([*HONOURED, *sorted(NOT_HONOURED)]), texts), max_size=4), st.booleans())
def test_any_file_is_either_understood_or_refused_in_sentences(
    tmp_path_factory: pytest.TempPathFactory, said: list[tuple[str, str]], remembered: bool
) -> None:
    place = Place(tmp_path_factory.getbasetemp())
    text = write_properties(said)
    place.write("config.properties", "" if remembered else text)
    if remembered:
        place.remember(text)
    try:
        settings = place.configure()
    except ConfigError as error:
        assert not remembered, "a snapshot never keeps a server from starting"
        keys = {key for key, _ in said}
        assert all(line.split(": ")[1] in keys for line in str(error).splitlines() if line.startswith("/"))
    else:
        assert settings.origins.keys() == set(SHOWN_FIELDS)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("keystore_pass", "secret", "***"),
        ("models", ("https://u:p@h/a.mar", "b"), "https://***@h/a.mar,b"),
        ("models", ("a=https://u:p@ss@h/a.mar?X-Amz-Signature=5", "b"), "a=https://***@h/a.mar?***,b"),
        ("keystore_pass", "", ""),
        ("cache_dir", None, ""),
        ("access_log", True, "true"),
        ("models", ("a", "b=c"), "a,b=c"),
        ("cors_allowed_origin", "a\nb", r"a\nb"),
        ("model_snapshot", "x" * 500, "x" * 100 + "..."),
        ("token_expiration_min", 0.25, "0.25"),
    ],
)
def test_a_value_is_shown_short_on_one_line_and_without_secrets(name: str, value: Any, text: str) -> None:
    assert shown(name, value) == text


def test_a_configuration_is_a_file_and_no_pipe(place: Place) -> None:
    os.mkfifo(place.folder / "pipe")
    with pytest.raises(ConfigError, match=r"^--ts-config file pipe cannot be read: .*got a named pipe"):
        place.configure({"--ts-config": Path("pipe")})

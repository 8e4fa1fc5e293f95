"""`ringserve config show`: every setting, who says it, and nothing that nobody is to read."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ringserve.server.configuration.keys import HONOURED
from ringserve.tools.cli.config import config

BEYOND_THE_KEYS = {"snapshots", "config_file", "log_location", "metrics_location", "temp_dir"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for variable in ("TS_CONFIG_FILE", "LOG_LOCATION", "METRICS_LOCATION", "TEMP"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "models").mkdir()
    text = "model_store=models\n\njob_queue_size=7\nkeystore_pass=hunter2\nvmargs=-Xmx4g\n"
    (tmp_path / "config.properties").write_text(text)
    return tmp_path


def show(*arguments: str) -> Result:
    return CliRunner().invoke(config, ["show", *arguments])


def test_every_setting_is_shown(folder: Path) -> None:
    shown = dict(line.split("=", 1) for line in show().stdout.splitlines())
    assert set(shown) == {*HONOURED, *BEYOND_THE_KEYS}
    assert shown["job_queue_size"] == "7"
    assert shown["inference_address"] == "http://127.0.0.1:8080"
    assert shown["access_log"] == "true"
    assert shown["number_of_gpu"] == ""


def test_who_said_what_is_shown(folder: Path) -> None:
    result = show("--origin", "--models", "a.mar", "--dt")
    rows = {line.split()[0]: line.split()[1:] for line in result.stdout.splitlines()}
    assert rows["job_queue_size"] == ["7", "config.properties:3"]
    assert rows["load_models"] == ["a.mar", "--models"]
    assert rows["disable_token_authorization"] == ["true", "--disable-token-auth"]
    assert rows["frontends"] == ["0", "default"]


def test_programs_get_values_with_their_types(folder: Path) -> None:
    values = json.loads(show("--json", "--models", "a.mar").stdout)
    assert values["job_queue_size"] == 7
    assert values["load_models"] == ["a.mar"]
    assert values["model_store"] == "models"
    assert values["number_of_gpu"] is None
    assert values["models"] == {}
    assert values["management_address"] == "http://127.0.0.1:8081"
    with_origins = json.loads(show("--json", "--origin").stdout)
    assert with_origins["job_queue_size"] == {"value": 7, "origin": "config.properties:3"}
    assert set(with_origins) == set(values)


@pytest.mark.parametrize("flags", [(), ("--origin",), ("--json",), ("--json", "--origin")])
def test_a_password_is_not_shown(folder: Path, flags: tuple[str, ...]) -> None:
    result = show(*flags)
    assert result.exit_code == 0
    assert "hunter2" not in result.output
    assert "***" in result.stdout


@pytest.mark.parametrize("flags", [(), ("--origin",), ("--json",)])
def test_a_password_in_a_url_is_not_shown(folder: Path, flags: tuple[str, ...]) -> None:
    result = show(*flags, "--models", "m=https://me:hunter3@example.com/m.mar")
    assert "hunter3" not in result.output
    assert "m=https://***@example.com/m.mar" in result.stdout


def test_what_a_start_would_warn_about_goes_to_stderr(folder: Path) -> None:
    result = show()
    assert result.stderr.startswith("config.properties:5: vmargs is for the Java virtual machine")
    assert "vmargs" not in result.stdout


def test_a_start_that_would_be_refused_is_shown_and_named(folder: Path) -> None:
    result = show("--model-store", "none")
    assert result.exit_code == 1
    assert "model_store=none" in result.stdout
    assert result.stderr.endswith("--model-store directory not found: none\n")


def test_a_value_that_cannot_be_used_is_all_that_is_said(folder: Path) -> None:
    (folder / "config.properties").write_text("job_queue_size=x\nfrontends=-1\n")
    result = show()
    assert (result.exit_code, result.stdout) == (1, "")
    assert [line.split(":")[1] for line in result.stderr.splitlines()] == ["1", "2"]


def test_a_zero_is_something_said(folder: Path) -> None:
    (folder / "config.properties").write_text("model_store=models\ndrain_timeout=9\n")
    rows = show("--origin", "--drain-timeout", "0").stdout
    assert ["drain_timeout", "0", "--drain-timeout"] in [line.split() for line in rows.splitlines()]


def test_flags_that_contradict_each_other_are_wrong_usage(folder: Path) -> None:
    assert show("--model-store", "a", "--model-repository", "b").exit_code == 2

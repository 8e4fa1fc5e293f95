"""TorchServe's command line as far as no server starts: which words mean it, and what it says in which case."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ringserve.server.pid_file import PID_FILE_NAME
from ringserve.tools.cli import torchserve as module
from ringserve.tools.cli.main import main
from ringserve.tools.cli.serve import start_words
from ringserve.tools.cli.torchserve import in_full

Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """A command under either name, in a folder and with a temporary folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for name in ("TS_CONFIG_FILE", "TEMP", "LOG_LOCATION"):
        monkeypatch.delenv(name, raising=False)

    def invoke(*words: object, name: str = "torchserve") -> Result:
        return CliRunner().invoke(main, [str(word) for word in words], prog_name=name)

    return invoke


@pytest.mark.parametrize("name", ["torchserve", "ringserve"])
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--stop"], 0, "TorchServe is not currently running.\n"),
        (["--stop", "--foreground"], 0, "TorchServe is not currently running.\n"),
        (["--foreground"], 1, "Missing mandatory parameter --model-store\n"),
        (["--start"], 1, "Missing mandatory parameter --model-store\n"),
        (["--model-store", "none"], 1, "--model-store directory not found: none\n"),
        (["--ts-config", "none"], 1, "--ts-config file not found: none\n"),
        (["--model-store", ".", "--workflow-store", "none"], 1, "--workflow-store directory not found: none\n"),
    ],
)
def test_flags_where_ours_has_a_word_are_torchserves(
    run: Run, name: str, words: list[str], code: int, said: str
) -> None:
    result = run(*words, name=name)
    assert (result.exit_code, result.stdout, result.stderr) == (code, said, "")


def test_a_working_directory_that_is_gone_is_named(run: Run, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()
    assert run("--start", "--model-store", str(tmp_path)).stdout.startswith("The working directory cannot be used: ")


@pytest.mark.parametrize("flag", ["--log-config", "--cpp-log-config"])
def test_a_file_that_is_not_there_is_named_in_full(run: Run, flag: str, tmp_path: Path) -> None:
    words = (flag, "none", "--model-store", ".")
    assert run(*words).stdout == f"{flag} file not found: {tmp_path / 'none'}\n"
    assert run("start", *words, name="ringserve").stderr == f"{flag} file not found: {tmp_path / 'none'}\n"


def test_what_is_missing_is_named_in_torchserves_order(run: Run, tmp_path: Path) -> None:
    flags = ["--log-config", "--ts-config", "--model-store", "--workflow-store", "--cpp-log-config"]
    said = [run(*(word for flag in flags[at:] for word in (flag, "none"))).stdout for at in range(3)]
    stores = run("--model-store", ".", "--workflow-store", "none", "--cpp-log-config", "none").stdout
    assert [line.split()[0] for line in (*said, stores)] == flags[:4]
    assert run("--ts-config", ".", "--model-store", ".").stdout == "--ts-config file not found: .\n"


def test_a_stale_pid_file_goes_whatever_is_asked(run: Run, tmp_path: Path) -> None:
    (tmp_path / PID_FILE_NAME).write_text("no number")
    assert run("--version").stdout == "TorchServe Version is 0.12.0\n"
    assert not (tmp_path / PID_FILE_NAME).exists()


def test_the_temporary_folder_must_be_one(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEMP", "/not/there")
    said = "Invalid temp directory: /not/there, please check TEMP environment variable.\n"
    assert run("--model-store", ".").stdout == said


def test_under_its_own_name_nothing_at_all_starts_and_the_version_is_torchserves(run: Run) -> None:
    assert run().stdout == "Missing mandatory parameter --model-store\n"
    assert run("--version").stdout == run("-v").stdout == "TorchServe Version is 0.12.0\n"
    assert run("-v", name="ringserve").stdout.startswith("RingServe, version ")
    assert "Usage: ringserve" in run("--help", name="ringserve").stdout


def test_the_beginning_of_a_flag_is_the_flag_where_only_one_begins_so(run: Run) -> None:
    assert run("--sto", "--fore").stdout == "TorchServe is not currently running.\n"
    assert run("--vers").stdout == "TorchServe Version is 0.12.0\n"
    assert run("--model-s=none", "--nc").stdout == "--model-store directory not found: none\n"
    assert run("--sta", "--sto").exit_code == 2
    assert run("--mod", "none").exit_code == 2
    assert in_full(["--models", "a", "--model-repo", "b", "-v", "--st"]) == [
        *("--models", "a", "--model-repo", "b", "-v", "--st"),
    ]


@pytest.mark.parametrize("words", [["--start", "--stop"], ["--stop", "-v"], ["--start", "--version"]])
def test_only_one_thing_can_be_done(run: Run, words: list[str]) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert "exclude each other" in result.stderr


def test_a_flag_that_is_none_is_wrong_usage_and_the_nearest_is_named(run: Run) -> None:
    result = run("--model-storage", "x")
    assert result.exit_code == 2
    assert "--model-store" in result.stderr


@pytest.mark.parametrize("words", [["--models", "--start"], ["--model-store", "--ncs", "--models", "a"]])
def test_a_flag_is_no_value_of_another_one(run: Run, words: list[str]) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert f"Option '{words[0]}' requires an argument." in result.stderr


def test_our_own_words_are_ours_under_either_name(run: Run) -> None:
    assert run("stop").stdout == "RingServe is not currently running.\n"
    assert run("restart").stderr == "RingServe is not currently running.\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "Stopping TorchServe took too long.\n"),
        (ProcessLookupError(), "TorchServe already stopped.\n"),
        (PermissionError(), "TorchServe already stopped.\n"),
    ],
)
def test_a_stop_that_comes_too_late_or_takes_too_long_says_so(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception, said: str
) -> None:
    def stop_server(patience_s: float | None) -> int | None:
        assert patience_s == 60.0
        raise error

    monkeypatch.setattr(module, "stop_server", stop_server)
    assert run("--stop", "--foreground").stdout == said


def test_a_server_that_runs_is_not_started_again(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("ringserve.server.pid_file.is_server", lambda pid: True)
    (tmp_path / PID_FILE_NAME).write_text(str(os.getpid()))
    result = run("--start", "--model-store", ".")
    assert result.exit_code == 1
    assert result.stdout == "TorchServe is already running, please use torchserve --stop to stop TorchServe.\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["start", "--foreground", "--models", "all"], ["start", "--models", "all"]),
        (["--start", "--models", "a", "b"], ["start", "--models", "a", "b"]),
        (["--models", "a", "--foreground"], ["start", "--models", "a"]),
        (["start", "--ready-fd=7", "--take-over=12", "--as-before", "--ncs"], ["start", "--ncs"]),
    ],
)
def test_what_started_a_server_is_known_without_what_was_meant_once(arguments: list[str], words: list[str]) -> None:
    assert start_words(arguments) == words

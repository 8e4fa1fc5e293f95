"""`ringserve archive`: its flags, what it prints and its exit codes; what it writes is in test_archiver.py."""

import sys
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from ringserve.tools.cli import archive as archive_cli
from ringserve.tools.cli.archive import archive as archive_command

FLAGS = ["--model-name", "m", "--version", "1.0", "--handler", "h.py"]


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a handler."""
    (tmp_path / "h.py").write_text("def handle(data, context): ...")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_prints_the_path() -> None:
    result = CliRunner().invoke(archive_command, [*FLAGS, "--export-path", "out"])
    assert (result.exit_code, result.stdout, result.stderr) == (0, "out/m.mar\n", "")


def test_flags_may_be_shortened_and_files_left_empty_as_scripts_do() -> None:
    empty = ["--serialized-file", "", "--model-file=", "--extra-files", "", "-r", "", "-c", ""]
    result = CliRunner().invoke(archive_command, [*FLAGS, *empty, "--export", "out", "--archive=tgz", "--fo"])
    assert (result.exit_code, result.stdout) == (0, "out/m.tar.gz\n"), result.stderr
    with tarfile.open("out/m.tar.gz") as bundle:
        assert len(bundle.getnames()) == 2


def test_the_command_fails_with_the_sentence_on_stderr() -> None:
    result = CliRunner().invoke(archive_command, [*FLAGS, "--model-name", "a b"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Model name 'a b' contains special characters." in result.stderr


@pytest.mark.parametrize("flags", [[], ["--model-name", "m"], [*FLAGS, "--archive-format", "rar"], [*FLAGS, "--x"]])
def test_wrong_usage_exits_with_2(flags: list[str]) -> None:
    result = CliRunner().invoke(archive_command, flags)
    assert result.exit_code == 2
    assert "Usage: archive" in result.stderr


@pytest.mark.parametrize(("terminal", "shown"), [(True, "Packing 64 MB"), (False, "")])
def test_a_large_archive_shows_how_far_it_is_on_a_terminal_only(
    terminal: bool, shown: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with archive_cli._progress(64 << 20) as advance:
        advance(64 << 20)
    assert shown in capfd.readouterr().err

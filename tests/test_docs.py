"""What the documents say exists: files, flags, make targets, configuration keys and their defaults, sections of model-config.yaml."""

import re
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from ringserve.server.configuration.keys import ALWAYS_SO, HONOURED, IGNORED, RECORDED
from ringserve.server.configuration.sources import configure
from ringserve.server.repository.model_config import parse_model_config
from ringserve.server.settings import Settings
from ringserve.tools.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")])
LINK = re.compile(r"\]\(([^)#]+)\)")
COMMAND = re.compile(r"^\s+ringserve (\w+)(.*)$", re.MULTILINE)
MAKE = re.compile(r"(?:`|^\s*)make ([a-z]+)", re.MULTILINE)
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
SETTING = re.compile(r"^\| `(\w+)` \| (\S+) \|", re.MULTILINE)


def flags_of(*words: str) -> set[str]:
    command: click.Command = main
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    options = [each for each in command.params if isinstance(each, click.Option)]
    return {flag for option in options if not option.hidden for flag in option.opts}


def examples(language: str) -> list[Any]:
    """The fenced blocks of a language on all pages."""
    fence = re.compile(rf"^```{language}\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [pytest.param(text, id=page.name) for page in PAGES for text in fence.findall(page.read_text())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_every_command_shown_takes_the_flags_it_is_shown_with() -> None:
    shown = COMMAND.findall((ROOT / "README.md").read_text())
    assert len(shown) >= 4, "the README shows how to archive, start, look and stop"
    for name, rest in shown:
        assert set(re.findall(r"--[a-z-]+", rest)) <= flags_of(name), f"ringserve {name}"


def test_every_flag_of_torchserve_named_in_the_readme_is_accepted() -> None:
    listed = (ROOT / "README.md").read_text().split("takes `torchserve`'s:")[1].split(". Archives")[0]
    assert set(re.findall(r"--[a-z-]+", listed)) <= flags_of("start")


def test_the_configuration_page_has_every_key_that_is_honoured_with_its_default() -> None:
    assert dict(SETTING.findall(CONFIGURATION)) == {key.name: _shown_default(key.field) for key in HONOURED.values()}


def test_the_configuration_page_has_every_key_without_effect_with_its_reason() -> None:
    for group in IGNORED:
        keys = ", ".join(f"`{name}`" for name in group.keys)
        assert f"| {group.about} | {keys} | {group.reason} |" in CONFIGURATION
    assert all(f"`{name}`" in CONFIGURATION for name in (*ALWAYS_SO, *RECORDED))


def _shown_default(field: str) -> str:
    """As one would write it into the file; `none` where nothing is set."""
    value = getattr(Settings(), field)
    if value is None or value in ((), {}, ""):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def test_the_configuration_page_has_every_flag_of_start_stop_and_status() -> None:
    named = set(re.findall(r"--[a-z][a-z-]+", CONFIGURATION))
    flags = flags_of("start") | flags_of("stop") | flags_of("status") | flags_of("config", "show")
    assert flags <= named
    assert named <= flags | flags_of("archive") | {"--help"}


def test_the_archives_page_has_every_flag_of_archive_and_run() -> None:
    named = set(re.findall(r"--[a-z][a-z-]+", (ROOT / "docs" / "archives.md").read_text()))
    flags = {flag for flag in flags_of("archive") | flags_of("run") if flag.startswith("--")}
    assert flags <= named
    assert named <= flags | flags_of("start") | {"--json"}


@pytest.mark.parametrize("text", examples("yaml"))
def test_every_example_of_a_model_config_is_accepted_and_says_something(text: str) -> None:
    assert parse_model_config(yaml.safe_load(text)) != parse_model_config({})


@pytest.mark.parametrize("text", examples("properties"))
def test_every_example_of_a_config_properties_is_understood(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.properties"
    path.write_text(text)
    assert configure({"--ts-config": path}, {}, tmp_path).warnings == ()


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in MAKE.findall(page.read_text())}
    assert {"serve", "test", "check", "bench", "docs"} <= named | targets
    assert named <= targets


def test_every_python_file_of_the_server_is_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    packages = sorted(path.parent.relative_to(ROOT).as_posix() for path in ROOT.glob("server/*/__init__.py"))
    for folder in ("shm", "server", *packages):
        for path in sorted((ROOT / folder).glob("*.py")):
            if path.name not in ("__init__.py", "shm_errors.py", "testing.py", "forms.py"):
                # The files of the repository stand in a table, by their names alone.
                name = f"`{path.name}`" if folder == "server/repository" else f"{folder}/{path.name}"
                assert name in text, name

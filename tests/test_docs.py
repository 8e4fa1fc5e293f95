"""What the documents say exists: files, flags, make targets, configuration keys."""

import re
from pathlib import Path

import click
import pytest

from ringserve.tools.cli.main import main

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*/*.md")])
LINK = re.compile(r"\]\(([^)#]+)\)")
COMMAND = re.compile(r"^\s+ringserve (\w+)(.*)$", re.MULTILINE)
MAKE = re.compile(r"(?:`|^\s*)make ([a-z]+)", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_to_one(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text()) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_every_command_shown_takes_the_flags_it_is_shown_with() -> None:
    shown = COMMAND.findall((ROOT / "README.md").read_text())
    assert len(shown) >= 4, "the README shows how to archive, start, look and stop"
    for name, rest in shown:
        command = main.commands[name]
        flags = {flag for option in command.params if isinstance(option, click.Option) for flag in option.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= flags, f"ringserve {name}"


def test_every_flag_of_torchserve_named_in_the_readme_is_accepted() -> None:
    start = main.commands["start"]
    flags = {flag for option in start.params if isinstance(option, click.Option) for flag in option.opts}
    listed = (ROOT / "README.md").read_text().split("takes `torchserve`'s:")[1].split(". Archives")[0]
    assert set(re.findall(r"--[a-z-]+", listed)) <= flags


def test_every_make_target_named_exists() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {name for page in PAGES for name in MAKE.findall(page.read_text())}
    assert {"serve", "test", "check", "bench", "docs"} <= named | targets
    assert named <= targets


def test_every_python_file_of_the_request_path_is_in_the_architecture() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    for folder in ("shm", "server"):
        for path in sorted((ROOT / folder).glob("*.py")):
            if path.name not in ("__init__.py", "shm_errors.py", "testing.py", "forms.py"):
                assert f"{folder}/{path.name}" in text, path.name

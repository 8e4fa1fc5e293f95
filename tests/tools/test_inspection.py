"""`ringserve archive inspect`: what a server would make of an archive, and that nothing of it is run."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest
from click.testing import CliRunner

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.archive import contents_of, extract
from ringserve.server.repository.contents import FolderContents
from ringserve.tools.archiver import ArchiveRequest, write_archive
from ringserve.tools.cli.archive import archive as command
from ringserve.tools.handler_lookup import SOURCE_BYTES_MAX, Lookup, look_up

CONFIG = """
batchSize: 4
maxBatchDelay: soon
backend: python
inputs:
  - {name: x, dtype: float32, shape: [3]}
outputs:
  - {name: y, dtype: float32, shape: [2]}
"""
NO_CLASS = "expected a function handle, or one class in h.py, found the classes: none"
NO_MODULE = "the archive holds no module {}, and no default handler has this name"
MARK = "raise RuntimeError('the code of a model was run')\n"


def make(work: Path, archive_format: str = "default", handler: str = "class H: ...", config: str = CONFIG) -> Path:
    (work / "h.py").write_text(f"{handler}\n{MARK}")
    (work / "model-config.yaml").write_text(config)
    (work / "w.pt").write_bytes(bytes(1000))
    return write_archive(
        ArchiveRequest(
            model_name="m",
            version="2.0",
            handler=str(work / "h.py"),
            serialized_file=work / "w.pt",
            config_file=work / "model-config.yaml",
            export_path=work / "out",
            archive_format=archive_format,
            force=True,
        )
    )


def inspected(path: Path) -> tuple[int, dict[str, Any]]:
    result = CliRunner().invoke(command, ["inspect", str(path), "--json"])
    found: dict[str, Any] = json.loads(result.stdout)
    return result.exit_code, found


@pytest.mark.parametrize("archive_format", ["default", "zip-store", "tgz", "no-archive"])
def test_everything_of_an_archive_is_told_in_every_format(tmp_path: Path, archive_format: str) -> None:
    path = make(tmp_path, archive_format)
    before = sorted(tmp_path.rglob("*"))
    code, found = inspected(path)
    assert sorted(tmp_path.rglob("*")) == before
    assert (code, found["problems"]) == (0, [])
    assert found["model"] == {"name": "m", "version": "2.0"}
    assert found["manifest"]["model"]["serializedFile"] == "w.pt"
    assert (found["backend"], found["config"]["batchSize"]) == ("python", 4)
    assert found["inputs"] == [{"name": "x", "dtype": "float32", "shape": [3]}]
    assert found["outputs"] == [{"name": "y", "dtype": "float32", "shape": [2]}]
    assert found["handler"] == {"handler": "h.py", "kind": "class", "file": "h.py", "entry": "H", "line": 1}
    assert {each["name"]: each["bytes"] for each in found["members"]}["w.pt"] == 1000
    assert found["ignored"] == ["model-config.yaml: maxBatchDelay: expected an integer of 32 bits, got 'soon'; ignored"]


def test_people_read_the_same(tmp_path: Path) -> None:
    result = CliRunner().invoke(command, ["inspect", str(make(tmp_path))])
    assert (result.exit_code, result.stderr) == (0, "")
    for line in (
        "Model m version 2.0, runtime python",
        "Configuration (model-config.yaml)",
        "Backend python",
        "  input  x float32[3]",
        "  output y float32[2]",
        "Handler h.py: the class H, h.py line 1",
        "            1,000  w.pt",
        "Ignored",
    ):
        assert line in result.stdout.splitlines()


def rewrite(path: Path, **files: str | None) -> None:
    with ZipFile(path) as old:
        kept = {name: old.read(name) for name in old.namelist()}
    with ZipFile(path, "w") as new:
        for name, data in kept.items():
            if files.get(name, "") is not None:
                new.writestr(name, files.get(name) or data)


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no zip": (lambda path: path.write_bytes(b"none"), "Archive m.mar: expected a zip archive, got 4 bytes"),
    "no handler": (lambda path: rewrite(path, **{"h.py": None}), "names handler 'h.py', but the archive holds no file"),
    "no manifest": (
        lambda path: rewrite(path, **{"MAR-INF/MANIFEST.json": None}),
        "MAR-INF/MANIFEST.json is missing, and nothing else names a handler",
    ),
    "a word of ours": (
        lambda path: rewrite(path, **{"model-config.yaml": "batching: sometimes"}),
        "model-config.yaml: batching: expected one of adaptive, fill, got 'sometimes'",
    ),
    "a mode that is not served": (
        lambda path: rewrite(path, **{"model-config.yaml": "continuousBatching: true"}),
        "model-config.yaml: continuousBatching: True is not served by this version",
    ),
    "no YAML": (lambda path: rewrite(path, **{"model-config.yaml": "a: ["}), "expected YAML"),
    "syntax": (lambda path: rewrite(path, **{"h.py": "def handle(:"}), "handler h.py: h.py, line 1: "),
    "two classes": (
        lambda path: rewrite(path, **{"h.py": "class A: ...\nclass B: ..."}),
        "handler h.py: expected one class in h.py, found the classes: A, B",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_what_a_server_would_refuse_is_said_and_is_the_exit_code(tmp_path: Path, kind: str) -> None:
    path = make(tmp_path)
    breaking, sentence = BROKEN[kind]
    breaking(path)
    code, found = inspected(path)
    assert code == 1
    assert any(sentence in problem for problem in found["problems"]), found["problems"]
    shown = CliRunner().invoke(command, ["inspect", str(path)])
    assert shown.exit_code == 1
    assert f"A server would refuse it\n  {found['problems'][0]}" in shown.stdout


def test_a_path_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    assert CliRunner().invoke(command, ["inspect", str(tmp_path / "gone.mar")]).exit_code == 2


def test_a_model_may_be_called_like_the_word(tmp_path: Path) -> None:
    (tmp_path / "h.py").write_text("")
    flags = ["--model-name", "inspect", "-v", "1", "--handler", str(tmp_path / "h.py"), "--export-path", str(tmp_path)]
    assert CliRunner().invoke(command, flags).exit_code == 0
    assert (tmp_path / "inspect.mar").is_file()


@pytest.mark.parametrize(
    ("handler", "source", "found"),
    [
        ("h.py", "def handle(data, context): ...", Lookup("h.py", "function", "h.py", "handle", 1)),
        ("h", "async def handle(d, c): ...", Lookup("h", "function", "h.py", "handle", 1)),
        ("h:run", "\nrun = print", Lookup("h:run", "function", "h.py", "run", 2)),
        ("h:run", "from x import go as run", Lookup("h:run", "function", "h.py", "run", 1)),
        ("h:H", "class H: ...\nclass I: ...", Lookup("h:H", "class", "h.py", "H", 1)),
        ("src/h.py", "import json\nclass H: ...", Lookup("src/h.py", "class", "h.py", "H", 2)),
        ("h", "from x import *", Lookup("h", "unknown", "h.py")),
        ("h", "if True:\n    class H: ...", Lookup("h", "unknown", "h.py")),
        ("pack", "", Lookup("pack", "function", "pack/__init__.py", "handle", 1)),
        ("pack.inner", "", Lookup("pack.inner", "class", "pack/inner.py", "I", 1)),
        (
            "base_handler",
            "",
            Lookup("base_handler", "default handler", entry="ts.torch_handler.base_handler"),
        ),
        ("json", "", Lookup("json", entry="json")),
        ("h", "", Lookup("h", file="h.py", problem=NO_CLASS)),
        (
            "gone_for_good",
            "",
            Lookup("gone_for_good", problem=NO_MODULE.format("gone_for_good")),
        ),
        (":run", "", Lookup(":run", problem='The manifest\'s handler ":run" names no module.')),
        ("__main__", "", Lookup("__main__", problem=NO_MODULE.format("__main__"))),
        ("__init__", "", Lookup("__init__", problem=NO_MODULE.format("__init__"))),
        ("distributed", "", Lookup("distributed", problem=NO_MODULE.format("distributed"))),
        ("h:run", "run, other = print, 1", Lookup("h:run", "function", "h.py", "run", 1)),
        ("h", "match 1:\n    case _:\n        class H: ...", Lookup("h", "unknown", "h.py")),
        ("h", "x = 1is 1\ndef handle(data, context): ...", Lookup("h", "function", "h.py", "handle", 2)),
        ("h", "\0", Lookup("h", file="h.py", problem="h.py: source code string cannot contain null bytes")),
        ("h", "x = " + "-" * 100_000, Lookup("h", file="h.py", problem="h.py cannot be read as Python: MemoryError")),
        ("h", f"x = '{'x' * SOURCE_BYTES_MAX}'\ndef handle(d, c): ...", Lookup("h", "unknown", "h.py")),
    ],
)
def test_a_handler_is_found_by_reading(tmp_path: Path, handler: str, source: str, found: Lookup) -> None:
    (tmp_path / "h.py").write_text(source)
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack/__init__.py").write_text("def handle(data, context): ...")
    (tmp_path / "pack/inner.py").write_text("class I: ...")
    assert look_up(handler, FolderContents(tmp_path)) == found


def test_whatever_is_in_a_model_can_be_shown_and_no_terminal_obeys_it(tmp_path: Path) -> None:
    path = make(tmp_path, "no-archive")
    config = "a: !!binary aGVsbG8=\nb: !!set {x}\nc: {!!binary aGk=: 2020-01-01, 1.5: .nan}\n"
    (path / "model-config.yaml").write_text(f"{config}d: {'[' * 90}{']' * 90}")
    manifest = json.loads((path / "MAR-INF/MANIFEST.json").read_text())
    deep: list[Any] = []
    for _ in range(400):
        deep = [deep]
    (path / "MAR-INF/MANIFEST.json").write_text(json.dumps({**manifest, "deep": deep, "said": "\x9b2J"}))
    Path(os.fsdecode(os.fsencode(path) + b"/\xff\x1b[2J")).write_text("")
    code, found = inspected(path)
    assert (code, found["problems"]) == (0, [])
    assert (found["config"]["a"], found["config"]["b"]) == ("b'hello'", ["x"])
    assert found["config"]["c"] == {"b'hi'": "2020-01-01", "1.5": None}
    assert "\\udcff\x1b[2J" in {each["name"] for each in found["members"]}
    result = CliRunner().invoke(command, ["inspect", str(path)])
    assert result.exit_code == 0, result.output
    assert not {"\x1b", "\x9b"} & set(result.stdout)
    assert r'"said": "\x9b2J"' in result.stdout


def test_an_archive_that_is_replaced_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path)
    contents = contents_of(path)
    rewrite(path, **{"h.py": None})
    with pytest.raises(InvalidModel, match=r"Archive m\.mar, member 'h\.py': expected the members of a moment ago"):
        contents.read("h.py", 10)


def test_reading_in_place_and_unpacking_agree_about_the_files(tmp_path: Path) -> None:
    for archive_format in ("default", "tgz"):
        path = make(tmp_path, archive_format)
        extract(path, tmp_path / archive_format)
        unpacked = {
            each.relative_to(tmp_path / archive_format).as_posix(): each.stat().st_size
            for each in (tmp_path / archive_format).rglob("*")
            if each.is_file()
        }
        assert {each["name"]: each["bytes"] for each in inspected(path)[1]["members"]} == unpacked

"""From the table to archives on disk, each by the tool that its row names."""

import json
import shutil
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ringserve.tools.archiver import ArchiveRequest, write_archive
from tests.e2e.suite.cases import Archive, Tool

ARCHIVES = Path(__file__).parent / "archives"
MANIFEST = "MAR-INF/MANIFEST.json"
COMMAND_S_MAX = 60
JUNK = "__pycache__"


def build(archives: Iterable[Archive], store: Path, workshop: Path) -> None:
    """`{store}/{name}.mar` for each of them. The commands run beside each other, as they mostly wait."""
    store.mkdir(parents=True, exist_ok=True)
    commands: list[list[str]] = []
    for archive in archives:
        folder = workshop / archive.name
        _lay_out(archive, folder)
        if archive.tool is Tool.HAND:
            _zip(archive, folder, store / f"{archive.name}.mar")
            continue
        inputs = _inputs(archive, folder)
        if archive.tool in (Tool.COMMAND, Tool.THEIR_COMMAND):
            commands.append(_command(archive, inputs, store))
        elif archive.tool is Tool.OURS:
            paths = {name: Path(path) for name, path in inputs.items() if name.endswith("_file")}
            rest = {name: path for name, path in inputs.items() if name not in paths}
            write_archive(ArchiveRequest(export_path=store, runtime=archive.runtime, **paths, **rest))  # type: ignore[arg-type]
        else:
            _by_their_package(inputs, store, archive.runtime)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(_run, commands))
    for archive in archives:
        if archive.manifest and archive.tool is not Tool.HAND:
            _change_manifest(store / f"{archive.name}.mar", archive)


def _lay_out(archive: Archive, folder: Path) -> None:
    """A folder of its own with the archive's files, as its author has them."""
    source = ARCHIVES / (archive.source or archive.name)
    folder.mkdir(parents=True)
    if source.is_dir():
        shutil.copytree(source, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns(JUNK))
    elif source.suffix == ".py":
        shutil.copy(source, folder)
    for name, text in archive.written.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if archive.config:
        (folder / "model-config.yaml").write_text(archive.config)


def _handler(archive: Archive) -> str:
    if archive.handler:
        return archive.handler
    return archive.source if archive.source.endswith(".py") else "handler.py"


def _inputs(archive: Archive, folder: Path) -> dict[str, str]:
    """What every archiver is told, by the names that they share."""
    inputs = {
        "model_name": archive.name,
        "version": archive.version,
        "handler": str(folder / _handler(archive)),
        "serialized_file": archive.serialized_file and str(folder / archive.serialized_file),
        "model_file": archive.model_file and str(folder / archive.model_file),
        "config_file": str(folder / "model-config.yaml") if archive.config else "",
        "extra_files": str(folder / "extra") if (folder / "extra").is_dir() else "",
    }
    return {name: value for name, value in inputs.items() if value}


def _command(archive: Archive, inputs: dict[str, str], store: Path) -> list[str]:
    scripts = Path(sys.executable).parent
    own = [str(scripts / "ringserve"), "archive"]
    words = own if archive.tool is Tool.COMMAND else [str(scripts / "torch-model-archiver")]
    for name, value in {**inputs, "runtime": archive.runtime, "export_path": str(store)}.items():
        words += [f"--{name.replace('_', '-')}", value]
    return words


def _run(words: list[str]) -> None:
    subprocess.run(words, check=True, capture_output=True, timeout=COMMAND_S_MAX)


def _by_their_package(inputs: dict[str, str], store: Path, runtime: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it leaves files open
        from model_archiver import ModelArchiverConfig
        from model_archiver.model_packaging import generate_model_archive

        generate_model_archive(ModelArchiverConfig(export_path=str(store), runtime=runtime, **inputs))


def _manifest(archive: Archive, model: dict[str, Any], rest: dict[str, Any]) -> str:
    changed = {**model, **archive.manifest}
    return json.dumps({**rest, "model": {key: value for key, value in changed.items() if value is not None}})


def _zip(archive: Archive, folder: Path, target: Path) -> None:
    """As people pack them who have no archiver, and as old ones did."""
    model: dict[str, Any] = {
        "modelName": archive.name,
        "modelVersion": archive.version,
        "handler": _handler(archive),
    }
    if archive.config:
        model["configFile"] = "model-config.yaml"
    with zipfile.ZipFile(target, "w") as bundle:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and JUNK not in path.parts:
                bundle.write(path, path.relative_to(folder).as_posix())
        bundle.writestr(MANIFEST, _manifest(archive, model, {"runtime": archive.runtime}))


def _change_manifest(path: Path, archive: Archive) -> None:
    """The same archive with another manifest."""
    before = path.rename(path.with_suffix(".before"))
    with zipfile.ZipFile(before) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            content: bytes | str = old.read(entry)
            if entry.filename == MANIFEST:
                rest = json.loads(content)
                content = _manifest(archive, rest.pop("model"), rest)
            new.writestr(entry, content)
    before.unlink()

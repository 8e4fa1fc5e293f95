"""Writes model archives: what `torch-model-archiver` writes, with the same flags, members and manifest keys.

request ──▶ members: name in the archive -> file on disk ──▶ default, zip-store | tgz | no-archive
"""

import glob
import json
import logging
import os
import re
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from gzip import GzipFile
from importlib.metadata import version as installed_version
from io import BytesIO
from pathlib import Path, PurePosixPath
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.archive_plan import ArchiveLimits, plan
from ringserve.server.repository.manifest import MANIFEST_PATH, RUNTIMES

ARCHIVE_FORMATS = ("default", "tgz", "no-archive", "zip-store")
ZIP_METHODS = {"default": ZIP_DEFLATED, "zip-store": ZIP_STORED}
SUFFIXES = {"default": ".mar", "zip-store": ".mar", "tgz": ".tar.gz", "no-archive": ""}
assert SUFFIXES.keys() == set(ARCHIVE_FORMATS)

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-.]*")
EXCLUDED_FOLDERS = ("__MACOSX", "__pycache__")
FILE_MODE = 0o644
FOLDER_MODE = 0o755

# Handlers the server brings itself: they are named, not packed.
PYTHON_HANDLERS = (
    "base_handler",
    "text_classifier",
    "image_classifier",
    "object_detector",
    "image_segmenter",
    "dali_image_classifier",
    "vllm_handler",
    "trt_llm_handler",
)
LSP_HANDLERS = ("BaseHandler", "TorchScriptHandler")

log = logging.getLogger(__name__)


class ArchiveError(Exception):
    """The archive cannot be written; the sentence says why and names the file or flag."""


@dataclass(frozen=True, slots=True)
class ArchiveRequest:
    """What to pack. `extra_files` is a comma list of files, folders (packed by content) and wildcards."""

    model_name: str
    version: str
    handler: str
    serialized_file: Path | None = None
    model_file: Path | None = None
    extra_files: str | None = None
    requirements_file: Path | None = None
    config_file: Path | None = None
    runtime: str = "python"
    export_path: Path = Path()
    archive_format: str = "default"
    force: bool = False


def write_archive(request: ArchiveRequest, created_at: datetime | None = None) -> Path:
    """Write the archive and return its path. It appears whole under its name, or not at all.

    `created_at` is the time the manifest tells, now by default. Raises `ArchiveError`.
    """
    _check(request)
    created_at = created_at or datetime.now()
    members = _members(request)
    manifest = _manifest_json(request, created_at)
    target = request.export_path / f"{request.model_name}{SUFFIXES[request.archive_format]}"
    try:
        _check_target(request, target)
        if request.archive_format == "no-archive":
            _write_folder(target, members, manifest)
        elif request.archive_format == "tgz":
            _write_tgz(target, request.model_name, members, manifest, created_at)
        else:
            _write_zip(target, ZIP_METHODS[request.archive_format], members, manifest, created_at)
    except OSError as error:
        raise ArchiveError(f"{target} cannot be written: {error}") from error
    return target


def _check(request: ArchiveRequest) -> None:
    if not MODEL_NAME.fullmatch(request.model_name):
        hint = f"The allowed regular expression for a model name is: ^{MODEL_NAME.pattern}$"
        raise ArchiveError(f"Model name {request.model_name!r} contains special characters.\n{hint}")
    if not request.version:
        raise ArchiveError("Model version is not defined.")
    if not request.handler:
        raise ArchiveError("Handler is not defined.")
    if request.runtime not in RUNTIMES:
        raise ArchiveError(f"Runtime {request.runtime!r} is not one of {', '.join(RUNTIMES)}.")
    if request.archive_format not in ARCHIVE_FORMATS:
        raise ArchiveError(f"Archive format {request.archive_format!r} is not one of {', '.join(ARCHIVE_FORMATS)}.")


def _check_target(request: ArchiveRequest, target: Path) -> None:
    try:
        request.export_path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        hint = "Point to a valid export-path directory."
        raise ArchiveError(f"Given export-path {request.export_path} is not a directory. {hint}") from error
    if not target.exists():
        return
    if not request.force:
        hint = "Please specify --force/-f option to overwrite the model archive output file."
        raise ArchiveError(f"{target} already exists.\n{hint}")
    # Overwriting must not cost anybody a folder that merely has the model's name.
    if target.is_dir() and not (request.archive_format == "no-archive" and (target / MANIFEST_PATH).is_file()):
        raise ArchiveError(f"{target} already exists and is a folder that holds no model; it will not be overwritten.")


def _members(request: ArchiveRequest) -> dict[str, Path]:
    """Every file to pack, by its name in the archive."""
    members: dict[str, Path] = {}
    for flag, source in (
        ("--model-file", request.model_file),
        ("--serialized-file", request.serialized_file),
        ("--handler", _handler_file(request)),
        ("--requirements-file", request.requirements_file),
        ("--config-file", request.config_file),
    ):
        if source is None:
            continue
        if not source.is_file():
            raise ArchiveError(f"File does not exist: {source} (given as {flag})")
        _add(members, source.name, source)
    for name, source in _extra_files(request.extra_files or ""):
        _add(members, name, source)
    return members


def _add(members: dict[str, Path], name: str, source: Path) -> None:
    if name.casefold() == str(MANIFEST_PATH).casefold():
        raise ArchiveError(f"{source} would replace the archive's own {MANIFEST_PATH}.")
    other = members.setdefault(name, source)
    if not other.samefile(source):
        raise ArchiveError(f"{other} and {source} would both be {name} in the archive.")


def _handler_file(request: ArchiveRequest) -> Path | None:
    """The file behind `path[.py][:function]`; None for a handler that the server brings itself."""
    path = request.handler.partition(":")[0]
    known, suffixes = (LSP_HANDLERS, (".so", ".dylib")) if request.runtime == "LSP" else (PYTHON_HANDLERS, (".py",))
    if path in known:
        return None
    return Path(path if path.endswith(suffixes) else path + suffixes[0])


def _extra_files(comma_list: str) -> Iterator[tuple[str, Path]]:
    for pattern in filter(None, (item.strip() for item in comma_list.split(","))):
        # A file whose own name holds a bracket is meant literally.
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        if not matches and not re.search(r"[*?\[\]]", pattern):
            raise ArchiveError(f"File does not exist: {pattern} (given as --extra-files)")
        if not matches:
            log.warning("Given wildcard pattern did not match any file: %s", pattern)
        for match in map(Path, matches):
            if match.is_dir():
                yield from _folder_files(match, PurePosixPath(), frozenset())
            else:
                yield match.name, match


def _folder_files(folder: Path, prefix: PurePosixPath, parents: frozenset[Path]) -> Iterator[tuple[str, Path]]:
    """The files below `folder`, links followed. `parents` are the real folders on the way, to see a link that loops."""
    real = folder.resolve()
    if real in parents:
        raise ArchiveError(f"{folder} links to a folder that holds it.")
    for entry in sorted(folder.iterdir()):
        if entry.is_dir():
            if entry.name not in EXCLUDED_FOLDERS and not entry.name.startswith("."):
                yield from _folder_files(entry, prefix / entry.name, parents | {real})
        elif entry.is_file():
            yield str(prefix / entry.name), entry
        else:
            raise ArchiveError(f"{entry} is neither a file nor a folder.")


def _manifest_json(request: ArchiveRequest, created_at: datetime) -> bytes:
    model = {
        "modelName": request.model_name,
        "serializedFile": request.serialized_file,
        "handler": request.handler.rsplit("/", 1)[-1],
        "modelFile": request.model_file,
        "modelVersion": request.version,
        "requirementsFile": request.requirements_file,
        "configFile": request.config_file,
    }
    manifest = {
        "createdOn": created_at.strftime("%d/%m/%Y %H:%M:%S"),
        "runtime": request.runtime,
        "model": {
            key: value.name if isinstance(value, Path) else value for key, value in model.items() if value is not None
        },
        "archiverVersion": installed_version("ringserve"),
    }
    return json.dumps(manifest, indent=2).encode()


@contextmanager
def _staged_file(target: Path) -> Iterator[Path]:
    """A hidden file beside `target` that takes its name when the block succeeds."""
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    os.close(descriptor)
    staged = Path(name)
    try:
        yield staged
        staged.chmod(FILE_MODE)
        staged.replace(target)
    finally:
        staged.unlink(missing_ok=True)


def _write_zip(target: Path, method: int, members: Mapping[str, Path], manifest: bytes, created_at: datetime) -> None:
    with _staged_file(target) as staged:
        # Files older than the zip format's first year, 1980, are dated to it instead of refused.
        with ZipFile(staged, "w", method, strict_timestamps=False) as bundle:
            head = ZipInfo(str(MANIFEST_PATH), created_at.timetuple()[:6])
            head.external_attr = FILE_MODE << 16
            bundle.writestr(head, manifest, method)
            for name, source in sorted(members.items()):
                bundle.write(source, name)
        _check_servable(target.name, staged)


def _check_servable(archive_name: str, staged: Path) -> None:
    """Say now what the server would say at registration: names that collide, or more than it unpacks."""
    with ZipFile(staged) as bundle:
        try:
            plan(archive_name, staged.stat().st_size, bundle.infolist(), ArchiveLimits())
        except InvalidModel as error:
            raise ArchiveError(f"No server would unpack this archive. {error}") from error


def _write_tgz(target: Path, root: str, members: Mapping[str, Path], manifest: bytes, created_at: datetime) -> None:
    written_s = int(created_at.timestamp())
    with (
        _staged_file(target) as staged,
        staged.open("wb") as file,
        GzipFile("", "wb", fileobj=file, mtime=written_s) as stream,  # without a name: the staged file's is random
        tarfile.open(fileobj=stream, mode="w", dereference=True) as bundle,
    ):
        head = tarfile.TarInfo(f"{root}/{MANIFEST_PATH}")
        head.size, head.mode, head.mtime = len(manifest), FILE_MODE, written_s
        bundle.addfile(head, BytesIO(manifest))
        for name, source in sorted(members.items()):
            bundle.add(source, f"{root}/{name}", recursive=False, filter=_without_owner)


def _without_owner(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """Who packed a model is nobody's business, and would make equal archives differ."""
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


def _write_folder(target: Path, members: Mapping[str, Path], manifest: bytes) -> None:
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        model = staging / "new"
        (model / MANIFEST_PATH).parent.mkdir(parents=True)
        model.chmod(FOLDER_MODE)
        (model / MANIFEST_PATH).write_bytes(manifest)
        for name, source in sorted(members.items()):
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, model / name)
        if target.exists():
            target.rename(staging / "old")
        model.rename(target)
    finally:
        shutil.rmtree(staging, ignore_errors=True)

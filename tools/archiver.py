"""Writes model archives: what `torch-model-archiver` writes, with the same flags, members and manifest keys.

request ──▶ members: name in the archive -> file on disk ──▶ default, zip-store | tgz | no-archive

Equal files and flags give equal bytes: members are sorted, and have no times, owners or modes of their machine. What differs is
`createdOn` in the manifest, which is now, or SOURCE_DATE_EPOCH (https://reproducible-builds.org/specs/source-date-epoch/).
"""

import glob
import json
import logging
import os
import re
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from gzip import GzipFile
from importlib.metadata import version as installed_version
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.archive_plan import ArchiveLimits, Judge, Listed
from ringserve.server.repository.manifest import MANIFEST_PATH, RUNTIMES

ARCHIVE_FORMATS = ("default", "tgz", "no-archive", "zip-store")
ZIP_METHODS = {"default": ZIP_DEFLATED, "zip-store": ZIP_STORED}
SUFFIXES = {"default": ".mar", "zip-store": ".mar", "tgz": ".tar.gz", "no-archive": ""}
assert SUFFIXES.keys() == set(ARCHIVE_FORMATS)

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_\-.]*")
EXCLUDED_FOLDERS = ("__MACOSX", "__pycache__")
EPOCH = "SOURCE_DATE_EPOCH"
MEMBER_TIME = (1980, 1, 1, 0, 0, 0)  # of every file: the first that a zip can tell
MEMBER_TIME_S = 315_532_800
CHUNK_BYTES = 1 << 20
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

# Told how many bytes there are to pack, it gives what to call with each number of them that is done.
Progress = Callable[[int], AbstractContextManager[Callable[[int], object]]]


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


def write_archive(
    request: ArchiveRequest, created_at: datetime | None = None, progress: Progress | None = None
) -> Path:
    """Write the archive and return its path. It appears whole under its name, or not at all.

    `created_at` is the time the manifest tells: by default SOURCE_DATE_EPOCH where the environment has it, else now. Raises
    `ArchiveError`.
    """
    _check(request)
    members = members_of(request)
    manifest = json.dumps(manifest_of(request, created_at or _creation_time()), indent=2).encode()
    target = request.export_path / f"{request.model_name}{SUFFIXES[request.archive_format]}"
    try:
        _check_target(request, target)
        total_bytes = sum(source.stat().st_size for source in members.values())
        with progress(total_bytes) if progress is not None else nullcontext(_unheard) as advance:
            if request.archive_format == "no-archive":
                _write_folder(target, members, manifest, advance)
            elif request.archive_format == "tgz":
                _write_tgz(target, request.model_name, members, manifest, advance)
            else:
                _write_zip(target, ZIP_METHODS[request.archive_format], members, manifest, advance)
    except OSError as error:
        raise ArchiveError(f"{target} cannot be written: {error}") from error
    return target


def _unheard(_bytes: int) -> None:
    pass


def _creation_time() -> datetime:
    """Raises `ArchiveError`."""
    said = os.environ.get(EPOCH)
    if not said:
        return datetime.now()
    try:
        return datetime.fromtimestamp(int(said), UTC)
    except (ValueError, OverflowError, OSError):
        raise ArchiveError(f"{EPOCH}: expected seconds since 1970, got {said!r}") from None


def _check(request: ArchiveRequest) -> None:
    if not MODEL_NAME.fullmatch(request.model_name):
        hint = f"The allowed regular expression filter for model name is: ^{MODEL_NAME.pattern}$"
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


def members_of(request: ArchiveRequest) -> dict[str, Path]:
    """Every file to pack, by its name in the archive. Raises `ArchiveError`."""
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


def manifest_of(request: ArchiveRequest, created_at: datetime) -> dict[str, Any]:
    """What MAR-INF/MANIFEST.json says."""
    model = {
        "modelName": request.model_name,
        "serializedFile": request.serialized_file,
        "handler": request.handler.rsplit("/", 1)[-1],
        "modelFile": request.model_file,
        "modelVersion": request.version,
        "requirementsFile": request.requirements_file,
        "configFile": request.config_file,
    }
    return {
        "createdOn": created_at.strftime("%d/%m/%Y %H:%M:%S"),
        "runtime": request.runtime,
        "model": {
            key: value.name if isinstance(value, Path) else value for key, value in model.items() if value is not None
        },
        "archiverVersion": installed_version("ringserve"),
    }


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


def _copy(source: Path, output: IO[bytes], bytes_expected: int, advance: Callable[[int], object]) -> None:
    """Raises `OSError`, also for a file that is changed while it is packed."""
    copied_bytes = 0
    with source.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            copied_bytes += len(chunk)
            output.write(chunk)
            advance(len(chunk))
    if copied_bytes != bytes_expected:
        raise OSError(f"{source} changed from {bytes_expected} to {copied_bytes} bytes while it was packed")


def _write_zip(
    target: Path, method: int, members: Mapping[str, Path], manifest: bytes, advance: Callable[[int], object]
) -> None:
    with _staged_file(target) as staged:
        with ZipFile(staged, "w", method) as bundle:
            bundle.writestr(_zip_entry(str(MANIFEST_PATH), method, len(manifest)), manifest)
            for name, source in sorted(members.items()):
                entry = _zip_entry(name, method, source.stat().st_size)
                with bundle.open(entry, "w") as output:
                    _copy(source, output, entry.file_size, advance)
        _check_servable(target.name, staged, members)


def _zip_entry(name: str, method: int, size_bytes: int) -> ZipInfo:
    entry = ZipInfo(name, MEMBER_TIME)
    entry.compress_type = method
    entry.external_attr = (stat.S_IFREG | FILE_MODE) << 16
    entry.create_system = 3  # Unix, wherever this runs
    entry.file_size = size_bytes  # whether 32 bits are enough is decided before it is written
    return entry


def _check_servable(archive_name: str, staged: Path, members: Mapping[str, Path]) -> None:
    """Say now what the server would say at registration: names that collide, or more than it unpacks."""
    judge = Judge(archive_name, staged.stat().st_size, ArchiveLimits())
    try:
        for name, source in {str(MANIFEST_PATH): None, **members}.items():
            judge.admit(Listed(name, stat.S_IFREG, source.stat().st_size if source is not None else 0, name))
        judge.check_sizes()
    except InvalidModel as error:
        raise ArchiveError(f"No server would unpack this archive. {error}") from error


def _write_tgz(
    target: Path, root: str, members: Mapping[str, Path], manifest: bytes, advance: Callable[[int], object]
) -> None:
    with _staged_file(target) as staged:
        with (
            staged.open("wb") as file,
            GzipFile("", "wb", fileobj=file, mtime=0) as stream,  # without a name: the staged file's is random
            tarfile.open(fileobj=stream, mode="w") as bundle,
        ):
            bundle.addfile(_tar_entry(f"{root}/{MANIFEST_PATH}", len(manifest)), BytesIO(manifest))
            for name, source in sorted(members.items()):
                with source.open("rb") as file_in:
                    entry = _tar_entry(f"{root}/{name}", os.fstat(file_in.fileno()).st_size)
                    bundle.addfile(entry, cast(IO[bytes], _Counted(file_in, advance)))
        _check_servable(target.name, staged, members)


class _Counted:
    """A file whose reader somebody watches."""

    def __init__(self, file: IO[bytes], advance: Callable[[int], object]) -> None:
        self._file = file
        self._advance = advance

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self._advance(len(data))
        return data


def _tar_entry(name: str, size_bytes: int) -> tarfile.TarInfo:
    """Without an owner: who packed a model is nobody's business, and would make equal archives differ."""
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode, entry.mtime = size_bytes, FILE_MODE, MEMBER_TIME_S
    return entry


def _write_folder(target: Path, members: Mapping[str, Path], manifest: bytes, advance: Callable[[int], object]) -> None:
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        model = staging / "new"
        (model / MANIFEST_PATH).parent.mkdir(parents=True)
        model.chmod(FOLDER_MODE)
        (model / MANIFEST_PATH).write_bytes(manifest)
        for name, source in sorted(members.items()):
            (model / name).parent.mkdir(parents=True, exist_ok=True)
            with (model / name).open("wb") as output:
                _copy(source, output, source.stat().st_size, advance)
            (model / name).chmod(FILE_MODE)
        old = target.rename(staging / "old") if target.exists() else None
        try:
            model.rename(target)
        except OSError:
            if old is not None:
                old.rename(target)
            raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)

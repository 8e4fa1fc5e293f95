"""What a server would make of an archive or a folder, without unpacking it, starting one, or running any code of the model."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ringserve.protocol.errors import InvalidModel, RingServeError
from ringserve.protocol.tensor import TensorSpec
from ringserve.server.registration import Registration, make_version
from ringserve.server.repository import model_config as model_config_module
from ringserve.server.repository.archive import contents_of
from ringserve.server.repository.config_yaml import FILE_BYTES_MAX, parse_mapping
from ringserve.server.repository.contents import Contents, FolderContents
from ringserve.server.repository.manifest import Manifest, read_manifest
from ringserve.server.repository.model_config import HANDLER, ModelConfig, parse_model_config
from ringserve.server.repository.store import UnpackedModel, fallback_name, model_in
from ringserve.server.settings import Settings
from ringserve.tools.handler_lookup import Lookup, look_up

TORCHSCRIPT = "torchscript"
NESTED_MAX = 100  # what is deeper is not shown; YAML and JSON may be nested further than those who print them go


@dataclass(slots=True)
class Inspection:
    """`problems` are what a server refuses it for, in the order of its checks; `ignored` what it says and goes on without. `members` are
    the bytes of every file by its path."""

    path: Path
    file_bytes: int | None
    members: dict[str, int] = field(default_factory=dict)
    manifest: Manifest | None = None
    config: ModelConfig | None = None
    handler: Lookup | None = None
    ignored: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """For programs; every key is always there."""
        manifest, config, handler = self.manifest, self.config, self.handler
        signature = None if config is None else config.signature
        return {
            "path": _plain(str(self.path)),
            "bytes": self.file_bytes,
            "model": None if manifest is None else {"name": manifest.model_name, "version": manifest.model_version},
            "manifest": None if manifest is None or manifest.missing else _plain(manifest.raw),
            "config": None if config is None else _plain(config.raw),
            "backend": None if config is None else config.backend,
            "inputs": [] if signature is None else [_spec(each) for each in signature.inputs],
            "outputs": [] if signature is None else [_spec(each) for each in signature.outputs],
            "handler": None if handler is None else _found(handler),
            "members": [{"name": _plain(name), "bytes": size} for name, size in self.members.items()],
            "ignored": self.ignored,
            "problems": self.problems,
        }


def _plain(value: Any, nested_left: int = NESTED_MAX) -> Any:
    """What a manifest or a configuration says, as JSON can say it: YAML has bytes, sets and keys of any kind."""
    if nested_left < 0:
        return "..."
    if isinstance(value, dict):
        return {str(_plain(key)): _plain(each, nested_left - 1) for key, each in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(each, nested_left - 1) for each in value]
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if value is None or isinstance(value, bool | int | float):
        return value
    return str(value)


def _spec(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "dtype": spec.dtype, "shape": list(spec.shape)}


def _found(handler: Lookup) -> dict[str, Any]:
    return {
        "handler": handler.handler,
        "kind": None if handler.problem else handler.kind,
        "file": handler.file,
        "entry": handler.entry,
        "line": handler.line,
    }


def inspect(path: Path) -> Inspection:
    """Never raises for what is in the file: that is among the problems. Raises `OSError` when it cannot be read."""
    if path.is_dir():
        path = model_in(path)
        found = Inspection(path, None)
        contents: Contents = FolderContents(path)
        found.members = dict(_files(path))
    else:
        found = Inspection(path, path.stat().st_size)
        try:
            archive = contents_of(path)
        except RingServeError as error:
            found.problems.append(error.message)
            return found
        contents = archive
        found.members = {name: each.size_bytes for name, each in archive.members.items() if not each.is_folder}
    with _listening(found.ignored):
        _judge(found, contents, fallback_name(path))
    return found


def _files(folder: Path) -> Iterator[tuple[str, int]]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            yield path.relative_to(folder).as_posix(), path.stat().st_size


def _judge(found: Inspection, contents: Contents, name_if_absent: str) -> None:
    """Do what a registration does. Each step that fails ends those that need it."""
    with _noted(found):
        found.manifest = read_manifest(contents, name_if_absent)
    if found.manifest is None:
        return
    with _noted(found):
        found.config = _config(contents, found.manifest)
    if found.config is not None:
        with _noted(found):
            unpacked = UnpackedModel(found.manifest, found.config, found.path, temporary=False)
            make_version(0, Registration(str(found.path), initial_workers=1), unpacked, Settings())
    backend = HANDLER if found.config is None else found.config.backend
    if backend != TORCHSCRIPT and not found.manifest.missing and found.manifest.runtime != "LSP":
        found.handler = look_up(found.manifest.handler, contents, takes_default=backend == HANDLER)
        if found.handler.problem is not None:
            found.problems.append(f"handler {found.handler}")


def _config(contents: Contents, manifest: Manifest) -> ModelConfig:
    if manifest.config_file is None:
        return ModelConfig()
    name = Path(manifest.config_file).name
    try:
        text = contents.read(manifest.config_file, FILE_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidModel(f"{name} cannot be read: {error.strerror}") from error
    if len(text) > FILE_BYTES_MAX:
        raise InvalidModel(f"{name}: expected at most {FILE_BYTES_MAX} bytes, got more")
    return parse_model_config(parse_mapping(text, name), name)


@contextmanager
def _noted(found: Inspection) -> Iterator[None]:
    try:
        yield
    except RingServeError as error:
        found.problems.append(error.message)


class _Notes(logging.Handler):
    """What the server would log while it reads the configuration."""

    def __init__(self, said: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said.append(record.getMessage())


@contextmanager
def _listening(said: list[str]) -> Iterator[None]:
    notes, logger = _Notes(said), model_config_module.log
    before = logger.propagate
    logger.addHandler(notes)
    logger.propagate = False
    try:
        yield
    finally:
        logger.propagate = before
        logger.removeHandler(notes)

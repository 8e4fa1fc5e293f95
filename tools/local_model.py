"""A model to be run in this process: an archive, unpacked for as long as it is needed; a folder, where it is; or the files that an
archive would be made of, where they are."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from ringserve.backends.contract import LoadedModel
from ringserve.protocol.errors import InvalidModel
from ringserve.server.host import make_work_dir
from ringserve.server.metrics.catalogue import open_catalogue
from ringserve.server.registration import Registration, make_version
from ringserve.server.repository.archive import extract
from ringserve.server.repository.manifest import Manifest, read_manifest
from ringserve.server.repository.model_config import ModelConfig, read_model_config
from ringserve.server.repository.store import UnpackedModel, fallback_name, model_in
from ringserve.server.settings import Settings
from ringserve.tools.archiver import PYTHON_HANDLERS, ArchiveRequest, manifest_of, members_of


@dataclass(frozen=True, slots=True)
class LocalModel:
    """`backend` is the word for `create_backend`."""

    loaded: LoadedModel
    backend: str
    requirements: str | None


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the command line says besides the model. `rows` is the longest batch that will be run."""

    device: str = "cpu"
    envelope: str | None = None
    config_file: Path | None = None
    rows: int = 1
    version: str = "0.0.0"


def names_handler(target: str) -> bool:
    """Whether the target is a handler, as `ringserve archive --handler` takes it, and no archive or folder."""
    path = target.partition(":")[0]
    return path in PYTHON_HANDLERS or (path.endswith(".py") and not Path(target).is_dir())


@contextmanager
def opened(path: Path, wishes: Wishes) -> Iterator[LocalModel]:
    """The model of an archive or a folder. Raises `InvalidModel` and the other errors of a registration, `ConfigError` where
    there is no temporary folder, `OSError`."""
    with contextlib.ExitStack() as stack:
        folder = model_in(path) if path.is_dir() else stack.enter_context(_temporary_folder())
        if not path.is_dir():
            extract(path, folder / "model")
            folder = folder / "model"
        manifest = read_manifest(folder, fallback_name(path))
        packed = folder / manifest.config_file if manifest.config_file else None
        yield _local(folder, manifest, packed, wishes)


@contextmanager
def gathered(request: ArchiveRequest, wishes: Wishes) -> Iterator[LocalModel]:
    """The model that `ringserve archive` would pack. Raises `ArchiveError`, and as `opened`."""
    members = members_of(request)
    folders = {source.parent.resolve() for source in members.values()}
    with contextlib.ExitStack() as stack:
        if len(folders) == 1 and all(source.name == name for name, source in members.items()):
            (folder,) = folders  # all in one place: debuggers know the files by their own paths
        else:
            folder = stack.enter_context(_temporary_folder())
            for name, source in members.items():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).symlink_to(source.resolve())
        raw = manifest_of(request, datetime.now())
        model = raw["model"]
        manifest = Manifest(
            model_name=request.model_name,
            model_version=request.version,
            handler=model["handler"],
            serialized_file=model.get("serializedFile"),
            model_file=model.get("modelFile"),
            requirements_file=model.get("requirementsFile"),
            runtime=request.runtime,
            raw=raw,
        )
        yield _local(folder, manifest, request.config_file, wishes)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """Those of runs that were killed are removed."""
    folder = make_work_dir(Path(tempfile.gettempdir()))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _local(folder: Path, manifest: Manifest, packed_config: Path | None, wishes: Wishes) -> LocalModel:
    """With everything refused that a server refuses."""
    if wishes.config_file is not None and not wishes.config_file.is_file():
        raise InvalidModel(f"--config: expected a file, got {wishes.config_file}")
    config: ModelConfig = read_model_config(wishes.config_file or packed_config)
    unpacked = UnpackedModel(manifest, config, folder, temporary=False)
    settings = Settings(service_envelope=wishes.envelope or "")
    version = make_version(0, Registration(str(folder), initial_workers=1), unpacked, settings)
    kind, _, number = wishes.device.partition(":")
    loaded = LoadedModel(
        name=manifest.model_name,
        version=manifest.model_version,
        model_dir=folder,
        handler=version.options.handler,
        manifest=manifest.raw,
        config=config.raw,
        batch_size_max=max(version.options.batch_size, wishes.rows),
        device=wishes.device,
        gpu_id=int(number or 0) if kind == "cuda" else None,
        server_version=wishes.version,
        signature=config.signature,
        metrics=tuple(
            (each.kind, each.name, each.unit, each.dimensions) for each in open_catalogue(None).handlers.values()
        ),
        envelope=version.options.envelope if wishes.envelope is None else wishes.envelope,
    )
    return LocalModel(loaded, config.backend, manifest.requirements_file)

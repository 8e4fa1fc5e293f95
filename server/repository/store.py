"""The model store: a folder of archives that clients may name, and the folders they are unpacked into.

Names inside the store are served, and what `RemoteSources` may fetch into it.
"""

import os
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ringserve.protocol.errors import Internal, InvalidModel, ModelNotFound
from ringserve.server.model_configuration.fields import NESTED
from ringserve.server.model_configuration.labels import read_labels
from ringserve.server.repository.allowed_urls import REMOTE, shortened, shown_location, shown_url
from ringserve.server.repository.archive import extract, stem
from ringserve.server.repository.config_yaml import read_mapping
from ringserve.server.repository.manifest import MANIFEST_PATH, Manifest, read_manifest
from ringserve.server.repository.mirror import mirror
from ringserve.server.repository.model_config import ModelConfig, parse_model_config
from ringserve.server.repository.remote import Fetched, RemoteSources
from ringserve.server.repository.triton_config import CONFIG_FILE
from ringserve.server.repository.triton_layout import (
    config_in,
    latest_version,
    manifest_of,
    other_versions,
    overrides_of,
    with_backend,
)

OLD_SUFFIX = ".model"  # a gzipped tar's name before there were any .mar; TorchServe still loads them with all others


@dataclass(frozen=True, slots=True)
class UnpackedModel:
    """A model ready for workers. `temporary`: `model_dir` was made for it and goes with `ModelStore.discard`. `labels` are the names
    of its classes, by output."""

    manifest: Manifest
    config: ModelConfig
    model_dir: Path
    temporary: bool
    labels: Mapping[str, list[str]] = field(default_factory=dict)


class ModelStore:
    """Archives below `root`, unpacked below `work_dir`/models. Nothing is touched before the first call. `config_name`: --model-config-name."""

    def __init__(
        self, root: Path, work_dir: Path, remote: RemoteSources | None = None, *, config_name: str = ""
    ) -> None:
        self._root = root
        self._config_name = config_name
        self._models_dir = work_dir / "models"
        self._remote = remote or RemoteSources()

    async def fetch(self, url: str | None, *, s3_sse_kms: bool = False, at_startup: bool = False) -> Fetched:
        """The archive or folder a client means, downloaded into the store when `url` is a remote one. Raises what `locate`
        and `RemoteSources.fetch` raise."""
        if url and REMOTE.match(url):
            return await self._remote.fetch(url, self._root, s3_sse_kms=s3_sse_kms, at_startup=at_startup)
        return Fetched(self.locate(url), shown_location(url or ""))

    def fetched_before(self, name: str, shown: str, *, remote: bool) -> Fetched:
        """What `fetch` has once brought or found. Raises what `locate` raises."""
        fetched = Fetched(self.locate(name), shown, remote)
        if remote:
            self._remote.names.add(fetched.path.name)
        return fetched

    def forget(self, fetched: Fetched) -> None:
        """Unregistered: the file of a model that came by URL goes, any other stays."""
        self._remote.forget(fetched)

    def take_back(self, fetched: Fetched) -> None:
        """The registration failed: what `fetch` downloaded for it goes."""
        self._remote.take_back(fetched)

    def came_by_url(self, name: str) -> bool:
        """Whether a file of the store is a registration's, downloaded or just being downloaded: not one dropped there."""
        return name in self._remote.names

    def locate(self, url: str | None) -> Path:
        """The archive or folder a client means. Raises `ModelNotFound` with TorchServe's sentences."""
        if not url:
            raise ModelNotFound("empty url")
        if ".." in url:
            raise ModelNotFound(f"Relative path is not allowed in url: {shown_url(url)}")
        if REMOTE.match(url):
            raise ModelNotFound(f"Given URL {shown_url(url)} does not match any allowed URL(s)")
        # TorchServe takes the last component of any path: `/any/folder/x.mar` is the store's `x.mar`.
        name = re.split(r"[/\\]", url.rstrip("/"))[-1]
        path = self._root / name
        if name in ("", ".") or not (_is_file(path) or _is_dir(path)):
            raise ModelNotFound(f"Model not found at: {shortened(shown_location(url))}")
        return path

    def entries(self) -> list[str]:
        """The names that `load_models=all` means, sorted. Raises `ModelNotFound` when the store is not a folder."""
        if not _is_dir(self._root):
            raise ModelNotFound(f"Model store not found at: {self._root}")
        return sorted(path.name for path in self._root.iterdir() if _is_model(path))

    def unpack(
        self,
        path: Path,
        name_if_absent: str | None = None,
        *,
        aside: bool = False,
        said: Mapping[str, Any] | None = None,
    ) -> UnpackedModel:
        """Make the model at `path` (from `locate`) ready: archives in a fresh folder, folders where they are, or `aside`, in a mirror of them.

        `name_if_absent` names a model whose manifest does not. With `said`, which is what config.pbtxt says, it is a version in Triton's
        layout (triton_layout.py), served aside with all that lies beside it but the other versions; a folder in that layout without it
        means the latest version there. Raises `InvalidModel` when it cannot be served and
        `Internal` when the disk refuses; neither leaves a folder behind.
        """
        is_folder = _is_dir(path)
        if is_folder and said is None and not _is_file(model_in(path) / MANIFEST_PATH):
            path, said = latest_version(path, self._config_name)
        if is_folder and said is None and not aside:
            return _read_model(model_in(path), name_if_absent, temporary=False)
        try:
            model_dir = self._fresh_dir()
            try:
                if said is not None:
                    mirror(path.parent, model_dir, without=other_versions(path))
                    return _read_version(model_dir, path.parent.name, path.name, said)
                if is_folder:
                    mirror(model_in(path), model_dir)
                else:
                    extract(path, model_dir)
                return _read_model(model_dir, name_if_absent, temporary=True)
            except BaseException:
                shutil.rmtree(model_dir, ignore_errors=True)
                raise
        except OSError as error:
            raise Internal(f"Failed to save model: {path.name} ({error.strerror or error})") from error

    def discard(self, unpacked: UnpackedModel) -> None:
        """Remove what `unpack` made. A folder of the store stays, and a second call does nothing."""
        if unpacked.temporary and unpacked.model_dir.parent == self._models_dir:
            shutil.rmtree(unpacked.model_dir, ignore_errors=True)

    def _fresh_dir(self) -> Path:
        self._models_dir.mkdir(parents=True, exist_ok=True)
        # Workers run what lies below: in a shared temporary folder, somebody else's `models` must fail here (EPERM).
        os.chmod(self._models_dir, 0o700)
        model_dir = self._models_dir / uuid.uuid4().hex
        model_dir.mkdir(mode=0o700)
        return model_dir


def fallback_name(path: Path) -> str:
    """The name at start-up of a model whose manifest has none: the file's, with other than word characters as `_`."""
    return re.sub(r"\W", "_", stem(path.name) or path.name)


def model_in(folder: Path) -> Path:
    """SageMaker's layout is a folder with the model's folder in it, and nothing else."""
    try:
        entries = list(folder.iterdir())
    except OSError:
        return folder  # reading the model says why
    alone = len(entries) == 1 and entries[0].name != MANIFEST_PATH.parts[0] and _is_dir(entries[0])
    return entries[0] if alone else folder


def _read_model(model_dir: Path, name_if_absent: str | None, *, temporary: bool) -> UnpackedModel:
    manifest = read_manifest(model_dir, name_if_absent)
    file = model_dir / manifest.config_file if manifest.config_file else None
    raw = read_mapping(file) if file is not None and file.exists() else {}
    said = config_in(model_dir)
    if said is not None and NESTED in raw:
        raise InvalidModel(f"{NESTED}: expected no such key in the model's configuration beside a {CONFIG_FILE}")
    raw |= overrides_of(said) if said is not None else {}
    config = parse_model_config(raw, file.name if file is not None else CONFIG_FILE)
    return with_labels(UnpackedModel(manifest, config, model_dir, temporary))


def _read_version(model_dir: Path, name: str, version: str, said: Mapping[str, Any]) -> UnpackedModel:
    said = with_backend(said, os.listdir(model_dir / version))
    config = parse_model_config(overrides_of(said), CONFIG_FILE)
    return with_labels(UnpackedModel(manifest_of(name, version, said, model_dir), config, model_dir, temporary=True))


def with_labels(unpacked: UnpackedModel) -> UnpackedModel:
    """The same with the label files that its configuration names. Raises `InvalidModel`."""
    triton = unpacked.config.triton
    return replace(unpacked, labels=read_labels(unpacked.model_dir, triton.label_files if triton is not None else {}))


def _is_model(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    if (stem(path.name) is not None or path.suffix.lower() == OLD_SUFFIX) and _is_file(path):
        return True
    return _is_file(path / MANIFEST_PATH) or _is_file(path / CONFIG_FILE)


def _is_file(path: Path) -> bool:
    """Like `Path.is_file`, and also False for a name too long for the disk or behind a folder we may not enter."""
    try:
        return path.is_file()
    except OSError:
        return False


def _is_dir(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False

"""Triton's layout of a model repository (contracts/open-inference.md, section 7.1), as far as it differs from ours:

    name/config.pbtxt      how all versions are served, and which; may be missing
    name/1/model.py        a version, whose name is a number above 0: a model of Triton's Python backend,
    name/1/model.pt        or a TorchScript file
    name/configs/x.pbtxt   another config.pbtxt, for servers that are started with its name
    name/labels.txt, ...   whatever config.pbtxt or the model names, for all versions

There is no manifest: it is made here.
"""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ringserve.protocol.errors import InvalidModel
from ringserve.server.model_configuration.configuration import read_text
from ringserve.server.model_configuration.fields import BACKEND_OF_PLATFORM, FILE_NAMES, NESTED
from ringserve.server.repository.files import open_regular
from ringserve.server.repository.manifest import Manifest
from ringserve.server.repository.triton_config import CONFIG_FILE
from ringserve.server.repository.version_policy import VersionPolicy, wanted_versions

TEXT_BYTES_MAX = 1 << 20
CHOICES = "configs"
VERSION = re.compile(r"[1-9][0-9]{0,17}")
LEADING_ZEROS = re.compile(r"0+[1-9][0-9]{0,17}")
_BACKEND_OF_FILE = {file: backend for backend, file in FILE_NAMES.items()}


def read_config(path: Path) -> dict[str, Any]:
    """What a config.pbtxt says, as a mapping. Raises `InvalidModel`."""
    try:
        with open_regular(path) as file:
            text = file.read(TEXT_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidModel(f"{path.name} cannot be read: {error.strerror}") from error
    return read_text(text, path.name)


def config_path(folder: Path, config_name: str) -> Path:
    """The configuration in a model's folder that counts: configs/`config_name`.pbtxt where there is one (--model-config-name)."""
    chosen = folder / CHOICES / f"{config_name}.pbtxt"
    return chosen if config_name and chosen.is_file() else folder / CONFIG_FILE


def config_in(folder: Path, config_name: str = "") -> dict[str, Any] | None:
    """What config.pbtxt in a model's folder says; None where there is none. Raises `InvalidModel`."""
    path = config_path(folder, config_name)
    return read_config(path) if path.exists() else None


def are_versions(found: Mapping[str, Iterable[str]]) -> bool:
    """Whether folders, each with the names in it, are versions in this layout."""
    return any(
        VERSION.fullmatch(name) and not _BACKEND_OF_FILE.keys().isdisjoint(files) for name, files in found.items()
    )


def latest_version(folder: Path, config_name: str = "") -> tuple[Path, dict[str, Any] | None]:
    """The latest version that is wanted of a model in this layout, and what its config.pbtxt says; `folder` itself and None where it has
    another layout. Raises `InvalidModel`."""
    try:
        said = config_in(folder, config_name)
        found = [each for each in folder.iterdir() if VERSION.fullmatch(each.name) and each.is_dir()]
        names = {each.name: os.listdir(each) for each in found}
    except OSError:
        return folder, None  # reading the model says why
    if said is None and not are_versions(names):
        return folder, None
    wanted = wanted_versions(names, policy_of(said or {}))
    if not wanted:
        raise InvalidModel(f"at least one version must be available under the version policy of model '{folder.name}'")
    return folder / wanted[-1], said or {}


def other_versions(path: Path) -> frozenset[str]:
    """The folders beside the one at `path` that are versions too. Raises `OSError`."""
    return frozenset(each for each in os.listdir(path.parent) if each != path.name and VERSION.fullmatch(each))


def policy_of(said: Mapping[str, Any]) -> VersionPolicy:
    """The versions that a config.pbtxt wants, which has been checked."""
    policy = said.get("version_policy", {})
    if "all" in policy:
        return VersionPolicy(latest=None)
    if "specific" in policy:
        return VersionPolicy(None, tuple(str(each) for each in policy["specific"]["versions"]))
    return VersionPolicy(policy.get("latest", {}).get("num_versions", 1))


def with_backend(said: Mapping[str, Any], files: Iterable[str]) -> dict[str, Any]:
    """The same with the backend that runs what lies in the version's folder, where nothing says which. Raises `InvalidModel` where no
    backend runs any of it."""
    here = set(files)
    backend = said.get("backend") or BACKEND_OF_PLATFORM.get(said.get("platform", ""))
    if backend is None and not said.get("platform"):
        backend = next((_BACKEND_OF_FILE[file] for file in FILE_NAMES.values() if file in here), None)
        if backend is None:
            raise InvalidModel(
                f"expected {' or '.join(FILE_NAMES.values())} in the version's folder, or a {CONFIG_FILE} that says a backend"
            )
    return {**said, "backend": backend} if backend is not None else dict(said)


def manifest_of(name: str, version: str, said: Mapping[str, Any], folder: Path) -> Manifest:
    """What a manifest would say of a version in `folder`, the model's own. Raises `InvalidModel` where its file is missing."""
    file = said.get("default_model_filename") or FILE_NAMES.get(said.get("backend", ""), "")
    path = f"{version}/{file}"
    if file and not (folder / path).exists():
        raise InvalidModel(f"expected {path}, which the backend {said.get('backend')} loads, got no such file")
    raw = {"model": {"modelName": name, "modelVersion": version, "handler": path, "serializedFile": path}}
    return Manifest(name, version, handler=path, serialized_file=path, raw=raw)


def overrides_of(said: Mapping[str, Any]) -> dict[str, Any]:
    """A config.pbtxt in the form of keys of model-config.yaml."""
    return {NESTED: dict(said)}

"""What lies in the model repository at one moment. Looks only: nothing is unpacked, nothing is decided, nothing raised.

    name.mar, name.tar.gz, name.tgz    an archive
    name/MAR-INF/MANIFEST.json         an unpacked model
    name/<version>/any.mar             an archive of one version of a model
    name/<version>/MAR-INF/...         an unpacked one
    name/config.yaml                   how all versions of it are served, and which
    name/<version>/config.yaml         how this one is
    name/config.pbtxt, name/1/...      Triton's layout (triton_layout.py)

Names that begin with a dot or end in .part or .tmp are how files arrive, so nobody looks at them. Links at the top are the
operator's own choice and are followed (Kubernetes mounts are made of them). Whatever cannot be read, or is not what its name says,
becomes a problem that names it; what vanishes while we look was never there.
"""

import contextlib
import errno
import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.archive import ACCEPTED_SUFFIXES
from ringserve.server.repository.archive_plan import KIND_NAMES
from ringserve.server.repository.config_yaml import read_mapping
from ringserve.server.repository.manifest import MANIFEST_PATH
from ringserve.server.repository.triton_config import CONFIG_FILE as TRITON_CONFIG
from ringserve.server.repository.triton_layout import (
    LEADING_ZEROS,
    VERSION,
    are_versions,
    config_path,
    other_versions,
    overrides_of,
    policy_of,
    read_config,
)
from ringserve.server.repository.version_policy import (
    FolderConfig,
    VersionPolicy,
    parse_folder_config,
    parse_version_config,
    wanted_versions,
)

CONFIG_FILE = "config.yaml"
ENTRIES_MAX = 10_000  # names in one folder
FILES_MAX = 20_000  # files of one unpacked model
DEPTH_MAX = 64
ARCHIVE_LIKE = (*ACCEPTED_SUFFIXES, ".model", ".tar", ".zip")
_IGNORED = re.compile(
    r"\..*|.*\.(?:part|partial|tmp|crdownload|filepart)|.*~|readme(?:\..*)?|lost\+found|__pycache__",
    re.IGNORECASE | re.DOTALL,
)
# Python writes them beside the code it imports: a model that is loaded has not changed.
_BYTECODE = (".pyc", ".pyo")
_UNSHOWABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
VANISHED = (errno.ENOENT, errno.ENOTDIR)


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing to be served. `slot` is its place, which a replacement shares; `group` the name at the top of the folder that it
    belongs to. `fingerprint` changes with the content and its configuration, `changed_ns` is its youngest file's time. `said` is what
    config.pbtxt says, for a version in Triton's layout. With a `problem` it cannot be served as it is."""

    slot: str
    group: str
    path: Path
    file: str
    is_folder: bool
    model: str | None = None
    version: str | None = None
    fingerprint: str = ""
    changed_ns: int = 0
    overrides: Mapping[str, Any] = field(default_factory=dict)
    problem: str | None = None
    said: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`folders` holds the configuration of every model with versions, unless it is broken; `problems` what is wrong beside the entries, by file;
    `uncertain` the groups that could not be looked through, so that what is missing there may yet be there. `unreadable` says
    why the repository itself could not be; then there is nothing else."""

    entries: Mapping[str, Entry] = field(default_factory=dict)
    folders: Mapping[str, FolderConfig] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    uncertain: frozenset[str] = frozenset()
    identity: tuple[int, int] | None = None
    unreadable: str | None = None


def scan(root: Path, config_name: str = "") -> Snapshot:
    """Takes as long as the file system does: call it in a thread. `config_name` is that of --model-config-name."""
    scanner = _Scanner(root, config_name)
    try:
        status = os.stat(root)
        names = _names(root)
        scanner.real_root = os.path.realpath(root)
    except OSError as error:
        return Snapshot(unreadable=f"the folder cannot be read: {error.strerror or error}")
    for name in names:
        with scanner.noting(name, name):
            scanner.look(name)
    return Snapshot(
        scanner.entries,
        scanner.folders,
        scanner.problems,
        frozenset(scanner.uncertain),
        (status.st_dev, status.st_ino),
    )


class _Scanner:
    """One look at one folder, collected."""

    def __init__(self, root: Path, config_name: str) -> None:
        self._config_name = config_name
        self.real_root = ""
        self.entries: dict[str, Entry] = {}
        self.folders: dict[str, FolderConfig] = {}
        self.problems: dict[str, str] = {}
        self.uncertain: set[str] = set()
        self._root = root

    @contextlib.contextmanager
    def noting(self, group: str, file: str) -> Iterator[None]:
        """What cannot be read is a problem of `file`, and says nothing about what is missing in its group."""
        try:
            yield
        except OSError as error:
            if error.errno in VANISHED and not os.path.islink(self._root / file):
                return
            self.uncertain.add(group)
            what = "a link that leads nowhere" if error.errno in VANISHED else error.strerror or str(error)
            self.problems[shown(file)] = f"expected a file or folder that can be read, got {what}"
        except Exception as error:  # noqa: BLE001 - whatever one of them is, the others are looked at
            self.uncertain.add(group)
            self.problems[shown(file)] = f"expected a file or folder that can be looked at, got {error!r:.200}"

    def look(self, name: str) -> None:
        if _IGNORED.fullmatch(name):
            return
        if _UNSHOWABLE.search(name):
            self.problems[shown(name)] = "expected a name in UTF-8 without control characters"
            return
        path = self._root / name
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            self._look_into(name, path)
        elif name.lower().endswith(ACCEPTED_SUFFIXES):
            self._add(Entry(name, name, path, name, is_folder=False), status)
        elif name.lower().endswith(ARCHIVE_LIKE):
            self.problems[name] = f"expected an archive's name to end in {' or '.join(ACCEPTED_SUFFIXES)}"

    def _look_into(self, name: str, path: Path) -> None:
        """A folder of the repository: an unpacked model, or one with versions, or none of our business."""
        real = os.path.realpath(path)
        if self.real_root == real or self.real_root.startswith(real.rstrip("/") + "/"):
            self.problems[name] = "expected a folder of the repository, got a link to what it lies in"
            return
        names = [each for each in _names(path) if not _IGNORED.fullmatch(each)]
        if MANIFEST_PATH.parts[0] in names:
            self._add(Entry(name, name, path, name, is_folder=True), None)
            return
        inside = {each: found for each in names if (found := self._contents(name, each)) is not None}
        versions = {each: [file for file in found if _is_served(file)] for each, found in inside.items()}
        if not any(versions.values()) and (TRITON_CONFIG in names or are_versions(inside)):
            self._look_at_tritons(name, list(inside), CONFIG_FILE in names)
            return
        for each in names:
            if each.lower().endswith(ACCEPTED_SUFFIXES) and each not in versions:
                self.problems[shown(f"{name}/{each}")] = f"expected an archive in a folder of its version: {name}/1.0/"
        if not any(versions.values()):
            if name.lower().endswith(ARCHIVE_LIKE):
                self.problems[name] = f"expected {MANIFEST_PATH} or versions in the folder, got neither"
                self.uncertain.add(name)  # it has taken the place of an archive, which nobody has removed
            return
        config, problem = self._folder_config(name, CONFIG_FILE in names)
        if TRITON_CONFIG in names and problem is None:
            config, problem, said = self._with_tritons(name, config)
            config = replace(config, overrides={**config.overrides, **overrides_of(said)})
        for version, found in versions.items():
            file = f"{name}/{version}"
            if _UNSHOWABLE.search(version):
                self.problems[shown(file)] = "expected a version in UTF-8 without control characters"
            elif not found:
                self.problems[file] = f"expected one archive or {MANIFEST_PATH}, got neither"
            else:
                with self.noting(name, file):
                    self._add_version(name, version, found, config, problem)

    def _contents(self, name: str, version: str) -> list[str] | None:
        """The names in a version's folder; None for what is no folder."""
        folder = self._root / name / version
        with self.noting(name, f"{name}/{version}"):
            try:
                if not stat.S_ISDIR(os.stat(folder).st_mode):
                    return None
                return [each for each in _names(folder) if not _IGNORED.fullmatch(each)]
            except OSError as error:
                if error.errno not in VANISHED:
                    raise
        return None

    def _look_at_tritons(self, name: str, folders: list[str], has_own: bool) -> None:
        """A model in Triton's layout. What config.yaml says of it beside config.pbtxt stands, as long as it is another thing."""
        config, problem = self._folder_config(name, has_own)
        said: Mapping[str, Any] = {}
        if problem is None:
            config, problem, said = self._with_tritons(name, config)
        for each in folders:
            if LEADING_ZEROS.fullmatch(each):
                self.problems[f"{name}/{each}"] = "expected a version without leading zeros"
        versions = [each for each in folders if VERSION.fullmatch(each)]
        if problem is None and not wanted_versions(versions, config.policy):
            self.problems[name] = f"at least one version must be available under the version policy of model '{name}'"
        for version in versions:
            slot, folder = f"{name}/{version}", self._root / name / version
            entry = Entry(slot, name, folder, slot, True, name, version, overrides=config.overrides, problem=problem)
            with self.noting(name, slot):
                self._add(replace(entry, said=said), None)

    def _with_tritons(self, name: str, config: FolderConfig) -> tuple[FolderConfig, str | None, Mapping[str, Any]]:
        """The versions that config.pbtxt wants, what is wrong with it, and what it says."""
        try:
            said = _said(self._root / name, self._config_name)
        except InvalidModel as error:
            self.folders.pop(name, None)
            return config, f"{name}/{error.message}", {}
        if "version_policy" in said:
            if config.policy != VersionPolicy():
                file = f"{name}/{CONFIG_FILE}"
                return config, f"{file}: version_policy: expected none beside that of {TRITON_CONFIG}", said
            config = replace(config, policy=policy_of(said))
        self.folders[name] = config
        return config, None, said

    def _folder_config(self, name: str, exists: bool) -> tuple[FolderConfig, str | None]:
        """The configuration that all versions share, and what is wrong with it."""
        file = f"{name}/{CONFIG_FILE}"
        try:
            config = parse_folder_config(_mapping(self._root / name / CONFIG_FILE) if exists else {}, file)
        except InvalidModel as error:
            return FolderConfig(), error.message
        self.folders[name] = config
        return config, None

    def _add_version(
        self, name: str, version: str, found: list[str], config: FolderConfig, problem: str | None
    ) -> None:
        folder = self._root / name / version
        overrides = dict(config.overrides)
        try:
            if os.path.lexists(folder / CONFIG_FILE):
                own = _mapping(folder / CONFIG_FILE)
                overrides.update(parse_version_config(own, f"{name}/{version}/{CONFIG_FILE}"))
        except InvalidModel as error:
            problem = problem or error.message
        if len(found) > 1:
            problem = problem or f"expected one archive or {MANIFEST_PATH}, got {', '.join(map(shown, found))}"
        is_folder = found[0] == MANIFEST_PATH.parts[0]
        file = f"{name}/{version}" if is_folder else f"{name}/{version}/{found[0]}"
        path, status = (folder, None) if is_folder else (folder / found[0], os.stat(folder / found[0]))
        slot = f"{name}/{version}"
        entry = Entry(slot, name, path, shown(file), is_folder, name, version, overrides=overrides, problem=problem)
        self._add(entry, status)

    def _add(self, entry: Entry, status: os.stat_result | None) -> None:
        """Give it its fingerprint; `status` is that of an archive's file."""
        problem, marks, changed_ns = entry.problem, [repr(entry.overrides)], 0
        if status is None:
            try:
                if entry.said is None:
                    changed_ns, files = _folder_marks(entry.path)
                else:
                    changed_ns, files = _folder_marks(entry.path.parent, other_versions(entry.path))
                marks += files
            except OSError as error:
                problem = problem or f"expected files that can be read, got {error.filename}: {error.strerror}"
        elif not stat.S_ISREG(status.st_mode):
            problem = f"expected a regular file, got {KIND_NAMES.get(stat.S_IFMT(status.st_mode), 'something else')}"
        else:
            changed_ns = status.st_mtime_ns
            marks.append(f"{entry.file} {_mark(status)}")
        marks.append(problem or "")
        digest = hashlib.blake2b("\n".join(marks).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()
        self.entries[entry.slot] = replace(entry, fingerprint=digest, changed_ns=changed_ns, problem=problem)


def _mark(status: os.stat_result) -> str:
    """Two contents of one name differ in this. The time of the last change of status tells even copies of equal size and age
    apart; there is no inode in it, since network file systems make theirs up anew."""
    return f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _folder_marks(folder: Path, without: frozenset[str] = frozenset()) -> tuple[int, list[str]]:
    """The youngest time and the marks of all files, but for what the folder itself has of the names `without`. Links are followed for a file's own mark, never into other folders.
    Raises `OSError`."""

    def refuse(error: OSError) -> None:
        if error.errno not in VANISHED:
            raise error

    changed_ns, marks = 0, []
    for where, folders, files in os.walk(folder, onerror=refuse):
        inside = os.path.relpath(where, folder)
        folders[:] = sorted(
            each for each in folders if not (_IGNORED.fullmatch(each) or (inside == "." and each in without))
        )
        for file in sorted(files):
            if _IGNORED.fullmatch(file) or file.endswith(_BYTECODE):
                continue
            try:
                status = os.stat(os.path.join(where, file))
            except OSError as error:
                if error.errno not in VANISHED:
                    raise
                continue
            marks.append(f"{inside}/{file} {_mark(status)}")
            if len(marks) > FILES_MAX:
                break
            # A copy that keeps the times of its files still changes their status when each is done.
            changed_ns = max(changed_ns, status.st_mtime_ns, status.st_ctime_ns)
        if len(marks) > FILES_MAX or inside.count("/") > DEPTH_MAX:
            raise OSError(errno.E2BIG, f"more than {FILES_MAX} files or {DEPTH_MAX} nested folders", str(folder))
    return changed_ns, marks


def _is_served(name: str) -> bool:
    """Whether a version's folder has something of this name to be served: an archive, or an unpacked one."""
    return name.lower().endswith(ACCEPTED_SUFFIXES) or name == MANIFEST_PATH.parts[0]


def _said(folder: Path, config_name: str) -> Mapping[str, Any]:
    """What the config.pbtxt of a model's folder says, nothing without one. Raises `InvalidModel`; `OSError` when it cannot be looked at."""
    path = config_path(folder, config_name)
    if not os.path.lexists(path):
        return {}
    parsed = _parsed(path, _mark(os.stat(path)))
    if isinstance(parsed, str):
        raise InvalidModel(parsed)
    return parsed


def _mapping(path: Path) -> dict[str, Any]:
    """A config.yaml. Raises `InvalidModel`; `OSError` when it vanishes."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode):
        raise InvalidModel(f"{path.name}: expected a regular file, got something else")
    parsed = _parsed(path, _mark(status))
    if isinstance(parsed, str):
        raise InvalidModel(parsed)
    return parsed


@lru_cache(maxsize=4096)
def _parsed(path: Path, mark: str) -> dict[str, Any] | str:
    """The mapping, or why there is none. YAML is slow and a look is frequent: a file that has not changed is not parsed again."""
    try:
        return read_config(path) if path.suffix == ".pbtxt" else read_mapping(path)
    except InvalidModel as error:
        return error.message


def _names(folder: Path) -> list[str]:
    """Raises `OSError`, also for more names than anybody drops."""
    names = sorted(os.listdir(folder))
    if len(names) > ENTRIES_MAX:
        raise OSError(errno.E2BIG, f"expected at most {ENTRIES_MAX} names, got {len(names)}")
    return names


def shown(name: str) -> str:
    """A file's name as reports can hold it, whatever bytes it has."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)

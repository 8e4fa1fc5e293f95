"""What a model requires, as one digest: two models with the same digest can share what was installed for one of them."""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.files import open_regular

REQUIREMENTS_BYTES_MAX = 1 << 20
# What of a folder pip looks at when it is named as a place to find packages.
DISTRIBUTIONS = (".whl", ".zip", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
SOURCES = ("pyproject.toml", "setup.py", "setup.cfg")
_COMMENT = re.compile(r"(?:^|\s+)#.*$")
_CONTINUED = re.compile(r"\\\r?\n")
_WORDS = re.compile(r"[\s=@;,]+")
_SHORT_OPTION = re.compile(r"^-[rcfei](?=[^-])")
_EXTRAS = re.compile(r"\[[^\]]*\]$")
_USER_INFO = re.compile(r"(://)[^/\s'\"]*@")
_QUERY = re.compile(r"(://[^\s?'\"]*\?)[^\s'\"]*")


def normalised(text: str) -> list[str]:
    """The lines as pip sees them: joined, without comments and needless blanks. Their order is kept, since it may matter."""
    lines = (_COMMENT.sub("", line) for line in _CONTINUED.sub("", text).splitlines())
    return [" ".join(line.split()) for line in lines if line.strip()]


def without_secrets(said: str) -> str:
    """What pip says, without the passwords and tokens in URLs: it hides them in most of its sentences, not in all."""
    return _QUERY.sub(r"\1***", _USER_INFO.sub(r"\1***@", said))


def digest(model_dir: Path, requirements_file: str, identity: str) -> str:
    """Of the requirements, of the files of the model that they name, and of `identity`, which stands for everything else that
    matters. Raises `InvalidModel` when the file cannot be read."""
    found = hashlib.sha256(identity.encode("utf-8", "surrogateescape"))
    left = [model_dir / requirements_file]
    seen = {_plain(left[0])}  # a file may name the same folder a thousand times
    while left:
        path = left.pop()
        lines = normalised(_read(path))
        found.update(b"\0".join(line.encode("utf-8", "surrogateescape") for line in lines))
        for line in lines:
            for local in _local(line, path.parent, model_dir):
                if local in seen:
                    continue
                seen.add(local)
                if local.suffix == ".txt" and local.is_file():
                    left.append(local)  # more requirements, or constraints: they may name files in turn
                else:
                    for name, content in _contents(local):
                        found.update(f"\0{name}\0{content}".encode("utf-8", "surrogateescape"))
    return found.hexdigest()[:32]


def _plain(path: Path) -> Path:
    """Without its `..`. Links are not followed: a model may be served from a folder of them."""
    return Path(os.path.normpath(path.absolute()))


def _read(path: Path) -> str:
    try:
        if not path.is_file():
            raise InvalidModel(f"requirementsFile: expected a file, got {path.name!r}, which is none")
        with open_regular(path) as file:
            data = file.read(REQUIREMENTS_BYTES_MAX + 1)
    except OSError as error:
        raise InvalidModel(f"requirementsFile: {path.name} cannot be read: {error.strerror}") from None
    if len(data) > REQUIREMENTS_BYTES_MAX:
        raise InvalidModel(
            f"requirementsFile: expected at most {REQUIREMENTS_BYTES_MAX} bytes, got more in {path.name}"
        )
    return data.decode("utf-8", "surrogateescape")


def _local(line: str, beside: Path, model_dir: Path) -> Iterator[Path]:
    """The files and folders of the model that a line names. One elsewhere is known by its name alone, like an index."""
    inside = _plain(model_dir)
    for word in _WORDS.split(_SHORT_OPTION.sub("", line, count=1)):
        name = _EXTRAS.sub("", word.strip("\"'").removeprefix("file:"))
        for folder in dict.fromkeys((beside, model_dir)) if name else ():
            try:
                path = _plain(folder / name)
                if path.exists() and path.is_relative_to(inside):
                    yield path
            except (OSError, ValueError, RuntimeError):
                continue  # too long for a name, or a loop: not a file


def _contents(path: Path) -> Iterator[tuple[str, str]]:
    """Name and digest of each file that counts: the file, the packages in a folder, or everything in a folder of sources."""
    if not path.is_dir():
        yield path.name, _file_digest(path)
        return
    everything = any((path / name).is_file() for name in SOURCES)
    try:
        inside = sorted(path.rglob("*") if everything else path.iterdir())
    except OSError as error:
        raise InvalidModel(f"requirementsFile: names {path.name}, which cannot be read: {error.strerror}") from None
    for each in inside:
        if each.is_file() and (everything or each.name.endswith(DISTRIBUTIONS)):
            yield each.relative_to(path).as_posix(), _file_digest(each)


def _file_digest(path: Path) -> str:
    try:
        with open_regular(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidModel(f"requirementsFile: names {path.name}, which cannot be read: {error.strerror}") from None

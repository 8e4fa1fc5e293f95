"""Unpacks one model archive into one folder, or leaves nothing behind; or reads it where it lies.

A `.mar` is a zip (archive_zip.py); under any other name it is a gzipped tar (archive_tar.py), as TorchServe has it, told by its
first bytes. What may be in either is decided by archive_plan.py.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ringserve.server.repository.archive_plan import ArchiveLimits, Member, lifted, refusal, top_folder
from ringserve.server.repository.archive_tar import GZIP_MAGIC, ROOT_MARK, extract_tar, opened_tar
from ringserve.server.repository.archive_zip import opened_zip
from ringserve.server.repository.files import open_regular

ZIP_SUFFIX = ".mar"
TAR_SUFFIXES = (".tar.gz", ".tgz")
ACCEPTED_SUFFIXES = (ZIP_SUFFIX, *TAR_SUFFIXES)
LIMITS = ArchiveLimits()


def stem(name: str) -> str | None:
    """An archive's name without what says its format; None for a name that says none."""
    for suffix in ACCEPTED_SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    return None


def extract(archive: Path, into: Path, limits: ArchiveLimits = LIMITS) -> None:
    """Write the members of `archive` below `into`: files 0600, folders 0700.

    `into` is created when missing and must be empty otherwise (`FileExistsError`). Raises `InvalidModel` when the
    archive is not one or holds what may not be unpacked, `OSError` when it cannot be read or written. After any error
    `into` is as it was before.
    """
    if _is_tar(archive):
        extract_tar(archive, into, limits)
        return
    with opened_zip(archive, limits) as bundle:
        bundle.extract(into)


@dataclass(frozen=True, slots=True)
class ArchiveContents:
    """What is in an archive that nobody has unpacked: `members` by their path in the model. A `Contents`."""

    archive: Path
    members: Mapping[str, Member]
    folders: frozenset[str]
    limits: ArchiveLimits = LIMITS

    def has(self, name: str) -> bool:
        return self.has_file(name) or _plain(name) in self.folders

    def has_file(self, name: str) -> bool:
        member = self.members.get(_plain(name))
        return member is not None and not member.is_folder

    def read(self, name: str, bytes_max: int) -> bytes:
        """The first `bytes_max` bytes. Raises `InvalidModel`, `OSError`."""
        wanted = self.members.get(_plain(name))
        if wanted is None or wanted.is_folder:
            raise FileNotFoundError(2, "No such file in the archive", name)
        if not _is_tar(self.archive):
            with opened_zip(self.archive, self.limits) as bundle:
                if wanted not in bundle.members:
                    raise refusal(self.archive.name, name, "the members of a moment ago", "other ones")
                return bundle.read(wanted, bytes_max)
        read = bytearray()
        with opened_tar(self.archive, self.limits) as tar:
            for member, data in tar.members():
                if member.parts == wanted.parts:
                    while len(read) < bytes_max and (chunk := data.read(bytes_max - len(read))):
                        read += chunk
                    break
        return bytes(read)


def contents_of(archive: Path, limits: ArchiveLimits = LIMITS) -> ArchiveContents:
    """Judge the archive as `extract` does, and write nothing. The data of a zip is not read. Raises as `extract`."""
    if _is_tar(archive):
        with opened_tar(archive, limits) as tar:
            found = [member for member, _ in tar.members()]
        top = top_folder(archive.name, found, ROOT_MARK)
    else:
        with opened_zip(archive, limits) as bundle:
            found, top = list(bundle.members), None
    members = {"/".join(parts): member for member in found if (parts := lifted(member, top))}
    folders = {path for path, member in members.items() if member.is_folder}
    folders |= {str(parent) for path in members for parent in Path(path).parents}
    return ArchiveContents(archive, members, frozenset(folders), limits)


def _plain(name: str) -> str:
    return Path(name).as_posix()


def _is_tar(archive: Path) -> bool:
    """Raises `InvalidModel` for what is neither, `OSError`."""
    if not archive.is_file():
        raise refusal(archive.name, "", "a regular file", "none" if not archive.exists() else "something else")
    if archive.name.lower().endswith(ZIP_SUFFIX):
        return False
    with open_regular(archive) as file:
        start = file.read(8)
    if not start.startswith(GZIP_MAGIC):
        expected = f"a zip under a name that ends in {ZIP_SUFFIX}, or a gzipped tar under another"
        raise refusal(archive.name, "", expected, f"{archive.stat().st_size} bytes that start with {start!r}")
    return True

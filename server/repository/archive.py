"""Unpacks one model archive into one folder, or leaves nothing behind.

A `.mar` is a zip, deflated or stored. Everything its directory can tell is judged by `archive_plan` before the first
file is created; what only the data can tell (checksums, real lengths) is judged while writing, and undone on failure.
"""

import errno
import io
import os
import shutil
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from zipfile import BadZipFile, ZipFile

from ringserve.server.repository.archive_plan import ArchiveLimits, Member, plan, refusal

ACCEPTED_SUFFIXES = (".mar",)
LIMITS = ArchiveLimits()
CHUNK_BYTES = 1 << 20
TAIL_BYTES_MAX = (
    1 << 17
)  # zipfile reads the end record "to the end of the file": at most 64 KiB of comment and 22 bytes

# What zipfile and zlib raise on bytes that are not what they claim. OSError is not among them: a full disk is ours.
DAMAGE = (
    BadZipFile,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zlib.error,
)


def extract(archive: Path, into: Path, limits: ArchiveLimits = LIMITS) -> None:
    """Write the members of `archive` below `into`: files 0600, folders 0700.

    `into` is created when missing and must be empty otherwise (`FileExistsError`). Raises `InvalidModel` when the
    archive is not one or holds what may not be unpacked, `OSError` when it cannot be read or written. After any error
    `into` is as it was before.
    """
    if not archive.name.lower().endswith(ACCEPTED_SUFFIXES):
        raise refusal(archive.name, "", f"a name that ends in {' or '.join(ACCEPTED_SUFFIXES)}", repr(archive.suffix))
    if not archive.is_file():
        raise refusal(archive.name, "", "a regular file", "none" if not archive.exists() else "something else")
    with _DirectoryReader(archive, limits.directory_bytes_max) as file, _opened(archive, file) as bundle:
        file.directory_bytes_max = None
        members = plan(archive.name, os.fstat(file.fileno()).st_size, bundle.infolist(), limits)
        _check_local_headers(archive, bundle, members)
        with _undone_on_failure(into):
            _write_members(archive, bundle, members, into)


class _DirectoryReader(io.BufferedReader):
    """A file whose single reads are bounded while zipfile opens it.

    zipfile loads the whole central directory with one read, and builds an object for every 46 bytes of it, before
    anybody can count its members.
    """

    def __init__(self, archive: Path, directory_bytes_max: int) -> None:
        super().__init__(io.FileIO(archive, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)))
        self._archive_name = archive.name
        self.directory_bytes_max: int | None = directory_bytes_max

    def read(self, size: int | None = -1, /) -> bytes:
        if self.directory_bytes_max is None:
            return super().read(size)
        if size is None or size < 0:
            return super().read(TAIL_BYTES_MAX)
        if size > self.directory_bytes_max:
            expected = f"a directory of at most {self.directory_bytes_max} bytes"
            raise refusal(self._archive_name, "", expected, f"{size}")
        return super().read(size)


@contextmanager
def _opened(archive: Path, file: IO[bytes]) -> Iterator[ZipFile]:
    try:
        bundle = ZipFile(file)
    except DAMAGE as error:
        raise refusal(archive.name, "", "a zip archive", f"{_first_bytes(archive)} ({error})") from error
    except OSError as error:
        if error.errno != errno.EINVAL:  # a seek to where the end record points: in front of the file's first byte
            raise
        raise refusal(archive.name, "", "a zip archive", "an end record that points outside the file") from error
    with bundle:
        yield bundle


def _first_bytes(archive: Path) -> str:
    with archive.open("rb") as file:
        return f"{archive.stat().st_size} bytes that start with {file.read(8)!r}"


@contextmanager
def _damage_named(archive: Path, member: Member) -> Iterator[None]:
    try:
        yield
    except DAMAGE as error:
        got = str(error) or type(error).__name__
        raise refusal(archive.name, member.info.orig_filename, "intact data", got) from error


def _check_local_headers(archive: Path, bundle: ZipFile, members: Sequence[Member]) -> None:
    """Opening a member compares its own header with the directory's entry; do that for all before any is written."""
    for member in members:
        with _damage_named(archive, member), bundle.open(member.info):
            pass


@contextmanager
def _undone_on_failure(into: Path) -> Iterator[None]:
    created = not into.exists()
    if created:
        into.mkdir(mode=0o700)
    elif any(into.iterdir()):
        raise FileExistsError(errno.EEXIST, "Expected an empty folder to unpack into", str(into))
    try:
        yield
    except BaseException:
        for entry in into.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
        if created:
            into.rmdir()
        raise


def _write_members(archive: Path, bundle: ZipFile, members: Sequence[Member], into: Path) -> None:
    for member in members:
        target = into.joinpath(*member.parts)
        _make_folders(into, member.parts if member.is_folder else member.parts[:-1])
        if member.is_folder:
            continue
        # O_EXCL: the plan has made every name unique, so a file that is already there is not ours to overwrite.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with (
            open(os.open(target, flags, 0o600), "wb") as output,
            _damage_named(archive, member),
            bundle.open(member.info) as source,
        ):
            copy_exactly(source, output, member.info.file_size)


def _make_folders(into: Path, parts: Sequence[str]) -> None:
    folder = into
    for part in parts:
        folder = folder / part
        if not folder.is_dir():
            folder.mkdir(mode=0o700)


def copy_exactly(source: IO[bytes], output: IO[bytes], bytes_expected: int) -> None:
    """Copy the whole of `source`. Raises `BadZipFile` when it is shorter or longer than declared, at once when longer."""
    copied_bytes = 0
    while chunk := source.read(CHUNK_BYTES):
        copied_bytes += len(chunk)
        if copied_bytes > bytes_expected:
            raise BadZipFile(f"more than the declared {bytes_expected} bytes")
        output.write(chunk)
    if copied_bytes != bytes_expected:
        raise BadZipFile(f"{copied_bytes} of the declared {bytes_expected} bytes")

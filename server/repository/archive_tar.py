"""A gzipped tar: everything below one folder, which is not part of the model (contract section 9.1).

A tar has no directory. Its members are judged as they come, before each is written, and a refusal undoes what was written
before. Both layers are read under bounds: gzip gives as many bytes as anybody likes, and tarfile believes every length that a
header tells it.
"""

import re
import stat
import tarfile
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from gzip import BadGzipFile, GzipFile
from pathlib import Path
from typing import IO, cast

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.archive_plan import (
    ArchiveLimits,
    Judge,
    Listed,
    Member,
    check_sizes,
    refusal,
    top_folder,
)
from ringserve.server.repository.archive_writing import (
    CHUNK_BYTES,
    Damaged,
    copy_exactly,
    create_file,
    make_folders,
    undone_on_failure,
)
from ringserve.server.repository.files import open_regular

GZIP_MAGIC = b"\x1f\x8b"
ROOT_MARK = "MAR-INF"  # a folder of this name at the root: the root is the model itself
# What one member's headers may take, long names and extended attributes included, and those of all.
HEADER_BYTES_MAX = 64 << 10
HEADERS_BYTES_MAX = 16 << 20
# tarfile searches extended headers with an expression that takes the square of a run of digits.
DIGITS_MAX = re.compile(rb"[0-9]{300}")
KINDS = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.AREGTYPE: stat.S_IFREG,
    tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
# What gzip, zlib and tarfile raise on bytes that are not what they claim. BadGzipFile is an OSError, others of which are ours.
DAMAGE = (
    BadGzipFile,
    Damaged,
    EOFError,
    LookupError,
    OverflowError,
    RuntimeError,
    ValueError,
    tarfile.TarError,
    zlib.error,
)


@contextmanager
def damage_named(archive: str, member: str = "") -> Iterator[None]:
    """What is raised for bytes that are not what they claim becomes `InvalidModel`."""
    try:
        yield
    except DAMAGE as error:
        expected = "intact data" if member else "a gzipped tar archive"
        raise refusal(archive, member, expected, str(error) or type(error).__name__) from error


class _Stream:
    """What is inside the gzip, for tarfile: forward only, in bounded pieces, and not more than the archive may unpack to."""

    def __init__(self, archive: str, file: IO[bytes], archive_bytes: int, limits: ArchiveLimits) -> None:
        self._archive = archive
        self._archive_bytes = archive_bytes
        self._limits = limits
        self._data = GzipFile(fileobj=file, mode="rb")
        self._at = 0
        self._headers_left = HEADERS_BYTES_MAX
        self._header_left: int | None = None  # while tarfile looks for the next member
        self.last_block = b""  # of a header

    @contextmanager
    def reading_headers(self) -> Iterator[None]:
        self._header_left = min(HEADER_BYTES_MAX, self._headers_left)
        before = self._header_left
        try:
            yield
        finally:
            self._headers_left -= before - self._header_left
            self._header_left = None

    def read(self, size: int, /) -> bytes:
        if self._header_left is None:
            return self._taken(size)
        if not 0 <= size <= self._header_left:
            expected = f"at most {HEADER_BYTES_MAX} bytes of headers for a member, and {HEADERS_BYTES_MAX} for all"
            raise refusal(self._archive, "", expected, "more" if size > 0 else f"{size}")
        self._header_left -= size
        data = self._taken(size)
        if DIGITS_MAX.search(data):
            raise refusal(self._archive, "", "headers without endless numbers", "one of 300 digits")
        self.last_block = data
        return data

    def _taken(self, size: int) -> bytes:
        assert size <= CHUNK_BYTES
        data = self._data.read(size)
        self._at += len(data)
        check_sizes(self._archive, self._archive_bytes, self._at, self._limits)
        return data

    def seek(self, to: int, whence: int = 0, /) -> int:
        if whence or to < self._at:
            raise refusal(self._archive, "", "members one after the other", "a header that points backwards")
        while self._at < to and self._taken(min(to - self._at, CHUNK_BYTES)):
            pass
        return self._at

    def tell(self) -> int:
        return self._at


class _Data:
    """The data of one member, which the stream is at."""

    def __init__(self, archive: str, member: Member, stream: _Stream) -> None:
        self._archive = archive
        self._member = member
        self._stream = stream
        self._left = member.size_bytes

    def read(self, size: int, /) -> bytes:
        """Raises `InvalidModel` where the archive ends before the member does."""
        with damage_named(self._archive, self._member.stored_name):
            data = self._stream.read(min(size, self._left, CHUNK_BYTES))
            if self._left and size and not data:
                raise Damaged(f"{self._member.size_bytes - self._left} of the declared {self._member.size_bytes} bytes")
        self._left -= len(data)
        return data


class TarArchive:
    """An archive to be read once, from its first member to its last."""

    def __init__(self, archive: str, stream: _Stream, judge: Judge) -> None:
        self._archive = archive
        self._stream = stream
        self._judge = judge

    def members(self) -> Iterator[tuple[Member, _Data]]:
        """Every member that may be written, with its data, which is passed over when nobody reads it. After the last, the
        whole of the gzip has been read and agrees with its checksum. Raises `InvalidModel`."""
        with damage_named(self._archive):
            tar = self._opened()
        while (info := self._next(tar)) is not None:
            listed = self._listed(info)
            if listed is None:
                continue
            member = self._judge.admit(listed)
            self._judge.check_sizes()
            data = _Data(self._archive, member, self._stream)
            yield member, data
            while data.read(CHUNK_BYTES):
                pass
        with damage_named(self._archive):
            if self._stream.last_block.strip(b"\0"):  # tarfile takes a header that it cannot read for the end
                raise Damaged("a header that is none")
            while self._stream.read(CHUNK_BYTES):
                pass

    def _opened(self) -> tarfile.TarFile:
        with self._stream.reading_headers():
            file = cast(IO[bytes], self._stream)
            return tarfile.TarFile(fileobj=file, mode="r", encoding="utf-8", errors="surrogateescape")

    def _next(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        with damage_named(self._archive), self._stream.reading_headers():
            info = tar.next()
        tar.members = []  # type: ignore[attr-defined]  # nobody will ask again
        return info

    def _listed(self, info: tarfile.TarInfo) -> Listed | None:
        """None for the root itself, which is what `tar -C folder .` begins with."""
        stored = info.name
        name = stored
        while name.startswith("./"):
            name = name[2:]
        if name in ("", ".") and info.isdir():
            return None
        if info.type == tarfile.LNKTYPE:
            raise refusal(self._archive, stored, "a regular file or a folder", "a hard link")
        if info.sparse is not None:
            raise refusal(self._archive, stored, "a regular file or a folder", "a sparse file")
        kind = KINDS.get(info.type)
        if kind is None:
            raise refusal(self._archive, stored, "a regular file or a folder", f"an entry of type {info.type!r}")
        return Listed(name + "/" * (kind == stat.S_IFDIR), kind, info.size, stored)


@contextmanager
def opened_tar(archive: Path, limits: ArchiveLimits) -> Iterator[TarArchive]:
    """Raises `OSError` when it cannot be read."""
    with open_regular(archive) as file:
        archive_bytes = archive.stat().st_size
        stream = _Stream(archive.name, file, archive_bytes, limits)
        yield TarArchive(archive.name, stream, Judge(archive.name, archive_bytes, limits))


def extract_tar(archive: Path, into: Path, limits: ArchiveLimits) -> None:
    """Raises `InvalidModel`, `OSError`."""
    with undone_on_failure(into), opened_tar(archive, limits) as tar:
        members = []
        for member, data in tar.members():
            members.append(member)
            make_folders(into, member.parts if member.is_folder else member.parts[:-1])
            if not member.is_folder:
                with create_file(into.joinpath(*member.parts)) as output:
                    copy_exactly(data, output, member.size_bytes)
        top = top_folder(archive.name, members, ROOT_MARK)
        if top is not None:
            _lift(into, top)


def _lift(into: Path, top: str) -> None:
    """What lies in the one folder belongs beside it. That nothing meets there has been checked."""
    aside = into / uuid.uuid4().hex  # what lies in it may have its own name
    (into / top).rename(aside)
    for entry in aside.iterdir():
        entry.rename(into / entry.name)
    aside.rmdir()


def why_gzip_is_cut(archive: Path, limits: ArchiveLimits) -> str | None:
    """Why the file cannot be a whole gzip: its data, its length and its checksum are read. None as well for one that is not worth reading to
    its end, which unpacking refuses. Raises `OSError`."""
    with open_regular(archive) as file:
        stream = _Stream(archive.name, file, archive.stat().st_size, limits)
        try:
            while stream.read(CHUNK_BYTES):
                pass
        except InvalidModel:
            return None
        except EOFError:
            return "without the end of one"
        except (BadGzipFile, zlib.error) as error:
            return f"that are damaged ({error})"
    return None

"""A `.mar`: a zip, deflated or stored. Its directory is judged as a whole before the first file is created; what only the data
can tell (checksums, real lengths) is judged while writing."""

import errno
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader, FileIO
from pathlib import Path
from typing import IO, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile, ZipInfo

from ringserve.server.repository.archive_plan import LOCAL_HEADER_BYTES, ArchiveLimits, Member, plan, refusal
from ringserve.server.repository.archive_writing import (
    CHUNK_BYTES,
    Damaged,
    copy_exactly,
    create_file,
    make_folders,
    undone_on_failure,
)

TAIL_BYTES_MAX = (
    1 << 17
)  # zipfile reads the end record "to the end of the file": at most 64 KiB of comment and 22 bytes

# From this length on it is worth asking the kernel, and so much at a time: 1 GB took 1.4 s instead of 1.9 (ext4), a quarter less CPU.
IN_KERNEL_BYTES_MIN = 1 << 20
IN_KERNEL_BYTES_MAX = 1 << 30
NOT_IN_KERNEL = (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.ETXTBSY)

# What zipfile and zlib raise on bytes that are not what they claim. OSError is not among them: a full disk is ours.
DAMAGE = (
    BadZipFile,
    Damaged,
    EOFError,
    NotImplementedError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zlib.error,
)


class ZipArchive:
    """An open archive whose directory has been judged. Made by `opened_zip`."""

    def __init__(self, name: str, bundle: ZipFile, members: Sequence[Member]) -> None:
        self.members = members
        self._name = name
        self._bundle = bundle
        self._infos = {member.parts: info for member, info in zip(members, bundle.infolist(), strict=True)}

    def read(self, member: Member, bytes_max: int) -> bytes:
        """The first `bytes_max` bytes of a file. Raises `InvalidModel`."""
        with self._damage_named(member), self._open(member) as source:
            return source.read(bytes_max)

    def extract(self, into: Path) -> None:
        """Opening a member compares its own header with the directory's entry: do that for all before any is written."""
        for member in self.members:
            with self._damage_named(member), self._open(member):
                pass
        with undone_on_failure(into):
            for member in self.members:
                self._write(member, into)

    def _write(self, member: Member, into: Path) -> None:
        make_folders(into, member.parts if member.is_folder else member.parts[:-1])
        if member.is_folder:
            return
        with (
            create_file(into.joinpath(*member.parts)) as output,
            self._damage_named(member),
            self._open(member) as source,
        ):
            info = self._info(member)
            stored = info.compress_type == ZIP_STORED and info.compress_size == info.file_size
            if not (stored and info.file_size >= IN_KERNEL_BYTES_MIN and self._copied_in_kernel(info, output)):
                copy_exactly(source, output, member.size_bytes)

    def _copied_in_kernel(self, info: ZipInfo, output: BinaryIO) -> bool:
        """Data that is stored as it is need not come through this process; where the file system can share it between two files, it is
        not even copied. False where the kernel does not do that, and nothing is written. Raises `BadZipFile`."""
        file = self._bundle.fp
        assert file is not None
        header = os.pread(file.fileno(), LOCAL_HEADER_BYTES, info.header_offset)
        name_bytes, extra_bytes = struct.unpack_from("<HH", header, 26)  # APPNOTE.TXT 4.3.7
        at = info.header_offset + LOCAL_HEADER_BYTES + name_bytes + extra_bytes
        copied_bytes = 0
        while copied_bytes < info.file_size:
            wanted = min(info.file_size - copied_bytes, IN_KERNEL_BYTES_MAX)
            try:
                count = os.copy_file_range(file.fileno(), output.fileno(), wanted, at + copied_bytes, copied_bytes)
            except OSError as error:
                if error.errno not in NOT_IN_KERNEL:
                    raise
                count = 0
            if not count:
                os.ftruncate(output.fileno(), 0)
                return False
            copied_bytes += count
        _check_crc(output, info)  # of what was written: the archive may have changed meanwhile
        return True

    def _open(self, member: Member) -> IO[bytes]:
        return self._bundle.open(self._info(member))

    def _info(self, member: Member) -> ZipInfo:
        return self._infos[member.parts]

    @contextmanager
    def _damage_named(self, member: Member) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            got = str(error) or type(error).__name__
            raise refusal(self._name, member.stored_name, "intact data", got) from error


def _check_crc(file: BinaryIO, info: ZipInfo) -> None:
    crc, buffer = 0, bytearray(CHUNK_BYTES)
    file.seek(0)
    with memoryview(buffer) as view, FileIO(file.fileno(), closefd=False) as raw:
        while count := raw.readinto(buffer):
            crc = zlib.crc32(view[:count], crc)
    if crc != info.CRC:
        raise BadZipFile(f"Bad CRC-32 for file {info.orig_filename!r}")


@contextmanager
def opened_zip(archive: Path, limits: ArchiveLimits) -> Iterator[ZipArchive]:
    """Raises `InvalidModel` for what is no zip, or holds what may not be unpacked; `OSError` when it cannot be read."""
    with _DirectoryReader(archive, limits.directory_bytes_max) as file, _opened(archive, file) as bundle:
        file.directory_bytes_max = None
        members = plan(archive.name, os.fstat(file.fileno()).st_size, bundle.infolist(), limits)
        yield ZipArchive(archive.name, bundle, members)


class _DirectoryReader(BufferedReader):
    """A file whose single reads are bounded while zipfile opens it.

    zipfile loads the whole central directory with one read, and builds an object for every 46 bytes of it, before
    anybody can count its members.
    """

    def __init__(self, archive: Path, directory_bytes_max: int) -> None:
        super().__init__(FileIO(archive, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)))
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

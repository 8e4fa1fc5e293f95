"""How the members of an archive get into a folder, whichever format they come from: new files only, exactly as long as they were
declared, and nothing left of them when one fails."""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Protocol

CHUNK_BYTES = 1 << 20


class Damaged(Exception):
    """What an archive holds is not what it says."""


class Source(Protocol):
    """Where the data of one member is read from."""

    def read(self, size: int, /) -> bytes:
        """At most `size` bytes; none at the end."""


@contextmanager
def undone_on_failure(into: Path) -> Iterator[None]:
    """`into` is created when missing and must be empty otherwise (`FileExistsError`); after an error it is as it was before."""
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


def create_file(target: Path) -> BinaryIO:
    # O_EXCL: the plan has made every name unique, so a file that is already there is not ours to overwrite.
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return open(os.open(target, flags, 0o600), "w+b")


def make_folders(into: Path, parts: Sequence[str]) -> None:
    folder = into
    for part in parts:
        folder = folder / part
        if not folder.is_dir():
            folder.mkdir(mode=0o700)


def copy_exactly(source: Source, output: IO[bytes], bytes_expected: int) -> None:
    """Copy the whole of `source`. Raises `Damaged` when it is shorter or longer than declared, at once when longer."""
    copied_bytes = 0
    while chunk := source.read(CHUNK_BYTES):
        copied_bytes += len(chunk)
        if copied_bytes > bytes_expected:
            raise Damaged(f"more than the declared {bytes_expected} bytes")
        output.write(chunk)
    if copied_bytes != bytes_expected:
        raise Damaged(f"{copied_bytes} of the declared {bytes_expected} bytes")

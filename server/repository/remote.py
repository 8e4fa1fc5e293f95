"""Archives from elsewhere: fetched into the model store whole, or not at all.

What comes is written to a hidden file beside its place (`.name.mar.<hex>.part`, which nobody takes for a model) and gets
its name when it is complete and on the disk. A name that is taken is never overwritten.
"""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import re
import stat
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Self

from ringserve.protocol.errors import DownloadFailed, Internal, ModelNotFound, RingServeError
from ringserve.server.repository.allowed_urls import (
    AllowedUrls,
    BadUrl,
    check_characters,
    climbs,
    file_name,
    parse_file,
    shown_url,
)
from ringserve.server.repository.http_source import open_http
from ringserve.server.repository.incoming import (
    CHUNK_BYTES,
    DownloadLimits,
    Incoming,
    NotAllowed,
    Progress,
    SourceFailed,
)
from ringserve.server.repository.s3 import open_s3, signed_headers
from ringserve.server.repository.threads import ThreadOfOne, in_daemon_thread

logger = logging.getLogger("ringserve.download")

PART = re.compile(r"\..+\.[0-9a-f]{16}\.part")
CHUNKS_AT_ONCE = 100  # one read of the socket may hold thousands of tiny ones, all of them there without any waiting
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)  # file systems that have none


@dataclass(frozen=True, slots=True)
class Fetched:
    """Where the model of a registration lies. `remote`: its URL is not a name of the store, so that unregistering it deletes
    the file. `downloaded`: by this very call, so that its failure deletes the file."""

    path: Path
    shown_url: str
    remote: bool = False
    downloaded: bool = False


class RemoteSources:
    """What may be fetched, and what was: `names` are the files of the store that came by URL or are just coming."""

    def __init__(
        self,
        allowed_urls: Sequence[str] = (),
        limits: DownloadLimits | None = None,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """Raises `ValueError` for a pattern that is no regular expression."""
        self.names: set[str] = set()
        self._allowed = AllowedUrls(allowed_urls)
        self._limits = limits or DownloadLimits()
        self._environ = environ
        self._running: set[asyncio.Timeout] = set()
        self._stopped = False

    async def fetch(self, url: str, folder: Path, *, s3_sse_kms: bool = False, at_startup: bool = False) -> Fetched:
        """The file of `url` in `folder`. At start-up a file that is there already is used as it is.

        Raises `ModelNotFound` when it is not allowed, `DownloadFailed` when it cannot be had, `Internal` when its name is
        taken or the disk refuses. Nothing is left behind then.
        """
        shown = shown_url(url)
        if climbs(url):
            raise ModelNotFound(f"Relative path is not allowed in url: {shown}")
        if not self._allowed.match(url):
            raise ModelNotFound(f"Given URL {shown} does not match any allowed URL(s)")
        try:
            check_characters(url)
            name = file_name(url)
        except BadUrl as error:
            raise _failure(shown, str(error)) from None
        target = folder / name
        if at_startup and target.is_file():
            logger.info("%s is in the model store already and is not downloaded again", name)
            self.names.add(name)
            return Fetched(target, shown, remote=True)
        if name in self.names or os.path.lexists(target):
            raise Internal(f"Model file already exists {name}")
        self.names.add(name)
        try:
            await self._download(url, shown, target, s3_sse_kms)
        except BaseException as error:
            self.names.discard(name)
            if isinstance(error, RingServeError):
                logger.warning("%s", error.message)
            raise
        return Fetched(target, shown, remote=True, downloaded=True)

    def forget(self, fetched: Fetched) -> None:
        """The model is unregistered: when it came by URL, its file goes. May take a moment, and may be called in a thread."""
        if not fetched.remote:
            return
        try:
            fetched.path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s is not deleted: %s", fetched.path.name, error.strerror)
        self.names.discard(fetched.path.name)

    def take_back(self, fetched: Fetched) -> None:
        """The registration failed: what it downloaded goes, what was there before it stays."""
        if fetched.downloaded:
            self.forget(fetched)
        elif fetched.remote:
            self.names.discard(fetched.path.name)

    def stop(self) -> None:
        """The server ends: downloads fail now."""
        self._stopped = True
        for patience in self._running:
            if not patience.expired():
                patience.reschedule(0)

    async def _download(self, url: str, shown: str, target: Path, s3_sse_kms: bool) -> None:
        started_s = time.monotonic()
        logger.info("downloading %s", shown)
        try:
            async with PartFile(target) as part, asyncio.timeout(self._limits.total_s) as patience:
                self._running.add(patience)
                if self._stopped:
                    patience.reschedule(0)
                async with self._open(url, s3_sse_kms) as incoming:
                    size_bytes = await self._receive(incoming, part)
                await part.publish()  # last: after that nothing can fail
        except NotAllowed as error:
            raise ModelNotFound(f"Given URL {shown} does not match any allowed URL(s) ({error})") from error
        except SourceFailed as error:
            raise _failure(shown, str(error)) from error
        except FileExistsError as error:
            raise Internal(f"Model file already exists {target.name}") from error
        except TimeoutError as error:
            if not patience.expired():
                raise _not_saved(target, error) from error
            why = f"not complete after model_download_timeout, {self._limits.total_s:g} s"
            raise _failure(shown, "the server stops" if self._stopped else why) from None
        except OSError as error:
            raise _not_saved(target, error) from error
        finally:
            self._running.discard(patience)
        logger.info("downloaded %s: %d bytes in %.1f s", shown, size_bytes, time.monotonic() - started_s)

    def _open(self, url: str, s3_sse_kms: bool) -> AbstractAsyncContextManager[Incoming]:
        scheme = url.partition(":")[0].lower()
        if scheme == "file":
            return open_file(url, self._limits)
        if scheme == "s3":
            return open_s3(url, self._limits)
        return open_http(
            url, self._allowed, self._limits, partial(signed_headers, self._environ) if s3_sse_kms else None
        )

    async def _receive(self, incoming: Incoming, part: "PartFile") -> int:
        """Write what comes. Returns how many bytes it was."""
        whole = incoming.bytes_announced
        progress = Progress(whole, time.monotonic())
        received_bytes, taken, gathered = 0, 0, bytearray()
        async with contextlib.aclosing(incoming.chunks) as chunks:
            await part.create(whole or 0)
            async for chunk in chunks:
                taken += 1
                if taken % CHUNKS_AT_ONCE == 0:
                    await asyncio.sleep(0)
                received_bytes += len(chunk)
                too_large = self._limits.too_large(received_bytes)
                if too_large:
                    raise SourceFailed(f"at least {too_large}")
                gathered += chunk
                if len(gathered) >= CHUNK_BYTES:
                    await part.write(gathered)
                    gathered = bytearray()
                line = progress.line(received_bytes, time.monotonic())
                if line is not None:
                    logger.info("downloading %s: %s", part.target.name, line)
        if whole is not None and received_bytes != whole:
            raise SourceFailed(f"it ended after {received_bytes:,} of {whole:,} bytes")
        await part.write(gathered)
        return received_bytes


def _failure(shown: str, cause: str) -> DownloadFailed:
    return DownloadFailed(f"Failed to download archive from: {shown} ({cause})")


def _not_saved(target: Path, error: OSError) -> Internal:
    return Internal(f"Failed to save model: {target.name} ({error.strerror or error})")


# ---- the file on its way


class PartFile:
    """A file that is not complete, gone at the end of the `with` unless it was published. Locked while we live: what a
    killed server left is told by its lock, and removed.

    What may take long runs in threads. Names are given and taken without, so that nothing happens after the end.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self._path: Path | None = None
        self._fd = -1
        self._thread: ThreadOfOne | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        if self._path is not None:
            with contextlib.suppress(FileNotFoundError):
                self._path.unlink()
        if self._thread is not None:
            self._thread.close()

    async def create(self, size_bytes: int) -> None:
        """Raises `OSError`, also when there is no room for so much: better now than when the disk is full for everybody."""
        folder = self.target.parent
        await in_daemon_thread(partial(sweep_parts, folder))
        room = await in_daemon_thread(partial(os.statvfs, folder))
        if room.f_bavail * room.f_frsize < size_bytes:
            raise OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)} for {size_bytes:,} bytes")
        self._path = self.target.with_name(f".{self.target.name}.{uuid.uuid4().hex[:16]}.part")
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._thread = ThreadOfOne(partial(os.close, self._fd))
        with contextlib.suppress(OSError):  # a file system without locks: nobody sweeps there
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)

    async def write(self, data: bytearray) -> None:
        assert self._thread is not None, "written before it was created"
        await self._thread.use(partial(_write_all, self._fd, data))

    async def publish(self) -> None:
        """Give it its name. Raises `FileExistsError`."""
        assert self._path is not None, "published before it was created"
        assert self._thread is not None
        await self._thread.use(partial(os.fsync, self._fd))
        try:
            os.link(self._path, self.target)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            if os.path.lexists(self.target):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(self.target)) from None
            os.rename(self._path, self.target)
        try:
            await in_daemon_thread(partial(_sync_folder, self.target.parent))
        except BaseException:
            self.target.unlink()
            raise


def _write_all(fd: int, data: bytearray) -> None:
    with memoryview(data) as view:
        written = 0
        while written < len(view):
            written += os.write(fd, view[written:])


def _sync_folder(folder: Path) -> None:
    """So that the name, too, is there after a power cut."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def sweep_parts(folder: Path) -> None:
    """Remove parts that nobody writes any more."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if PART.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _remove_unlocked(entry.path)


def _remove_unlocked(path: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(path)
        logger.info("removed %s, which a download left that was cut short", os.path.basename(path))
    finally:
        os.close(fd)


# ---- file:// URLs


@contextlib.asynccontextmanager
async def open_file(url: str, limits: DownloadLimits) -> AsyncIterator[Incoming]:
    """The regular file at a `file:` URL. Raises `SourceFailed`."""
    try:
        path = parse_file(url)
    except BadUrl as error:
        raise SourceFailed(str(error)) from None
    file, size_bytes = await in_daemon_thread(partial(_opened, path))
    thread = ThreadOfOne(file.close)
    try:
        too_large = limits.too_large(size_bytes)
        if too_large:
            raise SourceFailed(too_large)
        yield Incoming(size_bytes, _chunks(thread, file))
    finally:
        thread.close()


def _opened(path: str) -> tuple[FileIO, int]:
    """The file and its size. A pipe or a device is not even opened: that alone may hang, or do something."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise SourceFailed("expected a regular file")
        file = FileIO(path, opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))
    except OSError as error:
        raise SourceFailed(error.strerror or str(error)) from None
    status = os.fstat(file.fileno())
    if not stat.S_ISREG(status.st_mode):
        file.close()
        raise SourceFailed("expected a regular file")
    return file, status.st_size


async def _chunks(thread: ThreadOfOne, file: FileIO) -> AsyncGenerator[bytes, None]:
    while True:
        try:
            chunk = await thread.use(partial(file.read, CHUNK_BYTES))
        except OSError as error:
            raise SourceFailed(error.strerror or str(error)) from None
        if not chunk:
            return
        yield chunk

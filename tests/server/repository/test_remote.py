"""Archives from elsewhere: whole and under their name, or nothing, and why; and what is left when somebody dies."""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import threading
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from ringserve.protocol.errors import DownloadFailed, Internal, ModelNotFound
from ringserve.server.repository import remote
from ringserve.server.repository.incoming import DownloadLimits, Incoming, Progress
from ringserve.server.repository.remote import Fetched, RemoteSources
from ringserve.server.repository.threads import ThreadOfOne, in_daemon_thread
from tests.server.repository.fetching import ANY, BODY, LIMITS, failure, fetch, refused
from tests.server.repository.file_server import FileServer, answer

# ---- what goes well


def test_an_allowed_archive_arrives_whole_under_its_name(source: FileServer, store: Path) -> None:
    fetched = fetch(f"{source.url}/x.mar", store)
    assert fetched == Fetched(store / "x.mar", f"{source.url}/x.mar", remote=True, downloaded=True)
    assert [path.name for path in store.iterdir()] == ["x.mar"]
    assert fetched.path.read_bytes() == BODY


def test_a_long_body_is_written_as_it_comes(source: FileServer, store: Path) -> None:
    long = BODY * 40
    source.acts["/x.mar"] = answer(200, long)
    assert fetch(f"{source.url}/x.mar", store, limits=DownloadLimits(total_s=20)).path.read_bytes() == long


def test_a_source_that_sends_byte_by_byte_does_not_keep_the_event_loop(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = 0
    turn_of_chunk: list[int] = []

    async def tiny() -> AsyncGenerator[bytes, None]:
        for _ in range(1000):
            turn_of_chunk.append(turns)
            yield b"x"

    @contextlib.asynccontextmanager
    async def open_tiny(*_: object) -> AsyncIterator[Incoming]:
        yield Incoming(None, tiny())

    async def run() -> None:
        nonlocal turns
        download = asyncio.ensure_future(RemoteSources(ANY, LIMITS).fetch("http://h/x.mar", store))
        while not download.done():
            await asyncio.sleep(0)
            turns += 1
        assert (await download).path.stat().st_size == 1000

    monkeypatch.setattr(remote, "open_http", open_tiny)
    asyncio.run(run())
    assert Counter(turn_of_chunk).most_common(1)[0][1] <= remote.CHUNKS_AT_ONCE


def test_a_file_is_copied(store: Path, tmp_path: Path) -> None:
    (tmp_path / "a b.mar").write_bytes(BODY)
    (tmp_path / "link.mar").symlink_to(tmp_path / "a b.mar")
    assert fetch(f"file://{tmp_path}/a%20b.mar", store).path.read_bytes() == BODY
    assert fetch(f"file://localhost{tmp_path}/link.mar", store).path.read_bytes() == BODY
    assert not (store / "link.mar").is_symlink()


# ---- what is not allowed


@pytest.mark.parametrize("url", ["http://127.0.0.1/x.mar", "https://a/x.mar", "file:///x.mar", "s3://b/x.mar"])
def test_nothing_is_allowed_by_default(store: Path, url: str) -> None:
    message = refused(ModelNotFound, url, store, ())
    assert message == f"Given URL {url} does not match any allowed URL(s)"


def test_a_url_that_climbs_is_refused_also_when_encoded(store: Path) -> None:
    for url in ("http://a/../x.mar", "http://a/%2e%2e/x.mar"):
        assert refused(ModelNotFound, url, store) == f"Relative path is not allowed in url: {url}"


# ---- what goes wrong


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("gone.mar", "No such file or directory"),
        ("pipe.mar", "expected a regular file"),
        ("folder.mar", "expected a regular file"),
        ("large.mar", "1,000,001 bytes, and max_model_download_bytes is 1,000,000"),
    ],
)
def test_a_file_that_cannot_be_copied_says_why(store: Path, tmp_path: Path, name: str, cause: str) -> None:
    os.mkfifo(tmp_path / "pipe.mar")
    (tmp_path / "folder.mar").mkdir()
    (tmp_path / "large.mar").write_bytes(bytes(1_000_001))
    assert failure(f"file://{tmp_path}/{name}", store) == cause


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        ("http://a/x.zip", "expected a file name that ends in .mar or .tar.gz or .tgz, got 'x.zip'"),
        ("http://a/.x.mar", "expected a file name that ends in .mar or .tar.gz or .tgz, got '.x.mar'"),
        ("http:x.mar", "expected a host name of letters, digits, dots and dashes, got ''"),
        ("file://host/x.mar", "expected file:///path on this machine, got the host 'host'"),
        ("s3://bucket/x.mar?a", "expected s3://bucket/key"),
    ],
)
def test_a_url_that_cannot_be_fetched_says_why(store: Path, url: str, cause: str) -> None:
    message = refused(DownloadFailed, url, store, (".*",))
    assert message.endswith(f"({cause})")


def test_a_full_disk_is_our_failure(source: FileServer, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, write_all = f"{source.url}/x.mar", remote._write_all

    def full(fd: int, data: bytearray) -> None:
        write_all(fd, data[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(remote, "_write_all", full)
    assert refused(Internal, url, store) == "Failed to save model: x.mar (No space left on device)"
    source.acts["/x.mar"] = source.hang(promised_bytes=1 << 60)
    huge = DownloadLimits(bytes_max=1 << 61)
    assert refused(Internal, url, store, ANY, huge).startswith(
        "Failed to save model: x.mar (No space left on device for 1,"
    )


def test_a_store_that_is_gone_is_our_failure(source: FileServer, tmp_path: Path) -> None:
    with pytest.raises(Internal, match=r"^Failed to save model: x\.mar \(No such file or directory\)$"):
        fetch(f"{source.url}/x.mar", tmp_path / "none")


# ---- names that are taken


def test_a_file_of_the_store_is_never_replaced(source: FileServer, store: Path) -> None:
    (store / "x.mar").write_bytes(b"mine")
    assert refused(Internal, f"{source.url}/x.mar", store) == "Model file already exists x.mar"
    assert source.requests == []
    (store / "x.mar").unlink()
    (store / "x.mar").symlink_to("nowhere")
    assert refused(Internal, f"{source.url}/x.mar", store) == "Model file already exists x.mar"
    (store / "x.mar").unlink()

    def meanwhile(handler: Any) -> None:
        (store / "x.mar").write_bytes(b"mine")
        answer(200, BODY)(handler)

    source.acts["/x.mar"] = meanwhile
    with pytest.raises(Internal, match=r"^Model file already exists x\.mar$"):
        fetch(f"{source.url}/x.mar", store)
    assert [(path.name, path.read_bytes()) for path in store.iterdir()] == [("x.mar", b"mine")]


@pytest.mark.parametrize("taken", [False, True])
def test_a_file_system_without_links_replaces_nothing_either(
    source: FileServer, store: Path, monkeypatch: pytest.MonkeyPatch, taken: bool
) -> None:
    def link(_: Path, target: Path) -> None:
        if taken:
            target.write_bytes(b"mine")
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    if taken:
        with pytest.raises(Internal, match="already exists"):
            fetch(f"{source.url}/x.mar", store)
    else:
        fetch(f"{source.url}/x.mar", store)
    assert [path.read_bytes() for path in store.iterdir()] == [b"mine" if taken else BODY]


def test_at_start_up_a_file_that_is_there_is_used(source: FileServer, store: Path) -> None:
    (store / "x.mar").write_bytes(b"mine")
    sources = RemoteSources(ANY, LIMITS)
    url = f"{source.url}/x.mar"
    fetched = asyncio.run(sources.fetch(url, store, at_startup=True))
    assert fetched == Fetched(store / "x.mar", url, remote=True, downloaded=False)
    assert sources.names == {"x.mar"}
    assert source.requests == []
    with pytest.raises(ModelNotFound):
        fetch(url, store, (), at_startup=True)


def test_of_two_at_once_one_wins(source: FileServer, store: Path) -> None:
    async def both() -> list[object]:
        sources = RemoteSources(ANY, LIMITS)
        calls = [sources.fetch(f"{source.url}/x.mar", store) for _ in range(2)]
        return list(await asyncio.gather(*calls, return_exceptions=True))

    first, second = asyncio.run(both())
    assert isinstance(first, Fetched)
    assert isinstance(second, Internal)
    assert str(second) == "Model file already exists x.mar"
    assert len(source.requests) == 1


def test_a_name_is_free_again_after_a_failure_and_when_it_is_forgotten(source: FileServer, store: Path) -> None:
    async def again() -> None:
        sources = RemoteSources(ANY, LIMITS)
        with pytest.raises(DownloadFailed):
            await sources.fetch(f"{source.url}/y.mar", store)
        assert sources.names == set()
        source.acts["/y.mar"] = answer(200, BODY)
        for _ in range(2):
            fetched = await sources.fetch(f"{source.url}/y.mar", store)
            assert sources.names == {"y.mar"}
            sources.forget(fetched)
            sources.forget(fetched)
            assert sources.names == set()
            assert list(store.iterdir()) == []

    asyncio.run(again())


def test_a_file_of_the_store_itself_is_not_forgotten(store: Path) -> None:
    (store / "x.mar").write_bytes(b"mine")
    RemoteSources(ANY).forget(Fetched(store / "x.mar", "x.mar"))
    assert (store / "x.mar").exists()


# ---- the end of things


def test_a_cancelled_download_leaves_nothing(source: FileServer, store: Path) -> None:
    source.acts["/x.mar"] = source.hang(BODY, 500_000)

    async def cancelled() -> None:
        sources = RemoteSources(ANY, LIMITS)
        task = asyncio.ensure_future(sources.fetch(f"{source.url}/x.mar", store))
        await asyncio.to_thread(source.arrived.wait, 20)
        while not list(store.iterdir()):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert sources.names == set()

    asyncio.run(cancelled())
    assert list(store.iterdir()) == []


def test_a_server_that_stops_waits_for_no_source(source: FileServer, store: Path) -> None:
    source.acts["/x.mar"] = source.hang(b"start")

    async def stopped() -> None:
        sources = RemoteSources(ANY, LIMITS)
        task = asyncio.ensure_future(sources.fetch(f"{source.url}/x.mar", store))
        await asyncio.to_thread(source.arrived.wait, 20)
        sources.stop()
        sources.stop()
        for download in (task, sources.fetch(f"{source.url}/y.mar", store)):
            with pytest.raises(DownloadFailed, match=r"\(the server stops\)$"):
                await download

    asyncio.run(stopped())
    assert list(store.iterdir()) == []


def test_what_a_killed_server_left_is_removed_and_what_another_writes_is_not(source: FileServer, store: Path) -> None:
    left, locked = store / f".x.mar.{'0' * 16}.part", store / f".x.mar.{'1' * 16}.part"
    other = store / ".x.mar.part"
    for path in (left, locked, other):
        path.write_bytes(b"part")
    with locked.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        fetch(f"{source.url}/x.mar", store)
    assert {path.name for path in store.iterdir()} == {"x.mar", locked.name, other.name}


def test_secrets_of_a_url_are_neither_logged_nor_told(
    source: FileServer, store: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    url = f"{source.url}/x.mar?sig=5ecret"
    shown = f"{source.url}/x.mar?***"
    assert fetch(url, store).shown_url == shown
    assert source.requests[0][0] == "/x.mar?sig=5ecret"
    messages = [
        refused(DownloadFailed, f"{source.url}/y.mar?sig=5ecret", store),
        refused(DownloadFailed, url.replace("//", "//me:5ecret@").replace("x.mar", "z.mar"), store),
        refused(ModelNotFound, url, store, ()),
    ]
    assert shown in messages[2]
    assert "***@" in messages[1]
    assert "5ecret" not in caplog.text + "".join(messages)
    assert f"downloaded {shown}: 300000 bytes in " in caplog.text
    assert "y.mar?*** (status 404 Not Found)" in caplog.text


def test_progress_is_told_every_five_seconds_and_sooner_for_every_tenth() -> None:
    known, unknown = Progress(100 << 20, 0.0), Progress(None, 0.0)
    assert known.line(50 << 20, 0.5) is None
    assert known.line(50 << 20, 1.0) == "50.0 of 100.0 MiB (50%)"
    assert known.line(55 << 20, 5.9) is None
    assert known.line(55 << 20, 6.0) == "55.0 of 100.0 MiB (55%)"
    assert unknown.line(50 << 20, 4.9) is None
    assert unknown.line(50 << 20, 5.0) == "50.0 MiB"


# ---- threads


def test_what_a_thread_still_uses_is_closed_when_it_is_out() -> None:
    closed, inside, go_on = threading.Event(), threading.Event(), threading.Event()
    early = []

    def call() -> None:
        inside.set()
        go_on.wait(20)
        early.append(closed.is_set())

    async def left_alone() -> None:
        thread = ThreadOfOne(closed.set)
        task = asyncio.ensure_future(thread.use(call))
        await asyncio.to_thread(inside.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        thread.close()
        thread.close()
        go_on.set()

    asyncio.run(left_alone())
    assert closed.wait(20)
    assert early == [False]


def test_what_nobody_used_is_closed_too() -> None:
    closed = threading.Event()
    ThreadOfOne(closed.set).close()
    assert closed.wait(20)


def test_what_a_thread_raises_reaches_the_caller() -> None:
    async def raises() -> None:
        await in_daemon_thread(lambda: 1 // 0)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(raises())

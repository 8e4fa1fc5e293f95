"""What goes on to the supervisor where both APIs have one address, and what is said when it is not there."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from ringserve.protocol.errors import ShuttingDown
from ringserve.protocol.request import Answer
from ringserve.server.admin_socket import SOCKET_NAME, listen_privately, short_path
from ringserve.server.routes.forwarding import Forwarding

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.mark.parametrize(
    ("path", "forwarded"),
    [
        ("/models", True),
        ("/models/", True),
        ("/models/m/1.0/set-default", True),
        ("/models/m/invoke", False),
        ("/models/m/invoke/", False),
        ("/models//invoke", False),
        ("/models/m/1.0/invoke", True),
        ("/models/m/invoked", True),
        ("/models/invoke", True),
        ("/status", True),
        ("/token", True),
        ("/workflows/w", True),
        ("/", True),
        ("/api-description", True),
        ("/modelsx", False),
        ("/v1/models/m", False),
        ("/predictions/models", False),
        ("/ping", False),
    ],
)
def test_the_first_segment_says_whose_a_path_is_but_for_an_invocation(path: str, forwarded: bool) -> None:
    assert Forwarding(Path("nowhere")).takes(path) is forwarded


def talk(folder: Path, serve: Serve, body: bytes = b"", method: str = "PUT") -> Answer:
    """One request to a supervisor that `serve` plays."""

    async def asked() -> Answer:
        listening = listen_privately(folder / SOCKET_NAME, 1)
        server = await asyncio.start_unix_server(serve, sock=listening)
        try:
            headers = [("content-type", "a/b"), ("Connection", "x"), ("transfer-encoding", "chunked"), ("X-Q", "é")]
            forwarding = Forwarding(folder / SOCKET_NAME)
            return await forwarding.answer(method, b"/models/%41?b=1", headers, "rid-1", body)
        finally:
            server.close()

    return asyncio.run(asyncio.wait_for(asked(), 10))


def test_a_request_goes_on_as_it_came_but_for_what_belongs_to_the_connection(tmp_path: Path) -> None:
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.readuntil(b"\r\n\r\n") + await reader.readexactly(4))
        writer.write(
            b"HTTP/1.1 409 Conflict\r\ncontent-type: application/json\r\nRetry-After: 3\r\nconnection: close\r\n"
        )
        writer.write(b"content-length: 2\r\n\r\n")
        await writer.drain()
        writer.write(b"{}")
        writer.close()

    answer = talk(tmp_path, serve, b"body")
    assert answer == Answer(b"{}", "application/json", 409, headers={"retry-after": "3"})
    assert heard.decode() == (
        "PUT /models/%41?b=1 HTTP/1.1\r\ncontent-type: a/b\r\nX-Q: é\r\n"
        "x-request-id: rid-1\r\ncontent-length: 4\r\nconnection: close\r\n\r\nbody"
    )


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", b"nonsense\r\n\r\n"])
def test_a_supervisor_that_goes_meanwhile_is_unavailable(tmp_path: Path, said: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    with pytest.raises(ShuttingDown, match="The management API does not answer"):
        talk(tmp_path, serve)


def test_the_answer_to_head_has_no_body(tmp_path: Path) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 9\r\n\r\n")
        writer.close()

    answer = talk(tmp_path, serve, method="HEAD")
    assert (answer.status, answer.body) == (405, b"")


def test_a_method_that_is_no_text_goes_on_as_it_came(tmp_path: Path) -> None:
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.extend(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 405 Method Not Allowed\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    assert talk(tmp_path, serve, method="G\udcffT").status == 405
    assert heard.startswith(b"G\xffT /models/")


def test_without_a_supervisor_there_is_no_waiting(tmp_path: Path) -> None:
    for path in (tmp_path / SOCKET_NAME, tmp_path / "no folder" / SOCKET_NAME):
        with pytest.raises(ShuttingDown):
            asyncio.run(Forwarding(path).answer("GET", b"/models", [], "rid", b""))


def test_who_waits_while_the_front_end_stops_is_told(tmp_path: Path) -> None:
    async def stopped() -> None:
        arrived = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            arrived.set()
            await reader.read()
            writer.close()

        server = await asyncio.start_unix_server(serve, sock=listen_privately(tmp_path / SOCKET_NAME, 1))
        forwarding = Forwarding(tmp_path / SOCKET_NAME)
        waiting = asyncio.ensure_future(forwarding.answer("GET", b"/models", [], "rid", b""))
        await arrived.wait()
        forwarding.stop()
        with pytest.raises(ShuttingDown):
            await waiting
        with pytest.raises(ShuttingDown):
            await forwarding.answer("GET", b"/models", [], "rid", b"")
        server.close()

    asyncio.run(asyncio.wait_for(stopped(), 10))


def test_only_its_owner_reaches_the_socket_however_deep_its_folder_lies(tmp_path: Path) -> None:
    folder = tmp_path / ("deep" * 20) / ("deeper" * 20)
    folder.mkdir(parents=True)
    with listen_privately(folder / SOCKET_NAME, 1) as sock:
        assert (folder / SOCKET_NAME).stat().st_mode & 0o777 == 0o600
        with short_path(folder / SOCKET_NAME) as name:
            assert len(name) < 100
        assert sock.getblocking() is False

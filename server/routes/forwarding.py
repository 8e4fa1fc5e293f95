"""One address for several APIs (contract section 2.10): a front end has it, and passes on to the supervisor what is management's, or
of metrics, and always what only the supervisor knows of the Open Inference Protocol (open_inference/control_paths.py).

The supervisor answers as on an address of its own, so nothing here knows what the requests mean.
"""

import asyncio
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import httptools

from ringserve.protocol.errors import ShuttingDown
from ringserve.protocol.request import Answer
from ringserve.server.admin_socket import short_path
from ringserve.server.open_inference.control_paths import is_control

# What the paths of each begin with, and the paths of the document of both. Probes are answered by every listener itself.
SEGMENTS = {
    "management": frozenset(("", "api-description", "models", "status", "token", "workflows")),
    "metrics": frozenset(("metrics",)),
}
_INVOKE = re.compile("[^/]*/invoke/*")
READ_BYTES = 65_536
# These belong to one connection, or are said anew.
_HOP_BY_HOP = frozenset(
    (
        "connection",
        "content-length",
        "expect",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "x-request-id",
    )
)
GONE = "The management API does not answer: the server is starting or going down."


class _Response:
    """What llhttp finds in the supervisor's answer."""

    def __init__(self) -> None:
        self.headers: dict[str, str] = {}
        self.body = bytearray()
        self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("utf-8", "surrogateescape")

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.complete = True


class Forwarding:
    """Passes requests on to the socket at `path`: those of management, of metrics, or of both."""

    def __init__(self, path: Path, whose: Sequence[str] = ("management",)) -> None:
        self._path = path
        self._segments = frozenset[str]().union(*(SEGMENTS[each] for each in whose))
        self._running: set[asyncio.Task[Answer]] = set()
        self._stopped = False

    def takes(self, path: str) -> bool:
        """Whether a request for this path is to be passed on. `/models/{model}/invoke` is an inference, as in TorchServe. What of the Open
        Inference Protocol is about the server itself always is."""
        first, _, rest = path[1:].partition("/")
        if first == "v2":
            return is_control(path)
        return first in self._segments and not (first == "models" and _INVOKE.fullmatch(rest))

    async def answer(
        self,
        method: str,
        target: bytes,
        headers: Iterable[tuple[str, str]],
        rid: str,
        body: bytes | bytearray | memoryview,
    ) -> Answer:
        """What the supervisor says. Raises `ShuttingDown` when it is not there, or goes meanwhile."""
        if self._stopped:
            raise ShuttingDown(GONE)
        work = asyncio.ensure_future(self._asked(method, _head(method, target, headers, rid, len(body)), body))
        self._running.add(work)
        work.add_done_callback(self._running.discard)
        try:
            return await work
        except asyncio.CancelledError:
            if self._stopped:
                raise ShuttingDown(GONE) from None
            raise

    def stop(self) -> None:
        """The server goes down: whoever waits is told so. What was asked for is the supervisor's to finish, or not."""
        self._stopped = True
        for work in self._running:
            work.cancel()

    async def _asked(self, method: str, head: bytes, body: bytes | bytearray | memoryview) -> Answer:
        response = _Response()
        parser = httptools.HttpResponseParser(response)
        try:
            with short_path(self._path) as name:
                reader, writer = await asyncio.open_unix_connection(name)
            try:
                writer.writelines((head, body))
                while not response.complete and (data := await reader.read(READ_BYTES)):
                    parser.feed_data(data)
            finally:
                writer.close()
        except (OSError, httptools.HttpParserError):
            raise ShuttingDown(GONE) from None
        if not response.complete and method != "HEAD":
            raise ShuttingDown(GONE)
        kept = {name: value for name, value in response.headers.items() if name not in _HOP_BY_HOP}
        content_type = kept.pop("content-type", None)
        return Answer(bytes(response.body), content_type, parser.get_status_code(), headers=kept)


def _head(method: str, target: bytes, headers: Iterable[tuple[str, str]], rid: str, length: int) -> bytes:
    lines = [f"{name}: {value}" for name, value in headers if name.lower() not in _HOP_BY_HOP]
    lines += [f"x-request-id: {rid}", f"content-length: {length}", "connection: close", "", ""]
    return b"%b %b HTTP/1.1\r\n" % (method.encode("utf-8", "surrogateescape"), target) + "\r\n".join(lines).encode(
        "utf-8", "surrogateescape"
    )

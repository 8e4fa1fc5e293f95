"""One client of the recorded conversation about inference: it writes requests by hand, and notes of each answer what a client acts
on: status, phrase, headers, body, and for an answer in parts the parts and whether it ended.

What differs from request to request (ids, times) is written as its kind, what every answer says the same is left out.
"""

import hashlib
import io
import json
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import torch

from ringserve.server.testing import wait_until

Step = tuple[str, Any]
ANSWER_S_MAX = 30.0
HOST = "a.example"  # of every request, so that no answer tells where a server listens
USUAL = {
    "pragma": "no-cache",
    "cache-control": "no-cache; no-store, must-revalidate, private",
    "expires": "Thu, 01 Jan 1970 00:00:00 UTC",
    "connection": "keep-alive",
}
ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
BODILESS = (204, 304)
LONG_BYTES = 4096
DOCUMENT = re.compile(rb'\{\s*"openapi"')  # what it says is the matter of other tests
TENSOR = b"PK\x03\x04"  # what torch.save writes is a zip archive


@dataclass(frozen=True, slots=True)
class Ask:
    """`line` is a method and a target as it stands in the request line. A list of chunks as the body is sent chunked."""

    line: str
    body: bytes | Sequence[bytes] | None = None
    headers: Mapping[str, str] | Sequence[tuple[str, str]] = ()
    note: str = ""

    @property
    def label(self) -> str:
        return f"{self.line} {self.note}".rstrip()

    @property
    def wire(self) -> bytes:
        lines = [f"{self.line} HTTP/1.1", f"host: {HOST}"]
        lines += [f"{name}: {value}" for name, value in dict_or_pairs(self.headers)]
        body = b""
        if isinstance(self.body, bytes):
            lines.append(f"content-length: {len(self.body)}")
            body = self.body
        elif self.body is not None:
            lines.append("transfer-encoding: chunked")
            body = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in [*self.body, b""])
        return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def dict_or_pairs(headers: Mapping[str, str] | Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    return list(headers.items()) if isinstance(headers, Mapping) else list(headers)


@dataclass(frozen=True, slots=True)
class Peer:
    """A server that runs, TorchServe or ours, and what is asked of it."""

    inference_url: str
    management_url: str

    def say(self, *asks: Ask) -> Iterator[Step]:
        """One after the other, each on a connection of its own."""
        for ask in asks:
            with Said(self.inference_url, ask) as said:
                yield ask.label, said.seen()

    def manage(self, *asks: Ask) -> Iterator[Step]:
        """As `say`, to the management listener."""
        for ask in asks:
            with Said(self.management_url, ask) as said:
                yield f"management {ask.label}", said.seen()

    def together(self, *asks: Ask) -> list[dict[str, Any]]:
        """All are sent before the first answer is read."""
        answers = []
        for said in [Said(self.inference_url, ask) for ask in asks]:
            with said:
                answers.append(said.seen())
        return answers

    def described(self, model: str) -> dict[str, Any]:
        """The management listener's words about the default version of a model; {} while there is none."""
        with Said(self.management_url, Ask(f"GET /models/{model}")) as said:
            seen = said.seen()
        return dict(json.loads(seen["body"])[0]) if seen["status"] == 200 else {}

    def wait_for(self, *models: str, patience_s: float = 3 * ANSWER_S_MAX) -> None:
        """Until every model has workers, and all of them are ready."""

        def ready() -> bool:
            workers = [self.described(model).get("workers") for model in models]
            return all(each and all(worker["status"] == "READY" for worker in each) for each in workers)

        wait_until(ready, patience_s, f"ready workers of {models}")


class Said:
    """A request that was sent, and the connection on which its answer comes."""

    def __init__(self, url: str, ask: Ask) -> None:
        address = urlsplit(url)
        assert address.hostname is not None and address.port is not None
        self._head_only = ask.line.startswith("HEAD ")
        self._socket = socket.create_connection((address.hostname, address.port), ANSWER_S_MAX)
        self._reader = self._socket.makefile("rb")
        self._socket.sendall(ask.wire)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self._reader.close()
        self._socket.close()

    def seen(self) -> dict[str, Any]:
        """The answer, as JSON. A connection that ends without one is `{"status": 0}`, an answer that does not come or does not
        end `{"status": "never"}`."""
        try:
            return self._seen()
        except ConnectionResetError:
            return {"status": 0}
        except TimeoutError:
            return {"status": "never"}

    def _seen(self) -> dict[str, Any]:
        line = self._reader.readline().decode("iso-8859-1").rstrip("\r\n")
        if not line:
            return {"status": 0}
        _, status, phrase = (line + "  ").split(" ", 2)
        headers = self._headers()
        seen: dict[str, Any] = {"status": int(status), "phrase": phrase.strip()}
        if int(status) < 200:
            return self._seen()
        length = headers.pop("content-length", None)
        chunked = headers.pop("transfer-encoding", None) == "chunked"
        seen["headers"] = shown_headers(headers)
        if int(status) in BODILESS:
            return {**seen, "body": ""}
        if self._head_only:
            return {**seen, "body": "" if length is None else "<length>"}
        if chunked:
            parts, ended = self._parts()
            return {**seen, "parts": [text_of(part) for part in parts], "ended": ended}
        body = self._reader.read(int(length.partition(",")[0])) if length is not None else self._reader.read()
        return {**seen, "body": text_of(body), **({} if length is not None else {"until": "closed"})}

    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        while line := self._reader.readline().decode("utf-8", "replace").rstrip("\r\n"):
            name, _, value = line.partition(":")
            name, value = name.strip().lower(), value.strip()
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        return headers

    def _parts(self) -> tuple[list[bytes], bool]:
        """The chunks as they were sent, and whether the last one came."""
        parts: list[bytes] = []
        try:
            while line := self._reader.readline():
                size = int(line, 16)
                part = self._reader.read(size + 2)[:size]
                if size == 0:
                    return parts, True
                parts.append(part)
        except ConnectionResetError:
            pass
        return parts, False


def shown_headers(headers: Mapping[str, str]) -> dict[str, str | None]:
    """Without what every answer says; None for what every other one says and this one does not."""
    missing: dict[str, str | None] = {name: None for name in (*USUAL, "x-request-id") if name not in headers}
    said = {name: ID.sub("<id>", value) for name, value in headers.items() if USUAL.get(name) != value}
    if said.get("x-request-id") == "<id>":
        del said["x-request-id"]
    return dict(sorted({**said, **missing}.items(), key=lambda item: item[0]))


def text_of(body: bytes) -> Any:
    """The body as text, or, where it is none, as what it holds, or, where it is long, as its digest."""
    if DOCUMENT.match(body):
        return "<document>"
    if len(body) > LONG_BYTES:
        return {"length": len(body), "digest": hashlib.sha256(body).hexdigest()}
    if body.startswith(TENSOR):
        return {"tensor": repr(torch.load(io.BytesIO(body), weights_only=True))}
    try:
        return ID.sub("<id>", body.decode())
    except UnicodeDecodeError:
        return {"bytes": body.hex()}

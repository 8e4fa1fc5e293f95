"""From a request to the handler's data: bodies, content types, forms, parts, queries, headers (contract 1.1, 1.3)."""

from collections.abc import Iterator

from tests.e2e.inference.talk import Ask, Peer, Step

ECHO = "POST /predictions/echo"
BODIES: dict[str, bytes] = {
    "an object": b'{"a": [1, 2.5, "x"], "b": null}',
    "text": "gr\u00fc\u00dfe".encode(),
    "binary": bytes([0, 1, 10, 13, 127, 128, 255]),
}
CONTENT_TYPES = (
    "application/json",
    "application/json; charset=utf-8",
    "application/json;charset=latin1",
    "Application/JSON",
    "application/vnd.api+json",
    "text/plain",
    "text/html; charset=utf-8",
    "text",
    "TEXT/plain",
    "application/octet-stream",
    "image/jpeg",
    "nonsense",
    "; charset=utf-8",
)
BROKEN = {
    "JSON": (
        b"",
        b"{",
        b"[1, 2",
        b"NaN",
        b"[NaN, Infinity, -Infinity]",
        b"{'a': 1}",
        b"\xff",
        b"1 2",
        b'"\\ud800"',
        b" 7 ",
    ),
    "JSON, odd": (
        b'{"a": 1, "a": 2}',
        b"123456789012345678901234567890",
        b"1e400",
        b"\xef\xbb\xbf[1]",
        b"null",
        b"true",
        b'"text"',
        b"-0.0",
        b"[" * 20 + b"]" * 20,
        b'"\xc3\xa9"',
        b'{"body": 1}',
    ),
}
FORM = {"content-type": "application/x-www-form-urlencoded"}
FORMS = (
    b"a=1",
    b"a=1&b=two",
    b"a=1&a=2",
    b"a=%00%01%FF&b=%C3%A9",
    b"a=x+y&b=x%20y&c=x%2By",
    b"a",
    b"a=",
    b"=1",
    b"",
    b"a=1&",
    b"a=%zz",
    b'{"a": 1}',
    b"model_name=echo&a=1",
    "a=\u00e9".encode(),
    b"data=1&body=2",
    b"a=1;b=2",
)
QUERIES = (
    "POST /invocations?model_name=echo&a=1",
    "POST /models/echo/invoke?a=1&body=2",
    "POST /models/echo/invoke?a=x+y&b=%C3%A9",
    "POST /echo/predict?a=1&a=2",
    "POST /echo/1.0/predict?data=1",
    "POST /predictions/echo?data=1",
    "POST /explanations/echo?a=1",
    "POST /v1/models/echo:predict?a=1",
    "POST /v2/models/echo/infer?a=1",
)


def requests(peer: Peer) -> Iterator[Step]:
    yield from _bodies(peer)
    yield from peer.say(*(Ask(ECHO, body, FORM, f"the form {body!r}") for body in FORMS))
    yield from _parts(peer)
    yield from _queries(peer)
    yield from _headers(peer)


def _bodies(peer: Peer) -> Iterator[Step]:
    yield from peer.say(Ask(ECHO, note="nothing"), Ask(ECHO, b"", note="an empty body"))
    yield from peer.say(Ask(ECHO, b"", {"content-type": "text/plain"}, "an empty text"))
    for name, body in BODIES.items():
        yield from peer.say(Ask(ECHO, body, note=f"{name} without a content type"))
        yield from peer.say(*(Ask(ECHO, body, {"content-type": kind}, f"{name} as {kind}") for kind in CONTENT_TYPES))
    for bodies in BROKEN.values():
        kind = {"content-type": "application/json"}
        yield from peer.say(*(Ask(ECHO, body, kind, f"the JSON {body!r}") for body in bodies))
    yield from peer.say(Ask(ECHO, [b"[1,", b" 2]"], {"content-type": "application/json"}, "in chunks"))
    yield from peer.say(Ask(ECHO, [], {"content-type": "text/plain"}, "in no chunks"))


def _queries(peer: Peer) -> Iterator[Step]:
    for line in QUERIES:
        yield from peer.say(Ask(line, b"[1]", {"content-type": "application/json"}, "with JSON"))
        yield from peer.say(Ask(line, b"b=1", FORM, "with a form"), Ask(line))
    form = FORM | {"x-a": "b"}
    yield from peer.say(Ask("POST /invocations", b"model_name=echo&a=1", form, "the model in the form"))
    yield from peer.say(Ask("POST /models/echo/invoke?a=%FF"), Ask("POST /echo/predict?a=%zz"))
    yield from peer.say(Ask("POST /invocations", b"model_name=none", form, "an unknown model in the form"))
    parts = part(b"echo", "model_name") + part(b"1", "a")
    yield from peer.say(multipart("the model in a part", parts, line="POST /invocations"))
    yield from peer.say(multipart("parts and a query", part(b"1", "a"), line="POST /models/echo/invoke?q=1"))
    yield from peer.say(multipart("parts and the same name", part(b"1", "a"), line="POST /models/echo/invoke?a=2"))


# ---- multipart/form-data


def part(value: bytes, name: str | None, file: str | None = None, kind: str | None = None, more: str = "") -> bytes:
    said = "form-data" + ("" if name is None else f'; name="{name}"') + ("" if file is None else f'; filename="{file}"')
    head = f"--frontier\r\nContent-Disposition: {said}\r\n" + ("" if kind is None else f"Content-Type: {kind}\r\n")
    return f"{head}{more}\r\n".encode() + value + b"\r\n"


def multipart(note: str, parts: bytes, kind: str = "", line: str = ECHO) -> Ask:
    kind = kind or "multipart/form-data; boundary=frontier"
    return Ask(line, parts + b"--frontier--\r\n", {"content-type": kind}, note)


def _parts(peer: Peer) -> Iterator[Step]:
    kind = "application/json"
    yield from peer.say(
        multipart("a text part", part(b"1", "a")),
        multipart("two text parts", part(b"1", "a") + part(b"2", "b")),
        multipart("a text part of JSON", part(b"[1]", "a", kind=kind)),
        multipart("a text part of text", part(b"x", "a", kind="text/plain")),
        multipart("a binary text part", part(bytes(range(256)), "a")),
        multipart("an empty text part", part(b"", "a")),
        multipart("a file", part(b"\x00\xff", "data", "a.bin", "application/octet-stream")),
        multipart("a file of JSON", part(b'{"a": 1}', "data", "a.json", kind)),
        multipart("a file of JSON with a charset", part(b"[1]", "data", "a.json", f"{kind}; charset=utf-8")),
        multipart("a file of broken JSON", part(b"[1", "data", "a.json", kind)),
        multipart("a file of text", part("\u00e9".encode(), "data", "a.txt", "text/plain")),
        multipart("a file without a content type", part(b"x", "data", "a.txt")),
        multipart("an empty file", part(b"", "data", "a.txt", "text/plain")),
        multipart("a file without a name", part(b"x", "data", "", "text/plain")),
        multipart("a file and a text part", part(b"x", "data", "a.txt", "text/plain") + part(b"2", "b")),
        multipart("the same name twice", part(b"1", "a") + part(b"2", "a")),
        multipart("two files of one name", part(b"1", "a", "1.txt", "text/plain") + part(b"2", "a", "2.json", kind)),
        multipart("a file named body", part(b"[1]", "body", "a.json", kind)),
        multipart("a part without a name", part(b"1", None) + part(b"2", "b")),
        multipart("a part with an encoding", part(b"AAE=", "a", more="Content-Transfer-Encoding: base64\r\n")),
        multipart("a part of a part", part(b"1", "a", "b.txt", "multipart/mixed; boundary=x")),
        multipart("no parts", b""),
        multipart("a quoted boundary", part(b"1", "a"), 'multipart/form-data; boundary="frontier"'),
        multipart("another boundary", part(b"1", "a"), "multipart/form-data; boundary=other"),
        multipart("no boundary", part(b"1", "a"), "multipart/form-data"),
        multipart("an odd case", part(b"1", "a"), "Multipart/Form-Data; boundary=frontier"),
        multipart("mixed", part(b"1", "a"), "multipart/mixed; boundary=frontier"),
    )
    cut = Ask(ECHO, part(b"1", "a"), {"content-type": "multipart/form-data; boundary=frontier"}, "parts without an end")
    yield from peer.say(cut)


# ---- headers


def _headers(peer: Peer) -> Iterator[Step]:
    def ask(note: str, *headers: tuple[str, str]) -> Ask:
        return Ask(ECHO, b"x", headers, note)

    yield from peer.say(
        ask("a header", ("x-a", "1")),
        ask("a header in odd case", ("X-Odd-Case", "1")),
        ask("a header twice", ("x-a", "1"), ("x-a", "2")),
        ask("a header with commas", ("x-a", "1, 2")),
        ask("an empty header", ("x-a", "")),
        ask("a key", ("authorization", "Bearer x")),
        ask("cookies", ("cookie", "a=b; c=d")),
        ask("a request id", ("x-request-id", "mine")),
        ask("headers that the server says", ("explain", "yes"), ("url_path", "a")),
        ask("what it accepts", ("accept", "text/plain"), ("accept-encoding", "gzip")),
        ask("an origin", ("origin", "http://b.example")),
        ask("latin-1", ("x-a", "\udce9")),
        ask("a closing connection", ("connection", "close")),
        ask("an upgrade", ("connection", "upgrade"), ("upgrade", "websocket")),
        ask("a range", ("range", "bytes=0-1")),
        ask("a header named as an input", ("body", "1")),
        ask("an expectation", ("expect", "100-continue")),
        ask("another expectation", ("expect", "200-ok")),
    )

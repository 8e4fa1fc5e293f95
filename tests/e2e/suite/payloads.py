"""What a request becomes for the handler, and the handler's answer for the client (contract 1.3, 1.4)."""

import json
from typing import Any

from tests.e2e.suite.cases import Archive, Ask, Case, Tool, fails, has, order, says, tells

JSON = "application/json"
TEXT = "text/plain; charset=utf-8"
BINARY = "application/octet-stream"
CONTENT_TYPE = "TorchServe says no content type of its own (section 15, 14)"


def given(what: str, body: bytes | None, content_type: str, kind: str, value: Any, **more: Any) -> Ask:
    """A raw body, and what `body` is for the handler."""
    return tells(what, body, {"body": [kind, value]}, content_type=content_type, **more)


def form(what: str, seen: dict[str, Any], *parts: tuple[str, Any]) -> Ask:
    return tells(what, None, seen, parts=parts)


URLENCODED = "application/x-www-form-urlencoded"
BROKEN_JSON = b'{"a": '
INPUTS = Case(
    Archive("inputs", "inputs.py", tool=Tool.THEIRS),
    (
        given("a body without a type is bytes", b"raw \xff", "", "bytearray", "raw ÿ"),
        given("no body is an empty one", None, "", "bytearray", ""),
        given("no body by GET is an empty one", None, "", "bytearray", "", method="GET"),
        given("PUT predicts too", b"x", "", "bytearray", "x", method="PUT"),
        given("JSON is decoded", b'{"a": [1, 2.5, null, "x"]}', JSON, "dict", {"a": [1, 2.5, None, "x"]}),
        given("a JSON list is decoded", b"[[1, 2], [3]]", JSON, "list", [[1, 2], [3]]),
        given("a JSON text is decoded", b'"x"', JSON, "str", "x"),
        given("a JSON number is decoded", b"3", JSON, "int", 3),
        given("a JSON null is decoded", b"null", JSON, "NoneType", None),
        given("a charset is no part of the type", b'{"a": 1}', JSON + "; charset=utf-8", "dict", {"a": 1}),
        given("broken JSON comes as bytes", BROKEN_JSON, JSON, "bytearray", '{"a": '),
        given("an empty JSON body comes as bytes", b"", JSON, "bytearray", ""),
        given("a type in capitals is another one", b'{"a": 1}', "Application/JSON", "bytearray", '{"a": 1}'),
        given("a type that ends in json is another one", b"{}", "application/vnd.x+json", "bytearray", "{}"),
        given("a number beyond floats survives", b"[12345678901234567890123]", JSON, "list", [12345678901234567890123]),
        given("a text is a str", "naïve ☃".encode(), "text/plain", "str", "naïve ☃"),
        given("a CSV is a str", b"a,b\n1,2", "text/csv; header=present", "str", "a,b\n1,2"),
        given("a text that is none comes as bytes", b"\xff\xfe", "text/plain", "bytearray", "ÿþ"),
        given("an image is bytes", b"\x89PNG", "image/png", "bytearray", "\x89PNG"),
        given("a body of a megabyte arrives", b"m" * 1_000_000, BINARY, "bytearray", "1000000 bytes"),
        given("a text of a megabyte arrives", b"m" * 1_000_000, "text/plain", "str", "1000000 characters"),
        tells("a query is no input of a prediction", b"x", {"body": ["bytearray", "x"]}, path="?a=1&b=2"),
        tells(
            "fields of a form are bytes",
            b"a=1&b=%00%FF+x&a=2",
            {"a": ["bytearray", "2"], "b": ["bytearray", "\0ÿ x"]},
            content_type=URLENCODED,
        ),
        form(
            "fields of a multipart form are bytes",
            {"data": ["bytearray", "x y"], "k": ["bytearray", "3"]},
            ("data", (None, b"x y")),
            ("k", (None, b"3")),
        ),
        form(
            "a file is what its type says",
            {"j": ["dict", {"a": 1}], "t": ["str", "é"], "b": ["bytearray", "\0"]},
            ("j", ("j.json", b'{"a": 1}', JSON)),
            ("t", ("t.txt", "é".encode(), "text/plain")),
            ("b", ("b.bin", b"\0", BINARY)),
        ),
        form(
            "of a name that repeats the last one stays",
            {"data": ["bytearray", "second"]},
            ("data", ("a", b"first", BINARY)),
            ("data", ("b", b"second", BINARY)),
        ),
        form("an empty file is an input", {"data": ["bytearray", ""]}, ("data", ("a", b"", BINARY))),
    ),
)

HEADERS = Case(
    Archive("headers-in", "headers_in.py"),
    (
        tells(
            "headers are seen, with the input's type",
            b"x-mine",
            {
                "asked": ["1"],
                "mine": {"x-mine": "1", "x-mine-too": "a b"},
                "of body": {"content-type": BINARY},
                "explain": "False",
                "url_path": "",
            },
            asked_with={"x-mine": "1", "x-mine-too": "a b"},
            content_type=BINARY,
        ),
        tells(
            "the case of a header does not matter",
            b"X-Mine x-MINE-nobody",
            {
                "asked": ["1", None],
                "mine": {"x-mine": "1"},
                "of body": {"content-type": ""},
                "explain": "False",
                "url_path": "",
            },
            asked_with={"x-mine": "1"},
            torchserve="headers are found by their exact case only (section 15, 14)",
        ),
        tells(
            "a model never sees a key",
            b"authorization",
            {"asked": [None], "mine": {}, "of body": {"content-type": ""}, "explain": "False", "url_path": ""},
            asked_with={"authorization": "Bearer secret"},
            torchserve="models are given the key (section 15, 14)",
        ),
    ),
)

IDIOM = Case(
    Archive("body-or-data", "body_or_data.py", tool=Tool.THEIRS),
    (
        says("the body is used, changed and given back", b"hello", b"Hello!"),
        says("a field named data is", None, b"Hello!", parts=(("data", (None, b"hello")),)),
        says("a large one too", b"h" * 300_000, b"H" + b"h" * 299_999 + b"!"),
        tells("decoded JSON is", b'{"a": 1}', {"a": 1}, content_type=JSON),
    ),
)


def kind(word: str, answer: Any, content_type: str, what: str = "") -> Ask:
    """What the handler returns for that word."""
    return says(
        what or f"an answer that is {word}",
        word,
        answer,
        headers={"content-type": content_type},
        torchserve=CONTENT_TYPE,
    )


def as_json(word: str, value: Any, what: str = "") -> Ask:
    return kind(word, json.dumps(value, indent=2), JSON, what)


UNSUPPORTED = "Unsupported model output data type."
NAN = '[\n  NaN,\n  {\n    "x": Infinity\n  },\n  -Infinity\n]'
KEYS = '{\n  "1": "true",\n  "null": "none"\n}'
DEEP = {"name": "a", "nested": {"list": [[1, 2], [3]], "none": None}, "é": "ü"}
ANSWERS = Case(
    Archive("answers", "answers.py", tool=Tool.THEIRS),
    (
        kind("str", "a text", TEXT),
        kind("unicode", "naïve ☃ 😀", TEXT),
        kind("bytes", b"\x00\xff\x80 bytes", BINARY),
        kind("bytearray", b"\x01\x02", BINARY),
        kind("empty bytes", b"", BINARY),
        kind("empty str", b"", TEXT),
        as_json("None", None),
        as_json("int", 42),
        as_json("big int", 2**70),
        as_json("float", 0.1),
        as_json("bool", True),
        kind("NaN", NAN, JSON),
        as_json("list", [1, 2.5, "three", None, False]),
        as_json("empty list", []),
        as_json("empty dict", {}),
        as_json("dict", DEEP),
        kind("int keys", KEYS, JSON),
        as_json("tuple", [1, [2, 3]]),
        kind("megabyte", b"m" * 1_000_000, BINARY),
        as_json("long list", list(range(20_000))),
        kind("rows", "a list by another name", TEXT, "answers in a subclass of list"),
        *(
            fails(f"an answer that is a {word} fails", word, 503, UNSUPPORTED)
            for word in ("set", "object", "complex", "tuple keys")
        ),
        fails("an answer that holds itself fails", "circle", 503, UNSUPPORTED, torchserve="its worker ends"),
        says("and the next one is served", "str", "a text"),
    ),
)

NUMPY = Case(
    Archive("numpy-numbers", "numbers_of_numpy.py"),
    (
        says("a float64 is a float", "float64", "0.5"),
        tells("a list made of an array is one", "list", [[0, 1, 2], [3, 4, 5]]),
        says("bytes made of an array are", "bytes", b"\0\1\2"),
        fails("a float32 has no JSON form", "float32", 503, UNSUPPORTED),
        fails("an array has no JSON form", "array", 503, UNSUPPORTED),
    ),
)


def decorated(what: str, wanted: dict[str, Any], answer: str | bytes = "decorated", **more: Any) -> Ask:
    return says(what, **order(**wanted), answer=answer, **more)


DECORATED = Case(
    Archive("decorated", "decorated.py", tool=Tool.THEIR_COMMAND),
    (
        decorated(
            "headers of its own reach the client",
            {"headers": {"X-A": "1", "x-b": "two"}},
            headers={"x-a": "1", "x-b": "two"},
        ),
        decorated(
            "a content type of its own does", {"content_type": "text/html"}, headers={"content-type": "text/html"}
        ),
        decorated(
            "also when it is set as a header",
            {"headers": {"Content-Type": "image/x"}},
            headers={"content-type": "image/x"},
        ),
        decorated(
            "a status with a phrase",
            {"status": 418, "phrase": "teapot"},
            status=418,
            phrase="teapot",
            headers={"connection": "close"},
        ),
        decorated("a status without a phrase", {"status": 202}, status=202, headers={"connection": "keep-alive"}),
        decorated("a status that nobody knows", {"status": 599, "phrase": "Mine"}, status=599, phrase="Mine"),
        decorated("a status for all", {"status_for_all": 201, "phrase": "Made"}, status=201, phrase="Made"),
        decorated(
            "a status that is an error keeps body and headers",
            {"status": 503, "headers": {"retry-after": "9"}},
            status=503,
            headers={"retry-after": "9"},
        ),
        decorated(
            "what was set can be asked for",
            {"status": 201, "content_type": "a/b", "ask": 1},
            json.dumps([[201, ""], "a/b"], indent=2),
            status=201,
        ),
        decorated(
            "the next answer has none of it",
            {},
            headers={"x-a": None, "content-type": TEXT},
            status=200,
            torchserve=CONTENT_TYPE,
        ),
        fails(
            "a header with a line break is refused",
            order(headers={"x-a": "1\r\nx-b: 2"})["body"],
            503,
            lambda said: has("x-a", "line break")(said),
            content_type=JSON,
            torchserve="its worker ends, or the header is split",
        ),
    ),
)

PAYLOADS = (INPUTS, HEADERS, IDIOM, ANSWERS, NUMPY, DECORATED)

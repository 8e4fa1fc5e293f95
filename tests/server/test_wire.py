"""Answers as bytes: the headers TorchServe sends, and nothing that a handler could smuggle in."""

import json
import re
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.errors import BadRequest, InvalidKey, ModelNotFound, PredictionFailed, QueueFull, WorkerLost
from ringserve.protocol.request import Answer
from ringserve.server.sources import Held, ReplyStream
from ringserve.server.wire import (
    FIXED_HEADERS,
    JOINED_BYTES_MAX,
    add_fixed_headers,
    answer_buffers,
    error_answer,
    error_body,
    json_text,
    request_id,
    streamed_head,
)

UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def answered(answer: Answer, *, keep_alive: bool = True, head_only: bool = False) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers by lower-case name, body."""
    data = b"".join(answer_buffers(answer, "the-id", keep_alive=keep_alive, head_only=head_only))
    head, _, body = data.partition(b"\r\n\r\n")
    status, *lines = head.decode("latin-1").split("\r\n")
    pairs = [line.split(": ", 1) for line in lines]
    assert len({name.lower() for name, _ in pairs}) == len(pairs), f"a header was sent twice: {lines}"
    return status, {name.lower(): value for name, value in pairs}, body


@pytest.mark.parametrize("content_type", ["application/json", "text/plain; charset=utf-8", None])
def test_every_answer_has_the_fixed_headers_its_id_and_its_length(content_type: str | None) -> None:
    status, headers, body = answered(Answer(b"[1, 2]", content_type))
    assert (status, body) == ("HTTP/1.1 200 OK", b"[1, 2]")
    expected = {name.lower(): value for name, value in FIXED_HEADERS.items()}
    expected |= {"x-request-id": "the-id", "content-length": "6", "connection": "keep-alive"}
    if content_type is not None:
        expected["content-type"] = content_type
    assert headers == expected


@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
def test_a_connection_that_ends_says_so(content_type: str) -> None:
    assert answered(Answer(b"", content_type), keep_alive=False)[1]["connection"] == "close"


@pytest.mark.parametrize("content_type", ["application/json", "text/plain"])
def test_the_answer_to_head_keeps_the_length_and_has_no_body(content_type: str) -> None:
    _, headers, body = answered(Answer(b"12345", content_type), head_only=True)
    assert (headers["content-length"], body) == ("5", b"")


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_has_neither_length_nor_body(status: int) -> None:
    _, headers, body = answered(Answer(b"ignored", "text/plain", status))
    assert "content-length" not in headers
    assert body == b""


@pytest.mark.parametrize(
    ("status", "phrase", "line"),
    [
        (200, "", "HTTP/1.1 200 OK"),
        (404, "", "HTTP/1.1 404 Not Found"),
        (299, "", "HTTP/1.1 299 Success (299)"),
        (513, "", "HTTP/1.1 513 Server Error (513)"),
        (700, "", "HTTP/1.1 700 Unknown Status (700)"),
        (418, "Short and stout", "HTTP/1.1 418 Short and stout"),
        (999, "é", "HTTP/1.1 999 é"),
    ],
)
def test_the_status_line_takes_the_handlers_phrase_or_the_usual_one(status: int, phrase: str, line: str) -> None:
    assert answered(Answer(b"", "application/json", status, phrase))[0] == line


def test_a_handlers_headers_are_sent_as_they_are() -> None:
    _, headers, _ = answered(Answer(b"", None, 200, "", {"X-Model": "ünïcode\tand tab", "Content-Type": "image/png"}))
    assert headers["x-model"] == "ünïcode\tand tab"
    assert headers["content-type"] == "image/png"


def test_a_header_beyond_iso_8859_1_is_utf_8() -> None:
    """Each by itself: clients read the others as usual."""
    _, headers, _ = answered(Answer(b"", None, 200, "", {"x-price": "5 €", "x-name": "grün", "x-byte": "\udcff"}))
    assert headers["x-price"].encode("latin-1").decode() == "5 €"
    assert (headers["x-name"], headers["x-byte"]) == ("grün", "ÿ")


@pytest.mark.parametrize("name", ["Content-Type", "content-type"])
def test_a_handlers_content_type_wins_over_the_answers_own(name: str) -> None:
    assert answered(Answer(b"", "text/plain", 200, "", {name: "image/png"}))[1]["content-type"] == "image/png"


@pytest.mark.parametrize("name", ["Content-Length", "transfer-encoding", "CONNECTION", "X-Request-Id"])
def test_a_handler_cannot_say_what_the_server_says_itself(name: str) -> None:
    _, headers, body = answered(Answer(b"123", None, 200, "", {name: "999"}))
    assert (headers["content-length"], headers["x-request-id"]) == ("3", "the-id")
    assert headers["connection"] == "keep-alive"
    assert "transfer-encoding" not in headers
    assert body == b"123"


@pytest.mark.parametrize(
    "headers",
    [
        {"x": "a\r\nset-cookie: b"},
        {"x": "a\nb"},
        {"x": "nul\0"},
        {"x": "\ud800"},
        {"a b": "c"},
        {"x:": "c"},
        {"x\r\ny": "c"},
        {"": "c"},
        {"é": "c"},
    ],
)
def test_a_header_that_http_cannot_carry_is_refused_by_name(headers: Mapping[str, str]) -> None:
    with pytest.raises(PredictionFailed, match=r"The handler set the response header '.*', which HTTP cannot carry"):
        answer_buffers(Answer(b"", None, 200, "", headers), "id", keep_alive=True, head_only=False)


@pytest.mark.parametrize("phrase", ["OK\r\nset-cookie: a", "\x7f", "\ud800"])
def test_a_phrase_with_control_characters_is_refused(phrase: str) -> None:
    with pytest.raises(PredictionFailed, match="status phrase"):
        answer_buffers(Answer(b"", None, 200, phrase), "id", keep_alive=True, head_only=False)


@pytest.mark.parametrize("status", [-1, 0, 101, 199, 1000])
def test_a_status_that_is_no_final_answer_is_refused(status: int) -> None:
    with pytest.raises(PredictionFailed, match=f"The handler set status {status}: expected a number from 200 to 999"):
        answer_buffers(Answer(b"", None, status), "id", keep_alive=True, head_only=False)


texts = st.text(st.characters() | st.sampled_from("\r\n\0: "), max_size=8)


@given(st.dictionaries(texts, texts, max_size=2), texts)
def test_no_header_and_no_phrase_adds_a_line(headers: dict[str, str], phrase: str) -> None:
    answer = Answer(b"", None, 200, phrase, headers)
    try:
        data = b"".join(answer_buffers(answer, "id", keep_alive=True, head_only=False))
    except PredictionFailed:
        return
    dropped = {"content-length", "transfer-encoding", "connection", "x-request-id"}
    sent = sum(name.lower() not in dropped for name in headers)
    assert data.count(b"\r\n") == 1 + sent + len(FIXED_HEADERS) + 3 + 1
    assert data.count(b"\n") == data.count(b"\r") == data.count(b"\r\n")


@pytest.mark.parametrize("sent", ["a", "x" * 128, "550e8400-e29b-41d4-a716-446655440000", "!~"])
def test_a_clients_request_id_is_adopted(sent: str) -> None:
    assert request_id(sent) == sent


@pytest.mark.parametrize("sent", [None, "", "x" * 129, "a b", "a\r\nb: c", "é", "a\n", "\x7f"])
def test_otherwise_a_request_gets_a_random_uuid(sent: str | None) -> None:
    assert UUID4.fullmatch(request_id(sent))


def test_request_ids_do_not_repeat() -> None:
    made = [request_id(None) for _ in range(2000)]
    assert len(set(made)) == 2000
    assert all(UUID4.fullmatch(each) for each in made)
    assert {each[19] for each in made} == set("89ab")


def test_an_error_reads_like_torchserves() -> None:
    body = error_body(ModelNotFound("Model not found: x"))
    assert body == (b'{\n  "code": 404,\n  "type": "ModelNotFoundException",\n  "message": "Model not found: x"\n}\n')
    assert error_answer(ModelNotFound("Model not found: x")) == Answer(body, "application/json", 404)


def test_an_error_is_sent_with_its_own_status() -> None:
    status, headers, body = answered(error_answer(WorkerLost("Worker died.", status=507)), keep_alive=False)
    assert status == "HTTP/1.1 507 Insufficient Storage"
    assert headers["content-type"] == "application/json"
    assert json.loads(body) == {"code": 507, "type": "InternalServerException", "message": "Worker died."}


def test_the_servers_json_is_indented_and_ends_its_line() -> None:
    assert json_text({"a": [1]}) == b'{\n  "a": [\n    1\n  ]\n}\n'


def test_a_large_body_is_not_copied_behind_its_head() -> None:
    small, large = bytes(JOINED_BYTES_MAX - 1), bytes(JOINED_BYTES_MAX)
    assert len(answer_buffers(Answer(small), "id", keep_alive=True, head_only=False)) == 1
    head, body = answer_buffers(Answer(large), "id", keep_alive=True, head_only=False)
    assert body is large
    assert head.endswith(b"\r\n\r\n")


def test_a_refused_client_is_told_when_to_come_back() -> None:
    _, headers, _ = answered(error_answer(QueueFull("full", retry_after_s=7)), keep_alive=False)
    assert headers["retry-after"] == "7"
    assert "retry-after" not in answered(error_answer(QueueFull("full")), keep_alive=False)[1]


def head_of(answer: Answer, *, keep_alive: bool = True, chunked: bool = False) -> tuple[str, dict[str, str]]:
    head = streamed_head(answer, "the-id", keep_alive=keep_alive, chunked=chunked)
    assert head.endswith(b"\r\n\r\n")
    status, *lines = head[:-4].decode().split("\r\n")
    return status, {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}


def test_the_head_of_an_answer_in_shared_memory_says_its_length() -> None:
    held = Held(b"12345", lambda: None)
    status, headers = head_of(Answer(b"", "image/png", source=held))
    assert status == "HTTP/1.1 200 OK"
    assert (headers["content-length"], headers["content-type"]) == ("5", "image/png")
    assert (headers["x-request-id"], headers["connection"]) == ("the-id", "keep-alive")
    assert "transfer-encoding" not in headers


@pytest.mark.parametrize("chunked", [True, False])
def test_an_answer_that_is_still_being_made_comes_in_chunks_or_until_the_end(chunked: bool) -> None:
    stream = ReplyStream(lambda: None)
    answer = Answer(b"", None, 206, "", {"x-part": "1"}, stream)
    status, headers = head_of(answer, keep_alive=chunked, chunked=chunked)
    assert status == "HTTP/1.1 206 Partial Content"
    assert headers.get("transfer-encoding") == ("chunked" if chunked else None)
    assert headers["connection"] == ("keep-alive" if chunked else "close")
    assert headers["x-part"] == "1"
    assert "content-length" not in headers


@pytest.fixture
def cors() -> Iterator[dict[str, str]]:
    """Headers of every answer, taken back afterwards."""
    said = {"access-control-allow-origin": "https://a.example", "access-control-allow-methods": "GET"}
    add_fixed_headers(said)
    yield said
    for name in said:
        del FIXED_HEADERS[name]
    add_fixed_headers({})


def test_what_every_answer_says_is_said_on_every_way(cors: dict[str, str]) -> None:
    answers = [
        Answer(b"{}", "application/json"),
        Answer(b"x", None),
        Answer(b"x", "text/plain", 201),
        Answer(b"", None, 204),
        error_answer(BadRequest("no")),
    ]
    for answer in answers:
        head = b"".join(answer_buffers(answer, "id", keep_alive=True, head_only=True)).decode()
        for name, value in cors.items():
            assert head.count(f"{name}: {value}\r\n") == 1


def test_a_handler_that_says_something_else_is_heard(cors: dict[str, str]) -> None:
    answer = Answer(b"", None, headers={"Access-Control-Allow-Origin": "*"})
    head = b"".join(answer_buffers(answer, "id", keep_alive=True, head_only=True)).decode().lower()
    assert "access-control-allow-origin: *\r\n" in head
    assert head.count("access-control-allow-origin") == 1
    assert "access-control-allow-methods: get\r\n" in head


def test_the_refusal_of_a_token_says_how_to_ask() -> None:
    assert error_answer(InvalidKey("no")).headers == {"WWW-Authenticate": "Bearer"}
    assert error_answer(QueueFull("later", retry_after_s=3)).headers == {"Retry-After": "3"}

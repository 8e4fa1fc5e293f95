"""Every route of the inference listener: which model it means, what reaches its handler, and that each keeps the rules of all.

What is expected was asked of TorchServe 0.12, but for what the comments name."""

import json
import re
import shlex
import subprocess
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until
from tests.e2e.raw_http import Connection, head, post
from tests.server.metrics.prometheus import read, values

ROOT = Path(__file__).resolve().parents[2]
REQUEST_BYTES_MAX = 3_000_000
NAME_REQUIRED = {"code": 400, "type": "BadRequestException", "message": "Parameter model_name is required."}
PREDICTS, EXPLAINS = {"explain": "False"}, {"explain": "True"}
# Each with what handlers see of it.
ROUTES = {
    "/predictions/seen": {**PREDICTS, "url_path": ""},
    "/predictions/seen/1.0": {**PREDICTS, "url_path": ""},
    "/predictions/seen/1.0/v1/chat/completions": {**PREDICTS, "url_path": "v1/chat/completions"},
    "/explanations/seen": {**EXPLAINS, "url_path": ""},
    "/explanations/seen/1.0": {**EXPLAINS, "url_path": ""},
    "/explanations/seen/1.0/a%2Fb/": {**EXPLAINS, "url_path": "a/b"},
    "/invocations": {},
    "/invocations?model_name=seen": {},
    "/models/seen/invoke": {},
    "/seen/predict": {},
    "/seen/1.0/predict": {},
    "/v1/models/seen:predict": PREDICTS,
    "/v1/models/seen:explain": EXPLAINS,
    "/v2/models/seen/infer": PREDICTS,
    "/v2/models/seen/explain": EXPLAINS,
}
BRINGS_QUERY = [route for route, headers in ROUTES.items() if not headers]
# Says what it was given; of what is long only the length and the checksum.
HANDLER = """
import time, zlib

def handle(data, context):
    if data is None:
        return None
    return [said(row, context.get_all_request_header(index)) for index, row in enumerate(data)]

def said(row, headers):
    time.sleep(float(headers.get("x-sleep", 0)))
    return {
        "inputs": {name: shown(value) for name, value in row.items()},
        "headers": {name: value for name, value in headers.items() if isinstance(value, str)},
        "types": {name: value["content-type"] for name, value in headers.items() if isinstance(value, dict)},
    }

def shown(value):
    if isinstance(value, bytearray) and len(value) > 1000:
        return [len(value), zlib.crc32(value)]
    return value.decode("latin-1") if isinstance(value, bytearray) else [type(value).__name__, value]
"""

routes = pytest.mark.parametrize("route", ROUTES)


@pytest.fixture(scope="module")
def listener(
    tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path], sums_config: str
) -> Iterator[ServerProcess]:
    """One model from the start, whose version says what it sees; later one that declares its inputs, and one without workers."""
    folder = tmp_path_factory.mktemp("routes")
    store = folder / "store"
    for name in ("seen", "digits"):
        archive(store, name, f"{name}.py:handle", source=HANDLER)
    archive(store, "sums", "sums.py", config=sums_config)
    archive(store, "idle", "plain.py:handle")
    config = {"default_workers_per_model": 1, "max_request_size": REQUEST_BYTES_MAX}
    server = ServerProcess(store, models=("seen.mar",), config=config, folder=folder / "server")
    with server:
        for name, workers in (("sums", 1), ("digits", 1), ("idle", 0)):
            wanted: dict[str, str | int] = {"url": f"{name}.mar", "initial_workers": workers, "synchronous": "true"}
            answer = httpx.post(f"{server.management_url}/models", params=wanted, trust_env=False, timeout=60)
            assert answer.status_code == 200, answer.text
        wait_until(
            lambda: httpx.get(f"{server.inference_url}/ping", trust_env=False).status_code == 200,
            60,
            "a healthy server",
        )
        yield server
    assert server.wait(1) == 0, server.log
    assert server.remains() == []
    assert "a request failed inside the server" not in server.log


@pytest.fixture(scope="module")
def asking(listener: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=listener.inference_url, timeout=60, trust_env=False) as client:
        yield client


def seen(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    return response.json()


def message(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["message"]


def with_query(route: str, query: str) -> str:
    return f"{route}&{query}" if "?" in route else f"{route}?{query}"


# ---- which model, and how it was asked


@routes
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
def test_a_route_reaches_its_model_by_any_method(asking: httpx.Client, route: str, method: str) -> None:
    answer = seen(asking.request(method, route, content=b"x"))
    assert answer["inputs"]["body"] == "x"
    assert {name: answer["headers"][name] for name in answer["headers"] if name in ("explain", "url_path")} == ROUTES[
        route
    ]


@routes
def test_a_client_that_wants_the_head_alone_gets_it_alone(listener: ServerProcess, route: str) -> None:
    with Connection(listener) as connection:
        connection.send(head(route, method="HEAD"), head("/ping", method="GET"))
        line = connection._reader.readline()
        assert line.startswith(b"HTTP/1.1 200"), line
        while (line := connection._reader.readline()) != b"\r\n":
            assert line
        assert connection.answer().json == {"status": "Healthy"}, "no body came before this answer"


@routes
def test_options_describe_the_model_on_every_route(asking: httpx.Client, route: str) -> None:
    document = seen(asking.options(route))
    assert document["info"]["title"] == "RESTful API for: seen"
    expected = {"/predictions/seen/1.0", "/explanations/seen/1.0"}
    if route.split("?")[0].rstrip("/").count("/1.0") == 0:
        expected |= {"/predictions/seen", "/explanations/seen", "/v1/models/seen:predict", "/v2/models/seen/infer"}
    assert expected <= set(document["paths"])


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/explanations/nobody", 404, "Model not found: nobody"),
        ("/explanations/seen/9", 404, "Model version: 9 does not exist for model: seen"),
        ("/invocations?model_name=nobody", 404, "Model not found: nobody"),
        ("/models/nobody/invoke", 404, "Model not found: nobody"),
        ("/nobody/predict", 404, "Model not found: nobody"),
        ("/seen/9/predict", 404, "Model version: 9 does not exist for model: seen"),
        ("/v1/models/nobody:predict", 404, "Model not found: nobody"),
        ("/v2/models/nobody/explain", 404, "Model not found: nobody"),
        ("/wfpredict/nobody", 404, "Workflow not found: nobody"),
        *((path, 404, "Requested resource is not found, please refer to API document.") for path in ("/explanations/", "/x")),
        *(
            (path, 404, "Requested resource is not found, please refer to API document.")
            for path in ("/models/seen/1.0/invoke", "/models/seen/other", "/models/seen", "/v1/models/seen:other")
        ),
        *(
            (path, 404, "Requested resource is not found, please refer to API document.")
            for path in ("/health/predict", "/invocations/x")
        ),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said_as_torchserve_says_it(
    asking: httpx.Client, path: str, status: int, said: str
) -> None:
    assert message(asking.post(path, content=b"x")) == (status, said)


@pytest.mark.parametrize("path", [route.replace("seen", "idle") for route in ROUTES if route != "/invocations"])
def test_a_model_without_workers_is_named_on_every_route(asking: httpx.Client, path: str) -> None:
    status, said = message(asking.post(path, content=b"x"))
    version = ' Version 1.0"' if "/1.0" in path else ""  # the stray quote is TorchServe's
    assert (status, said.split(" has no worker")[0]) == (503, f'Model "idle"{version}')


# ---- SageMaker


def test_an_invocation_names_no_model_where_one_was_loaded_at_startup(asking: httpx.Client) -> None:
    """SageMaker's contract with a container: GET /ping and POST /invocations."""
    assert asking.get("/ping").json() == asking.post("/ping/x").json() == {"status": "Healthy"}
    assert seen(asking.post("/invocations", content=b"x"))["inputs"] == {"body": "x"}
    assert seen(asking.post("/invocations?model_name=", content=b"x"))["inputs"] == {"model_name": "", "body": "x"}
    assert seen(asking.post("/invocations", data={"model_name": "nobody"}))["inputs"] == {"model_name": "nobody"}


def test_of_several_models_an_invocation_names_one_in_its_query_or_its_form(client: httpx.Client) -> None:
    """On the shared server, which has loaded many at start-up."""
    for response in (
        client.post("/invocations?model_name=probe", content=b"x"),
        client.post("/invocations", data={"model_name": "probe", "a": "1"}),
        client.post("/invocations?q=1", files={"model_name": (None, "probe"), "a": ("a", b"1")}),
        client.post("/invocations", files={"long": b"x" * 300_000, "model_name": b"probe"}),
        client.post("/models/probe/invoke", data={"model_name": "nobody"}),
    ):
        assert seen(response)["model"] == "probe"


@pytest.mark.parametrize(
    "sent",
    [{"content": b"x"}, {"json": {"model_name": "probe"}}, {"data": {"a": "1"}}, {"headers": {"model_name": "probe"}}, {}],
    ids=["bytes", "json", "form", "header", "nothing"],
)  # fmt: skip
def test_of_several_models_an_invocation_must_name_one(client: httpx.Client, sent: dict[str, Any]) -> None:
    response = client.post("/invocations", **sent)
    assert (response.status_code, response.json()) == (400, NAME_REQUIRED)
    assert message(client.post("/invocations", data={"model_name": "nobody"})) == (404, "Model not found: nobody")


# ---- requests to data


@routes
def test_query_parameters_are_inputs_only_where_torchserve_takes_them(asking: httpx.Client, route: str) -> None:
    inputs = seen(asking.post(with_query(route, "a=1&a=%00%7F;b=c+d&body=no"), content=b"x"))["inputs"]
    inputs.pop("model_name", None)
    assert inputs == ({"a": "\x00\x7f", "b": "c d", "body": "x"} if route in BRINGS_QUERY else {"body": "x"})


def test_a_form_wins_over_the_query_and_keeps_its_types(asking: httpx.Client) -> None:
    files: dict[str, Any] = {"t": (None, "form"), "f": ("f.json", b"[1]", "application/json")}
    answer = seen(asking.post("/invocations?model_name=seen&q=1&t=query", files=files))
    assert list(answer["inputs"]) == ["model_name", "q", "t", "f"]
    assert answer["inputs"] == {"model_name": "seen", "q": "1", "t": "form", "f": ["list", [1]]}
    assert answer["types"] == {"model_name": "", "q": "", "t": "", "f": "application/json"}


@pytest.mark.parametrize("framing", ["length", "chunks", "form", "chunked form"])
@pytest.mark.parametrize("size", [0, 100, 65_535, 65_536, 300_000, 2_500_000])
def test_a_body_of_any_size_arrives_beside_the_query(asking: httpx.Client, framing: str, size: int) -> None:
    """Long ones are received straight into shared memory."""
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    headers, content = {"content-type": "a/b"}, data
    if "form" in framing:
        headers = {"content-type": "multipart/form-data; boundary=cut"}
        content = b'--cut\r\ncontent-disposition: form-data; name="body"; filename="a"\r\ncontent-type: a/b\r\n\r\n'
        content += data + b"\r\n--cut--\r\n"
    pieces = [content[at : at + 100_000] for at in range(0, len(content), 100_000)]
    chunks: Any = iter(pieces) if "chunk" in framing else content
    answer = seen(asking.post("/invocations?model_name=seen&q=1", content=chunks, headers=headers))
    body = [size, zlib.crc32(data)] if size > 1000 else data.decode("latin-1")
    assert answer["inputs"] == {"model_name": "seen", "q": "1", "body": body}
    assert answer["types"] == {"model_name": "", "q": "", "body": "a/b"}


JSON, URLENCODED, FORM = "application/json", "application/x-www-form-urlencoded", "multipart/form-data; boundary=cut"


def part(disposition: str, data: bytes, content_type: str = "") -> bytes:
    line = f"Content-Type: {content_type}\r\n" if content_type else ""
    return f"--cut\r\nContent-Disposition: form-data; {disposition}\r\n{line}\r\n".encode() + data + b"\r\n"


FILE, FIELD = 'name="f"; filename="f.bin"', 'name="f"'
END = b"--cut--\r\n"


@pytest.mark.parametrize("route", ["/predictions/seen", "/seen/predict", "/v2/models/seen/infer"])
@pytest.mark.parametrize(
    ("content_type", "body", "inputs"),
    [
        (None, b"\x00\xff", {"body": "\x00\xff"}),
        (None, b"", {"body": ""}),
        ("", b"x", {"body": "x"}),
        (JSON, b'{"a": [1, 2.5, null]}', {"body": ["dict", {"a": [1, 2.5, None]}]}),
        (f"{JSON}; charset=utf-8", b"1", {"body": ["int", 1]}),
        ("Application/JSON", b"1", {"body": "1"}),
        (JSON, b'{"a": ', {"body": '{"a": '}),
        (JSON, b"", {"body": ""}),
        (JSON, b'"\xe4"', {"body": '"\xe4"'}),
        ("application/vnd.x+json", b"1", {"body": "1"}),
        ("text/plain", "ü".encode(), {"body": ["str", "ü"]}),
        ("text/csv; charset=latin-1", b"\xfc", {"body": "\xfc"}),
        ("Text/Plain", b"a", {"body": "a"}),
        ("application/octet-stream", b"\xff", {"body": "\xff"}),
        (URLENCODED, b"a=%00%FFx&b=c+d&a=2&e&g=1=2&%C3%BC=1", {"a": "2", "b": "c d", "e": "", "g": "1=2", "ü": "1"}),
        (f"{URLENCODED}; charset=utf-8", b"a=%FF;b=2\r\n", {"a": "\xff;b=2"}),
        (URLENCODED.title(), b"a=1", {"a": "1"}),
        (URLENCODED, b"", {}),
        (FORM, part(FILE, b"\xff") + END, {"f": "\xff"}),
        (FORM, part(FILE, b'{"a": 1}', JSON) + END, {"f": ["dict", {"a": 1}]}),
        (FORM, part(FILE, b'{"a": 1}', f"{JSON}; charset=utf-8") + END, {"f": ["dict", {"a": 1}]}),
        (FORM, part(FILE, b"{", JSON) + END, {"f": "{"}),
        (FORM, part(FILE, b"1", "Application/JSON") + END, {"f": "1"}),
        (FORM, part(FILE, b"a", "text/plain") + END, {"f": ["str", "a"]}),
        (FORM, part(FILE, b"\xff", "text/plain") + END, {"f": "\xff"}),
        (FORM, part(FIELD, b"\xff\x00") + END, {"f": "\xff\x00"}),
        (FORM, part(FIELD, b'{"a": 1}', JSON) + END, {"f": '{"a": 1}'}),
        (FORM, part(FIELD, b"a", "text/plain") + END, {"f": "a"}),
        (FORM, part(FILE, b"1") + part('name="t"', b"2") + part(FILE, b"3") + END, {"f": "3", "t": "2"}),
        (FORM, part('name="body"', b"x") + END, {"body": "x"}),
        (FORM, END, {}),
        (FORM, b"", {}),
        ("multipart/form-data", b"no form", {"body": "no form"}),
        ("multipart/mixed; boundary=cut", END, {"body": END.decode()}),
    ],
)
def test_a_request_becomes_the_data_that_torchserve_makes_of_it(
    asking: httpx.Client, route: str, content_type: str | None, body: bytes, inputs: dict[str, Any]
) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    assert seen(asking.post(route, content=body, headers=headers))["inputs"] == inputs


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (part("filename=x", b"1") + END, "Form: expected every part to have a name"),
        (part(FILE, b"1"), "Form: expected a closing boundary"),  # TorchServe loses it without a word
    ],
)
def test_a_form_that_is_none_is_refused(asking: httpx.Client, body: bytes, said: str) -> None:
    status, got = message(asking.post("/seen/predict", content=body, headers={"content-type": FORM}))
    assert (status, got.startswith(said)) == (400, True), got


# ---- the rules that hold everywhere


@routes
def test_a_body_over_the_limit_is_refused_unread(listener: ServerProcess, route: str) -> None:
    with Connection(listener) as connection:
        connection.send(head(route, f"content-length: {REQUEST_BYTES_MAX + 1}", "expect: 100-continue"))
        assert connection.response().status == 413


@routes
def test_a_client_that_asks_before_it_sends_is_told_to(listener: ServerProcess, route: str) -> None:
    with Connection(listener) as connection:
        connection.send(head(route, "content-length: 5", "expect: 100-continue"))
        assert connection.response().status == 100
        connection.send(b"hello")
        assert connection.response().json["inputs"]["body"] == "hello"


def test_a_form_with_the_models_name_is_asked_for_too(server: ServerProcess) -> None:
    with Connection(server) as connection:
        body = b"model_name=plain"
        sent = (f"content-length: {len(body)}", f"content-type: {URLENCODED}", "expect: 100-continue")
        connection.send(head("/invocations", *sent))
        assert connection.response().status == 100
        connection.send(body, post(b"", "/plain/predict"))
        assert [connection.response().body for _ in range(2)] == [b"plain 1.0"] * 2


@pytest.mark.parametrize("route", ["/explanations/seen", "/seen/predict", "/v1/models/seen:predict"])
def test_a_client_has_the_patience_that_it_says(asking: httpx.Client, route: str) -> None:
    headers = {"x-request-timeout-ms": "20", "x-sleep": "0.4"}
    assert asking.post(route, headers=headers).status_code == 504
    refused = asking.post(route, headers={"x-request-timeout-ms": "soon"})
    assert message(refused)[0] == 400


@pytest.mark.parametrize("content_type", [URLENCODED, FORM])
def test_a_form_that_may_name_the_model_has_no_more_time_than_the_client(
    server: ServerProcess, content_type: str
) -> None:
    """Of several models, which is only known when the form is here."""
    with Connection(server) as connection:
        sent = ("content-length: 9000", f"content-type: {content_type}", "x-request-timeout-ms: 20")
        connection.send(head("/invocations", *sent), b"--cut\r\n")
        assert connection.response().status == 504
    with Connection(server) as connection:
        sent = ("transfer-encoding: chunked", f"content-type: {content_type}", "x-request-timeout-ms: soon")
        connection.send(head("/invocations", *sent))
        assert connection.response().status == 400


def test_requests_of_all_routes_count_for_their_model_and_are_logged(listener: ServerProcess) -> None:
    def counted() -> list[float]:
        text = httpx.get(f"{listener.metrics_url}/metrics", trust_env=False).text
        return [
            sum(values(read(text), "ts_inference_requests_total", model_name="seen", model_version=version))
            for version in ("default", "1.0")
        ]

    before = counted()
    with httpx.Client(base_url=listener.inference_url, timeout=60, trust_env=False) as client:
        rids = {route: f"counted-{number}" for number, route in enumerate(ROUTES)}
        for route, rid in rids.items():
            assert client.post(route, headers={"x-request-id": rid}).headers["x-request-id"] == rid
    named = sum("/1.0" in route for route in ROUTES)
    assert [now - then for now, then in zip(counted(), before, strict=True)] == [len(ROUTES) - named, named]
    log = listener.folder / "logs" / "access_log.log"
    wait_until(lambda: all(f'"POST {route} HTTP/1.1" 200' in log.read_text() for route in ROUTES), 20, "every line")


def test_a_model_that_declares_its_inputs_predicts_on_every_route_of_torchserve_and_explains_on_none(
    asking: httpx.Client,
) -> None:
    row = {"left": [1, 2, 3], "right": [0.5, 0.5, 0.5]}
    for route, headers in ROUTES.items():
        if route in ("/invocations", "/v2/models/seen/infer"):  # the second one is the Open Inference Protocol's
            continue
        response = asking.post(route.replace("seen", "sums"), json=row)
        if headers.get("explain") == "True":
            status, said = message(response)
            assert status == 400
            assert said.startswith("Explanation: expected a model with a handler, got one that declares its inputs")
        else:
            assert response.json() == {"sum": [1.5, 2.5, 3.5], "double": [2.0, 4.0, 6.0]}
    data = b"\x00\x00\x80\x3f" * 6
    assert asking.post("/invocations?model_name=sums", content=data).json()["sum"] == [2.0] * 3


# ---- the page about them


EXAMPLE = re.compile(r"^    (curl .+)$", re.MULTILINE)


def test_every_command_of_the_page_works_and_every_route_has_one(listener: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "image.png").write_bytes(b"\x89PNG")
    (tmp_path / "request.json").write_text('{"threshold": 0.5}')
    page = (ROOT / "docs" / "inference.md").read_text()
    lines = EXAMPLE.findall(page)
    for line in lines:
        command = shlex.split(line.replace("http://127.0.0.1:8080", listener.inference_url))
        command += ["-sS", "--fail", "--noproxy", "*"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
        assert done.returncode == 0, f"{line}: {done.stderr}"
        if " -F " in line:
            image, options, top = json.loads(done.stdout)["inputs"].values()
            assert (image, options, top) == ("\x89PNG", ["dict", {"threshold": 0.5}], "3")
    shown = {re.sub(r"\?.*", "", urlsplit(shlex.split(line)[1]).path) for line in lines}
    assert {re.sub(r"\?.*", "", route.replace("seen", "digits")) for route in ROUTES} - shown == {
        "/explanations/digits/1.0",
        "/explanations/digits/1.0/a%2Fb/",
    }, "these are as those of predictions"

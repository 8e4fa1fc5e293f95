"""Archives made for TorchServe, and typed models, answer as their clients expect."""

import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from ringserve.server.testing import ServerProcess, wait_until

ROW = [0.5, -1.0, 2.0, 3.25]


def seen(response: httpx.Response) -> Any:
    """What the probe handler was given."""
    assert response.status_code == 200, response.text
    return response.json()


def test_a_class_style_handler_packed_by_torch_model_archiver_serves(client: httpx.Client) -> None:
    assert client.post("/predictions/echo", content=b"\x00bytes\xff").content == b"\x00bytes\xff"


def test_a_function_style_handler_packed_by_torch_model_archiver_serves(client: httpx.Client) -> None:
    assert client.get("/predictions/plain").text == "plain 1.0"


def test_a_base_handler_with_state_dict_and_model_file_computes_what_torch_computes(
    client: httpx.Client, two_layers: Any
) -> None:
    with torch.inference_mode():
        expected = two_layers(torch.tensor([ROW]))[0].tolist()
    assert client.post("/predictions/eager", json=ROW).json() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("form", ["raw", "json", "json by name", "multipart", "multipart json"])
def test_a_typed_torchscript_model_takes_a_row_in_every_form(client: httpx.Client, two_layers: Any, form: str) -> None:
    raw = np.array(ROW, np.float32).tobytes()
    sent: dict[str, dict[str, Any]] = {
        "raw": {"content": raw, "headers": {"content-type": "application/octet-stream"}},
        "json": {"json": ROW},
        "json by name": {"json": {"x": ROW}},
        "multipart": {"files": {"x": ("x.bin", raw, "application/octet-stream")}},
        "multipart json": {"files": {"x": ("x.json", json.dumps(ROW), "application/json")}},
    }
    with torch.inference_mode():
        expected = two_layers(torch.tensor([ROW]))[0].tolist()
    response = client.post("/predictions/script", **sent[form])
    assert response.json() == pytest.approx(expected, abs=1e-6)
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("form", ["raw", "json", "multipart"])
def test_a_typed_python_model_takes_and_gives_several_arrays_by_name(client: httpx.Client, form: str) -> None:
    left, right = np.array([1, 2, 3], np.float32), np.array([0.5, 0.5, 0.5], np.float32)
    sent: dict[str, dict[str, Any]] = {
        "raw": {"content": left.tobytes() + right.tobytes()},
        "json": {"json": {"right": right.tolist(), "left": left.tolist()}},
        "multipart": {"files": {"right": right.tobytes(), "left": left.tobytes()}},
    }
    response = client.post("/predictions/sums", **sent[form])
    assert response.json() == {"sum": [1.5, 2.5, 3.5], "double": [2.0, 4.0, 6.0]}


def test_a_path_without_version_means_the_first_registered_version_and_a_version_means_itself(
    client: httpx.Client,
) -> None:
    versions = {
        path: seen(client.get(path))["version"]
        for path in ("/predictions/probe", "/predictions/probe/1.0", "/predictions/probe/2.0")
    }
    # `all` loads in the order of the file names: probe-2.mar comes before probe.mar.
    assert versions == {
        "/predictions/probe": "2.0",
        "/predictions/probe/1.0": "1.0",
        "/predictions/probe/2.0": "2.0",
    }


@pytest.mark.parametrize(
    "path",
    [
        "/predictions/probe/",
        "/predictions/probe/2.0/",
        "/predictions/prob%65",
        "/predictions/probe/2%2E0",
        "/predictions/probe?a=b",
    ],
)
def test_trailing_slashes_escapes_and_queries_lead_to_the_same_model(client: httpx.Client, path: str) -> None:
    answer = seen(client.get(path))
    assert (answer["model"], answer["version"]) == ("probe", "2.0")
    assert answer["headers"]["url_path"] == ""
    assert list(answer["inputs"]) == ["body"]


def test_a_model_whose_name_needs_escapes_is_found(client: httpx.Client, management: httpx.Client, store: Path) -> None:
    name = "mein modell ü"
    registered = management.post("/models", params={"url": "plain.mar", "model_name": name, "initial_workers": 1})
    assert registered.status_code == 200, registered.text
    try:
        assert client.get("/predictions/mein%20modell%20%C3%BC").text == f"{name} 1.0"
        assert client.get("/predictions/mein%20modell%20%C3%BC/1.0").text == f"{name} 1.0"
        assert management.get("/models/mein%20modell%20%C3%BC").json()[0]["modelName"] == name
    finally:
        assert management.delete("/models/mein%20modell%20%C3%BC").status_code == 200


def test_the_rest_of_the_path_reaches_the_handler_as_url_path(client: httpx.Client) -> None:
    headers = seen(client.post("/predictions/probe/1.0/v1/chat/completions"))["headers"]
    assert headers["url_path"] == "v1/chat/completions"
    assert headers["explain"] == "False"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
def test_any_method_but_options_predicts(client: httpx.Client, method: str) -> None:
    assert client.request(method, "/predictions/echo", content=b"hello").content == b"hello"


def test_a_clients_request_id_is_adopted_and_is_what_the_handler_sees(client: httpx.Client) -> None:
    response = client.get("/predictions/probe", headers={"x-request-id": "order-66"})
    assert response.headers["x-request-id"] == "order-66" == seen(response)["request_id"]


def test_a_request_without_an_id_is_given_one_and_a_fresh_one_each_time(client: httpx.Client) -> None:
    responses = [client.get("/predictions/probe") for _ in range(3)]
    ids = [response.headers["x-request-id"] for response in responses]
    assert ids == [seen(response)["request_id"] for response in responses]
    assert len(set(ids)) == 3
    assert all(len(rid) == 36 and rid[14] == "4" for rid in ids)


@pytest.mark.parametrize("bad", ["", "x" * 129, "two words"])
def test_an_unusable_request_id_is_replaced(client: httpx.Client, bad: str) -> None:
    response = client.get("/predictions/probe", headers={"x-request-id": bad})
    assert response.headers["x-request-id"] not in ("", bad)
    assert seen(response)["request_id"] == response.headers["x-request-id"]


def test_every_answer_carries_torchserves_fixed_headers(client: httpx.Client, management: httpx.Client) -> None:
    responses = [client.get("/ping"), client.get("/predictions/plain"), client.get("/predictions/nobody")]
    responses += [management.get("/models"), management.get("/nowhere")]
    for response in responses:
        assert response.headers["pragma"] == "no-cache"
        assert response.headers["cache-control"] == "no-cache; no-store, must-revalidate, private"
        assert response.headers["expires"] == "Thu, 01 Jan 1970 00:00:00 UTC"
        assert response.headers["x-request-id"]
        assert int(response.headers["content-length"]) == len(response.content)


def test_ping_says_healthy(client: httpx.Client) -> None:
    # A worker that another test has killed may still be on its way back.
    wait_until(lambda: client.get("/ping").status_code == 200, 10, "every worker")
    response = client.get("/ping")
    assert response.text == '{\n  "status": "Healthy"\n}\n'


@pytest.mark.parametrize(
    ("kind", "content_type", "body"),
    [
        ("bytes", "application/octet-stream", b"\x00\xff"),
        ("text", "text/plain; charset=utf-8", "grün".encode()),
        ("object", "application/json", b'{\n  "a": [\n    1,\n    2.5,\n    null\n  ]\n}'),
        ("none", "application/json", b"null"),
        ("number", "application/json", b"7"),
        ("list", "application/json", b"[\n  1,\n  2\n]"),
    ],
)
def test_an_answers_kind_decides_its_bytes_and_content_type(
    client: httpx.Client, kind: str, content_type: str, body: bytes
) -> None:
    response = client.post("/predictions/answers", json={"kind": kind})
    assert response.content == body
    assert response.headers["content-type"] == content_type


def test_status_phrase_headers_and_content_type_are_the_handlers_to_set(client: httpx.Client) -> None:
    wanted = {"status": 418, "phrase": "teapot", "headers": {"X-Pot": "short"}, "content_type": "text/x-tea"}
    response = client.post("/predictions/answers", json={**wanted, "kind": "text"})
    assert (response.status_code, response.reason_phrase) == (418, "teapot")
    assert response.headers["x-pot"] == "short"
    assert response.headers["content-type"] == "text/x-tea"
    assert response.text == "grün"
    assert response.headers["connection"] == "close"


def test_one_rows_status_does_not_stay_for_the_next_request(client: httpx.Client) -> None:
    assert client.post("/predictions/answers", json={"status": 202, "headers": {"x-a": "b"}}).status_code == 202
    after = client.post("/predictions/answers", json={})
    assert after.status_code == 200
    assert "x-a" not in after.headers


@pytest.mark.parametrize(
    ("content_type", "body", "arrives"),
    [
        ("application/json", b'{"a": [1]}', ["dict", {"a": [1]}]),
        ("application/json; charset=utf-8", b"[1]", ["list", [1]]),
        ("application/json", b"{broken", ["bytearray", "{broken"]),
        ("text/plain", "grün".encode(), ["str", "grün"]),
        ("text/csv", b"\xff", ["bytearray", "\u00ff"]),
        ("image/png", b"\x89PNG", ["bytearray", "\u0089PNG"]),
        (None, b"[1]", ["bytearray", "[1]"]),
    ],
)
def test_the_content_type_decides_how_a_body_reaches_the_handler(
    client: httpx.Client, content_type: str | None, body: bytes, arrives: list[Any]
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    assert seen(client.post("/predictions/probe", content=body, headers=headers))["inputs"] == {"body": arrives}


def test_a_missing_body_is_an_empty_bytearray(client: httpx.Client) -> None:
    assert seen(client.get("/predictions/probe"))["inputs"] == {"body": ["bytearray", ""]}


def test_multipart_parts_reach_the_handler_by_name_and_decoded_by_their_own_type(client: httpx.Client) -> None:
    files = {
        "image": ("a.png", b"\x89PNG", "image/png"),
        "options": ("o.json", b'{"k": 1}', "application/json"),
        "note": ("n.txt", b"hi", "text/plain"),
    }
    answer = seen(client.post("/predictions/probe", files=files, data={"field": "value"}))
    assert answer["inputs"] == {
        "image": ["bytearray", "\u0089PNG"],
        "options": ["dict", {"k": 1}],
        "note": ["str", "hi"],
        "field": ["bytearray", "value"],
    }


def test_urlencoded_fields_reach_the_handler_as_bytes(client: httpx.Client) -> None:
    answer = seen(
        client.post(
            "/predictions/probe",
            content=b"a=1&b=%00%FF+x&a=2",
            headers={"content-type": "application/x-www-form-urlencoded"},
        )
    )
    assert answer["inputs"] == {"a": ["bytearray", "2"], "b": ["bytearray", "\u0000\u00ff x"]}


def test_the_handler_sees_the_clients_headers(client: httpx.Client) -> None:
    headers = seen(client.get("/predictions/probe", headers={"X-Tenant": "blue", "authorization": "Bearer s"}))[
        "headers"
    ]
    assert headers["x-tenant"] == "blue"
    assert "authorization" not in headers


def test_the_server_says_what_scripts_wait_for(server: ServerProcess) -> None:
    for line in ("Inference API bind to: http://127.0.0.1:", "Management API bind to: http://127.0.0.1:"):
        assert line in server.log
    assert "Model server started.\n" in server.log

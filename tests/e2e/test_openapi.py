"""The OpenAPI documents of a real server, and the server asked by them: schemathesis makes up requests and judges the answers."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from openapi_spec_validator import validate
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from ringserve.server.testing import ServerProcess

EXAMPLES_EACH = 8
EXAMPLES = {
    "POST /predictions/{model_name}": 30,
    "POST /models": 60,
    "PUT /models/{model_name}": 30,
    "PUT /models/{model_name}/{model_version}": 30,
}
CALL_S_MAX = 20
MODELS = ("first", "second", "typed")
# A status that the document does not know fails, a 5xx like any other.
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
REPEATABLY = settings(
    database=None,
    derandomize=True,
    deadline=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)

# What is asked for beside what schemathesis makes up, so that most requests mean something that is there.
SOURCES = [
    *(f"{name}.mar" for name in MODELS),
    "",
    "none.mar",
    "../first.mar",
    "http://127.0.0.1:9/x.mar",
    "s3://x/y.mar",
]
NUMBERS = st.one_of(st.integers(-1, 120), st.integers(), st.text())
FLAGS = st.sampled_from(["true", "false", "True", "1", ""])
LIKELY: dict[str, st.SearchStrategy[Any]] = {
    "model_name": st.sampled_from([*MODELS, "fourth"]),
    "model_version": st.sampled_from(["1.0", "1.0", "2.0", "all"]),
    "url": st.sampled_from(SOURCES),
    "handler": st.sampled_from(["plain.py:handle", "base_handler", "../x", ""]),
    "runtime": st.sampled_from(["python", "python3", "LSP", "PYTHON", ""]),
    **{name: NUMBERS for name in ("batch_size", "max_batch_delay", "response_timeout", "startup_timeout")},
    **{name: NUMBERS for name in ("queue_timeout", "limit", "next_page_token", "number_gpu", "timeout")},
    **{name: FLAGS for name in ("synchronous", "s3_sse_kms", "customized")},
}
# Of these many requests are made; which ones depends on what hypothesis knows from the modules of a whole run.
BOTH_WAYS = {
    "inference": ["POST /predictions/{model_name}"],
    "management": ["POST /models", "PUT /models/{model_name}"],
}
# No more workers than that are really started; far more are refused.
WORKERS = st.one_of(st.integers(-1, 2), st.integers(1025), st.sampled_from(["", "many", "1.5"]))
COUNTS = ("initial_workers", "min_worker", "max_worker")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path], sums_config: str
) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("openapi")
    store = folder / "store"
    for name in MODELS[:2]:
        archive(store, name, "plain.py:handle")
    archive(store, "typed", "sums.py", config=sums_config)
    config = {"default_workers_per_model": 1}
    with ServerProcess(store, config=config, folder=folder / "server") as server:
        yield server
    assert server.wait(1) == 0, server.log
    assert server.remains() == []
    assert "a request failed inside the server" not in server.log


def urls(server: ServerProcess) -> dict[str, str]:
    return {"inference": server.inference_url, "management": server.management_url}


def document(url: str, path: str = "/", method: str = "OPTIONS") -> dict[str, Any]:
    response = httpx.request(method, url + path, trust_env=False)
    assert response.status_code == 200, response.text
    return dict(response.json())


listeners = pytest.mark.parametrize("listener", ["inference", "management"])


@listeners
def test_a_listener_describes_itself(server: ServerProcess, listener: str) -> None:
    url = urls(server)[listener]
    described = document(url)
    validate(described)
    assert described == document(url, "/api-description", "GET")
    assert ("/models" in described["paths"]) == (listener == "management")
    refused = httpx.get(url, trust_env=False)
    assert (refused.status_code, refused.json()["type"]) == (405, "MethodNotAllowedException")


def test_a_model_is_described_by_its_name_and_version(server: ServerProcess) -> None:
    here = document(server.inference_url, "/predictions/typed")
    validate(here)
    assert here["info"]["title"] == "RESTful API for: typed"
    body = here["paths"]["/predictions/typed"]["post"]["requestBody"]["content"]["application/json"]
    assert list(body["schema"]["properties"]) == ["left", "right"]
    for path in ("/predictions/typed/1.0", "/predictions/typed/1.0/some/path/"):
        assert set(document(server.inference_url, path)["paths"]) == set(here["paths"])
    there = document(server.management_url, "/models/typed/1.0")
    validate(there)
    assert set(there["paths"]) == {"/models/typed", "/models/typed/1.0", "/models/typed/1.0/set-default"}


@pytest.mark.parametrize("rest", ["nobody", "typed/9.9"])
@pytest.mark.parametrize(("listener", "prefix"), [("inference", "/predictions/"), ("management", "/models/")])
def test_what_is_not_there_is_not_described(server: ServerProcess, listener: str, prefix: str, rest: str) -> None:
    response = httpx.options(urls(server)[listener] + prefix + rest, trust_env=False)
    expected = "Model not found: nobody"
    if rest != "nobody":
        expected = "Model version: 9.9 does not exist for model: typed"
    assert (response.status_code, response.json()["message"]) == (404, expected)


# ---- requests made up from the documents


def likely(context: Any, parameters: Any) -> st.SearchStrategy[Any]:
    """What was made up, with likely values in most places."""
    if not isinstance(parameters, dict):
        return st.just(parameters)
    values: dict[str, st.SearchStrategy[Any]] = {}
    for name, value in parameters.items():
        values[name] = WORKERS if name in COUNTS else LIKELY.get(name, st.nothing()) | st.just(value)
    return st.fixed_dictionaries(values)


def restore(management: httpx.Client) -> None:
    """The models that there were at first, each with a worker, and no others."""
    for listed in management.get("/models").json()["models"]:
        name = listed["modelName"]
        if name not in MODELS:
            assert management.delete(f"/models/{quote(name, safe='')}").status_code == 200
    for name in MODELS:
        wanted = {"url": f"{name}.mar", "initial_workers": "1"}
        if management.post("/models", params=wanted).status_code != 200:
            scaled = {"min_worker": "1", "synchronous": "true"}
            assert management.put(f"/models/{name}/1.0", params=scaled).status_code == 200


@listeners
def test_every_answer_to_a_made_up_request_is_documented(server: ServerProcess, listener: str) -> None:
    url = urls(server)[listener]
    schema = schemathesis.openapi.from_dict(document(url))
    for hook in ("path_parameters", "query", "body"):
        schema.hook(f"flatmap_{hook}")(likely)
    asked: dict[str, set[int]] = {}
    client = httpx.Client(base_url=server.management_url, trust_env=False, timeout=CALL_S_MAX)
    with client as management, requests.Session() as session:
        session.trust_env = False
        for found in schema.get_all_operations():
            operation: Any = found.ok()  # type: ignore[union-attr]
            restore(management)

            @settings(REPEATABLY, max_examples=EXAMPLES.get(operation.label, EXAMPLES_EACH))
            @given(case=operation.as_strategy())
            def ask(case: Any) -> None:
                response = case.call(base_url=url, session=session, timeout=CALL_S_MAX)
                asked.setdefault(case.operation.label, set()).add(response.status_code)
                case.validate_response(response, checks=CHECKS)

            ask()
    assert {200, 404} <= set().union(*asked.values()), "requests of both kinds were among them"
    for label in BOTH_WAYS[listener]:
        assert any(status < 400 or status == 409 for status in asked[label]), (label, asked[label])
        assert any(status in (400, 404) for status in asked[label]), (label, asked[label])
    assert server.running

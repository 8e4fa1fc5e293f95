"""Which model a path means: TorchServe's routes, and every other path."""

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.errors import BadRequest, RingServeError
from ringserve.protocol.request import FormPart
from ringserve.server.dispatch import Dispatcher
from ringserve.server.routes.targets import (
    Asked,
    asked_for,
    find,
    handler_headers,
    name_in,
    no_worker_text,
    query_inputs,
)
from ringserve.server.routing import ModelTargets, RouteTable, Target


def dispatcher(label: str) -> Dispatcher:
    """Nobody asks it anything: it only has to be itself."""
    return cast(Dispatcher, SimpleNamespace(label=label))


M1, M2, OTHER = dispatcher("m 1.0"), dispatcher("m 2.0"), dispatcher("other")
MODELS = {"m": ModelTargets("2.0", {"1.0": M1, "2.0": M2}), "other": ModelTargets("1", {"1": OTHER})}
TABLE = RouteTable(models=MODELS)


def target(path: str, table: RouteTable = TABLE) -> Target:
    asked = asked_for(path)
    assert asked is not None, path
    return find(table, asked, asked.model)


def refusal(path: str, table: RouteTable = TABLE) -> tuple[int, str]:
    with pytest.raises(RingServeError) as caught:
        target(path, table)
    return caught.value.http_status, caught.value.message


@pytest.mark.parametrize(
    ("path", "expected", "named", "headers"),
    [
        ("/predictions/m", M2, False, {"explain": "False", "url_path": ""}),
        ("/predictions/m/", M2, False, {"explain": "False", "url_path": ""}),
        ("/predictions/m//", M2, False, {"explain": "False", "url_path": ""}),
        ("/predictions/%6D", M2, False, {"explain": "False", "url_path": ""}),
        ("/predictions/m/1.0", M1, True, {"explain": "False", "url_path": ""}),
        ("/predictions/m%2F1.0", M1, True, {"explain": "False", "url_path": ""}),
        ("/predictions/m/1.0/v1/chat/completions", M1, True, {"explain": "False", "url_path": "v1/chat/completions"}),
        ("/predictions/m/1.0/a//b/", M1, True, {"explain": "False", "url_path": "a//b"}),
        ("/explanations/m", M2, False, {"explain": "True", "url_path": ""}),
        ("/explanations/m/1.0", M1, True, {"explain": "True", "url_path": ""}),
        ("/explanations/m/1.0/rest", M1, True, {"explain": "True", "url_path": "rest"}),
        ("/v1/models/m:predict", M2, False, {"explain": "False"}),
        ("/v1/models/m%3Aexplain/", M2, False, {"explain": "True"}),
        ("/v2/models/m/infer", M2, False, {"explain": "False"}),
        ("/v2/models/m/versions/1.0/infer", M1, True, {"explain": "False"}),
        ("/v2/models/m/explain", M2, False, {"explain": "True"}),
        ("/models/m/invoke", M2, False, {}),
        ("/m/predict", M2, False, {}),
        ("/m/predict/", M2, False, {}),
        ("/m/1.0/predict", M1, True, {}),
    ],
)
def test_a_route_means_a_version_and_tells_the_handler_how_it_was_asked(
    path: str, expected: Dispatcher, named: bool, headers: dict[str, str]
) -> None:
    found = target(path)
    assert (found.dispatcher, found.named, found.headers) == (expected, named, headers)
    assert found.version == ("1.0" if expected is M1 else "2.0")
    assert found.explains == (headers.get("explain") == "True")


@pytest.mark.parametrize(
    "path",
    [
        *(
            "/",
            "",
            "//",
            "/ping",
            "/ping/predict",
            "/health/live/predict",
            "/health/predict",
            "/api-description/predict",
        ),
        *("/predictions", "/predictions/", "/explanations", "/Predictions/m", "/invocations/m", "/invocations/predict"),
        *("/models", "/models/m", "/models/m/1.0", "/models/m/1.0/invoke", "/models/m/invoke/x", "/models/predict"),
        *("/v1/models/m", "/v1/models/m:other", "/v1/models/predict", "/v1/models/m:predict/x", "/v1/predict"),
        *("/v2", "/v2/models/m", "/v2/models/m/ready", "/v2/models/m/infer/x", "/v2/models/m/versions/1.0/explain"),
        *("/m", "/predict", "//predict", "/m/Predict", "/m/predict/x", "/m/1.0/predict/x", "/a/b/c/predict"),
    ],
)
def test_any_other_path_is_somebody_elses(path: str) -> None:
    assert asked_for(path) is None


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/predictions/nobody", "Model not found: nobody"),
        ("/predictions//1.0", "Model not found: "),
        ("/explanations/nobody/1.0", "Model not found: nobody"),
        ("/explanations/m/9", "Model version: 9 does not exist for model: m"),
        ("/predictions/m//rest", "Model version:  does not exist for model: m"),
        ("/nobody/predict", "Model not found: nobody"),
        ("/m/9/predict", "Model version: 9 does not exist for model: m"),
        ("/models/nobody/invoke", "Model not found: nobody"),
        ("/v1/models/nobody:predict", "Model not found: nobody"),
        ("/v1/models/:predict", "Model not found: "),
        ("/v1/models/m:predict:explain", "Model not found: m:predict"),
        ("/v2/models/nobody/infer", "Model not found: nobody"),
        ("/v2/models//infer", "Model not found: "),
        ("/predictions/" + "x" * 300, "Model not found: " + "x" * 256),
    ],
)
def test_what_is_not_there_is_named(path: str, message: str) -> None:
    assert refusal(path) == (404, message)


def test_an_invocation_without_a_name_is_of_the_only_model_there_is() -> None:
    only = RouteTable(models={"m": MODELS["m"]})
    for path in ("/invocations", "/models//invoke"):
        assert target(path, only).dispatcher is M2
        assert refusal(path) == (400, "Parameter model_name is required.")
        assert refusal(path, RouteTable()) == (400, "Parameter model_name is required.")


@pytest.mark.parametrize(
    ("url", "name", "inputs"),
    [
        (b"/invocations?model_name=m&a=1&a=2", "m", [("model_name", b"m"), ("a", b"1"), ("a", b"2")]),
        (b"/invocations?model_name=m&model_name=x#model_name=y", "m", [("model_name", b"m"), ("model_name", b"x")]),
        (b"/invocations?model_name=%C3%BC%ff", "ü\ufffd", [("model_name", "ü\ufffd".encode())]),
        (b"/invocations?Model_Name=m", "", [("Model_Name", b"m")]),
        (b"/invocations", "", []),
    ],
)
def test_the_first_name_in_a_query_counts_and_all_of_it_is_input(
    url: bytes, name: str, inputs: list[tuple[str, bytes]]
) -> None:
    fields = query_inputs(Asked("", with_query=True), url)
    assert name_in(fields) == name
    assert [(field.name, field.data) for field in fields] == inputs


@pytest.mark.parametrize(
    ("path", "counts"),
    [
        ("/predictions/m", False),
        ("/explanations/m", False),
        ("/v1/models/m:predict", False),
        ("/v2/models/m/infer", False),
        ("/invocations", True),
        ("/models/m/invoke", True),
        ("/m/predict", True),
        ("/m/1.0/predict", True),
    ],
)
def test_a_query_brings_inputs_only_where_torchserve_says_so(path: str, counts: bool) -> None:
    asked = asked_for(path)
    assert asked is not None
    assert query_inputs(asked, path.encode() + b"?a=b") == ([FormPart("a", "", b"b")] if counts else [])


def test_a_query_of_too_many_parameters_is_refused() -> None:
    with pytest.raises(BadRequest, match="expected at most 1000 fields"):
        query_inputs(Asked("m", with_query=True), b"/invocations?" + b"a&" * 1001)


def test_a_handler_sees_what_the_route_says_instead_of_what_the_client_said() -> None:
    sent = [("explain", "True"), ("url_path", "x"), ("x-a", "1"), ("x-a", "2")]
    assert handler_headers(sent, target("/predictions/m")) == {"explain": "False", "url_path": "", "x-a": "2"}
    assert handler_headers(sent, target("/m/predict")) == {"explain": "True", "url_path": "x", "x-a": "2"}


def test_a_handler_does_not_see_what_the_server_was_asked_for() -> None:
    assert handler_headers([("expect", "100-continue"), ("x-a", "1")], target("/m/predict")) == {"x-a": "1"}


@pytest.mark.parametrize("path", ["/predictions/m/1.0/rest", "/m/1.0/predict"])
def test_a_version_that_was_named_is_named_when_it_has_no_worker(path: str) -> None:
    assert no_worker_text(target(path)).startswith('Model "m" Version 1.0" has no worker to serve inference request.')


@pytest.mark.parametrize("path", ["/predictions/m", "/models/m/invoke", "/v1/models/m:predict", "/v2/models/m/infer"])
def test_a_model_that_was_named_alone_is_named_when_it_has_no_worker(path: str) -> None:
    assert no_worker_text(target(path)).startswith('Model "m" has no worker to serve inference request.')


words = st.sampled_from(
    [
        "predictions",
        "explanations",
        "m",
        "1.0",
        "v1",
        "v2",
        "models",
        "m:predict",
        ":",
        "infer",
        "invoke",
        "predict",
        "%2F",
    ]
)
paths = st.lists(words | st.text(max_size=5), max_size=6).map(lambda parts: "/" + "/".join(parts)) | st.text()


@given(paths, st.binary(max_size=40), st.sampled_from([TABLE, RouteTable(), RouteTable(models={"m": MODELS["m"]})]))
def test_no_path_and_no_query_does_anything_but_find_a_model_or_be_refused(
    path: str, query: bytes, table: RouteTable
) -> None:
    try:
        asked: Any = asked_for(path)
        if asked is not None:
            fields = query_inputs(asked, b"/x?" + query)
            found = find(table, asked, asked.model or name_in(fields), fields)
            assert found.dispatcher in (M1, M2, OTHER)
            assert no_worker_text(found)
    except RingServeError as error:
        assert error.message

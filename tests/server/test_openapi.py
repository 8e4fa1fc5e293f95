"""The OpenAPI documents: valid, complete, and true to the routes that there are."""

import re
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from openapi_spec_validator import validate
from sanic import Sanic
from sanic.exceptions import MethodNotAllowed, NotFound

from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.app import App
from ringserve.server.management import Management
from ringserve.server.openapi import (
    inference_document,
    management_document,
    model_inference_document,
    model_management_document,
    shared_document,
)
from ringserve.server.registry import Registry
from ringserve.server.routes.documents import INFERENCE_PATHS
from ringserve.server.routes.inference import Inference, Timeouts
from ringserve.server.routes.management import ManagementRoutes
from ringserve.server.routes.open_inference import asked_by
from ringserve.server.routes.targets import asked_for
from ringserve.server.routing import RouteTable
from ringserve.server.settings import Settings

SETTINGS = Settings(default_workers_per_model=3, default_response_timeout_s=77)
TYPED = Signature(
    (TensorSpec("x", "float32", (2, 3)), TensorSpec("mask", "bool", ())), (TensorSpec("y", "int64", (4,)),)
)
DOCUMENTS = {
    "inference": inference_document("1.2.3"),
    "management": management_document("1.2.3", SETTINGS),
    "shared": shared_document("1.2.3", SETTINGS),
    "a model to predict": model_inference_document("m", "1.0", {"1.0": Signature(), "2.0": TYPED}),
    "a model to manage": model_management_document("m", ["1.0", "2.0"], SETTINGS),
}
# Contract section 13: what clients made from TorchServe's documents know.
TORCHSERVE_IDS = {
    "inference": {
        ("options", "/", "apiDescription"),
        ("get", "/ping", "ping"),
        ("post", "/predictions/{model_name}", "predictions"),
        ("post", "/predictions/{model_name}/{model_version}", "version_predictions"),
        ("get", "/api-description", "api-description"),
    },
    "management": {
        ("options", "/", "apiDescription"),
        ("get", "/models", "listModels"),
        ("post", "/models", "registerModel"),
        ("get", "/models/{model_name}", "describeModel"),
        ("put", "/models/{model_name}", "setAutoScale"),
        ("delete", "/models/{model_name}", "unregisterModel"),
        ("get", "/models/{model_name}/{model_version}", "version_describeModel"),
        ("put", "/models/{model_name}/{model_version}", "version_setAutoScale"),
        ("delete", "/models/{model_name}/{model_version}", "version_unregisterModel"),
        ("put", "/models/{model_name}/{model_version}/set-default", "setDefault"),
        ("get", "/api-description", "api-description"),
    },
}

documents = pytest.mark.parametrize("name", DOCUMENTS)


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def resolved(document: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in value:
        found: Any = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        value = found
    return value


# ---- the documents themselves


@documents
def test_a_document_is_valid_openapi_3(name: str) -> None:
    assert DOCUMENTS[name]["openapi"] == "3.0.1"
    validate(DOCUMENTS[name])


@documents
def test_no_operation_id_comes_twice(name: str) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(DOCUMENTS[name])]
    assert len(ids) == len(set(ids))


@documents
def test_every_parameter_has_a_type_and_every_answer_a_schema(name: str) -> None:
    document = DOCUMENTS[name]
    for method, path, operation in operations(document):
        where = f"{method} {path}"
        assert operation["description"], where
        for parameter in operation["parameters"]:
            assert parameter["description"] and parameter["schema"]["type"], f"{where}: {parameter}"
            if parameter["schema"]["type"] == "integer" and parameter["name"] != "timeout":
                assert {"minimum", "maximum"} <= parameter["schema"].keys(), f"{where}: {parameter}"
        for status, answer in operation["responses"].items():
            contents = resolved(document, answer)["content"].values()
            assert contents and all("schema" in each for each in contents), f"{where}: {status}"


@documents
def test_every_parameter_of_a_path_is_described(name: str) -> None:
    for method, path, operation in operations(DOCUMENTS[name]):
        described = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
        assert described == set(re.findall(r"\{(\w+)\}", path)), f"{method} {path}"


@pytest.mark.parametrize("name", TORCHSERVE_IDS)
def test_titles_and_operation_ids_are_torchserves(name: str) -> None:
    document = DOCUMENTS[name]
    assert document["info"] == {"title": "TorchServe APIs", "version": "1.2.3"}
    named = {(method, path, operation["operationId"]) for method, path, operation in operations(document)}
    assert named >= TORCHSERVE_IDS[name]


def test_a_shared_address_has_the_operations_of_both() -> None:
    both = {**DOCUMENTS["inference"]["paths"], **DOCUMENTS["management"]["paths"]}
    assert DOCUMENTS["shared"]["paths"] == both


def test_a_registrations_parameters_say_what_is_the_default_here() -> None:
    register = DOCUMENTS["management"]["paths"]["/models"]["post"]
    schemas = {each["name"]: each["schema"] for each in register["parameters"]}
    assert schemas["synchronous"] == {"type": "boolean", "default": True}
    assert schemas["initial_workers"]["default"] == 3
    assert schemas["response_timeout"]["default"] == 77
    assert schemas["runtime"]["enum"] == ["python", "python3", "LSP"]
    assert [each["name"] for each in register["parameters"] if each.get("required")] == ["url"]
    body = register["requestBody"]["content"]["application/json"]["schema"]
    assert body["properties"].keys() == schemas.keys()
    assert body["required"] == ["url"]


# ---- of one model


def test_the_document_of_a_model_names_its_versions_and_its_default() -> None:
    document = DOCUMENTS["a model to predict"]
    assert document["info"] == {"title": "RESTful API for: m", "version": "1.0.0"}
    assert set(document["paths"]) == {
        "/predictions/m",
        "/predictions/m/1.0",
        "/predictions/m/2.0",
        "/explanations/m",
        "/explanations/m/1.0",
        "/v1/models/m:predict",
        "/v2/models/m/infer",
        "/v1/models/m",
    }, "the second version declares its inputs, so it explains nothing"
    assert document["paths"]["/predictions/m"]["post"]["operationId"] == "m"


def test_a_model_that_declares_its_inputs_has_them_in_its_document() -> None:
    prediction = DOCUMENTS["a model to predict"]["paths"]["/predictions/m/2.0"]["post"]
    row = prediction["requestBody"]["content"]["application/json"]["schema"]["properties"]
    inner = {"type": "array", "items": {"type": "number"}, "minItems": 3, "maxItems": 3}
    assert row["x"] == {
        "type": "array",
        "items": inner,
        "minItems": 2,
        "maxItems": 2,
        "description": "float32[2, 3]",
    }
    assert row["mask"]["type"] == "boolean"
    answer = prediction["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["properties"]["y"]["items"] == {"type": "integer"}


def test_the_document_of_a_model_to_manage_holds_its_three_paths() -> None:
    document = model_management_document("m", ["1.0"], SETTINGS)
    assert document["info"]["title"] == "RESTful Management API for: m"
    assert set(document["paths"]) == {"/models/m", "/models/m/1.0", "/models/m/1.0/set-default"}


def test_names_that_a_url_cannot_hold_as_they_are_are_escaped() -> None:
    document = model_inference_document("a b{c}", "1 0", {"1 0": Signature()})
    validate(document)
    assert "/predictions/a%20b%7Bc%7D/1%200" in document["paths"]


# ---- and the routes


@pytest.fixture(scope="module")
def apps() -> Iterator[dict[str, App]]:
    """The two listeners' apps, without a socket; nobody asks them anything but for their routes."""
    behind = SimpleNamespace(registry=Registry(), settings=SETTINGS)
    management = ManagementRoutes(cast(Management, behind), 1000)
    inference = Inference(RouteTable(), 1000, Timeouts())
    made = {"inference": inference.app, "management": management.app}
    for app in made.values():
        app.router.finalize()
    yield made
    for app in made.values():
        Sanic.unregister_app(app)


PLACES = {"model": "model_name", "version": "model_version", "workflow": "workflow_name"}
listeners = pytest.mark.parametrize("listener", ["inference", "management"])


@listeners
def test_every_route_is_documented(apps: dict[str, App], listener: str) -> None:
    """But for what TorchServe answers whatever the method is, which is documented by one."""
    documented = {(method.upper(), path) for method, path, _ in operations(DOCUMENTS[listener])}
    for route in apps[listener].router.routes:
        path = "/" + re.sub(r"<(\w+):str>", lambda found: f"{{{PLACES[found[1]]}}}", route.path)
        if path == "/ping/<rest:path>":
            continue  # documented as /ping
        if path in ("/ping", "/api-description", "/wfpredict/{workflow_name}"):
            assert ("GET", path) in documented or ("POST", path) in documented
            continue
        if "OPTIONS" in route.methods and f"/{route.path}" in INFERENCE_PATHS:
            continue  # of several each, which the next test finds
        for method in route.methods:
            assert (method, path) in documented


@listeners
def test_every_documented_operation_has_a_route(apps: dict[str, App], listener: str) -> None:
    for method, path, _ in operations(DOCUMENTS[listener]):
        where = re.sub(r"\{\w+\}", "x", path)
        if listener == "inference" and method == "post" and asked_for(where) is not None:
            continue  # answered in front of the router
        v2 = asked_by(method.upper(), where) if listener == "inference" and method != "options" else None
        if v2 is not None:
            assert v2.what not in ("unknown", "not_allowed"), where
            continue  # likewise
        try:
            apps[listener].router.get(where, method.upper(), None)
        except (NotFound, MethodNotAllowed) as error:
            pytest.fail(f"{method} {path}: {error}")

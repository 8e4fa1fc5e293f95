"""The routes that describe the API: `OPTIONS /` and `/api-description`, OPTIONS of one model; and what is said of workflows."""

from collections.abc import Callable
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any

from sanic import HTTPResponse
from sanic.request import Request

from ringserve.protocol.errors import METHOD_NOT_ALLOWED, MethodNotAllowed, NotFound, WorkflowNotFound
from ringserve.server.app import NOT_FOUND, App, json_response
from ringserve.server.openapi import (
    inference_document,
    management_document,
    model_management_document,
    shared_document,
)
from ringserve.server.routes.health import KSERVE_READY
from ringserve.server.settings import Settings

if TYPE_CHECKING:  # front ends have no registry
    from ringserve.server.registry import Registry

METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")


# Where OPTIONS asks for the document of one model: the inference routes of targets.py, as Sanic writes them.
INFERENCE_PATHS = (
    "/predictions/<rest:path>",
    "/explanations/<rest:path>",
    "/invocations",
    "/models/<model:str>/invoke",
    KSERVE_READY,
    "/v2/models/<model:str>/infer",
    "/v2/models/<model:str>/versions/<version:str>/infer",
    "/v2/models/<model:str>/explain",
    "/<model:str>/predict",
    "/<model:str>/<version:str>/predict",
)


def add_inference(app: App, describe: Callable[[str, bytes], dict[str, Any]]) -> None:
    """`describe` makes the document of the model that a path, or the query of a URL, names, or raises."""
    add_document(app, inference_document(package_version("ringserve")))

    async def of_model(request: Request, **named: str) -> HTTPResponse:
        if request.method != "OPTIONS":  # an inference would not be here, so this is none
            if request.uri_template == KSERVE_READY and ":" not in named["model"]:
                raise MethodNotAllowed(METHOD_NOT_ALLOWED)
            raise NotFound(NOT_FOUND)
        return json_response(describe(request.path, request.raw_url), 200, request)

    for index, path in enumerate(INFERENCE_PATHS):
        methods = [each for each in METHODS if (each, path) != ("GET", KSERVE_READY)]
        app.add_route(of_model, path, methods=methods, name=f"document-{index}", unquote=True)

    async def of_workflow(request: Request, workflow: str) -> HTTPResponse:
        raise WorkflowNotFound(f"Workflow not found: {workflow}")

    app.add_route(of_workflow, "/wfpredict/<workflow:str>", methods=METHODS, unquote=True)


def add_management(app: App, registry: "Registry", settings: Settings) -> None:
    """On a shared address front ends pass on who asks for the document: only here the defaults are known."""
    make = shared_document if settings.inference_address == settings.management_address else management_document
    add_document(app, make(package_version("ringserve"), settings))

    async def of_model(request: Request, model: str, version: str | None = None) -> HTTPResponse:
        registry.find(model, version)
        versions = [version] if version is not None else [each.version for each in registry.all_of(model)]
        return json_response(model_management_document(model, versions, settings), 200, request)

    for path, name in (("/models/<model:str>", "model"), ("/models/<model:str>/<version:str>", "version")):
        app.add_route(of_model, path, methods=["OPTIONS"], name=f"document-{name}", unquote=True)


def add_document(app: App, document: dict[str, Any]) -> None:
    """Of a listener."""

    async def answer(request: Request) -> HTTPResponse:
        return json_response(document, 200, request)

    app.add_route(answer, "/", methods=["OPTIONS"], name="document")
    app.add_route(answer, "/api-description", methods=METHODS, name="api-description")

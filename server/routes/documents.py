"""The routes that describe the API: `OPTIONS /` and `/api-description`, and OPTIONS of one model."""

from collections.abc import Callable
from importlib.metadata import version as package_version
from typing import TYPE_CHECKING, Any

from sanic import HTTPResponse
from sanic.request import Request

from ringserve.server.app import App, json_response
from ringserve.server.openapi import (
    inference_document,
    management_document,
    model_management_document,
    shared_document,
)
from ringserve.server.settings import Settings

if TYPE_CHECKING:  # front ends have no registry
    from ringserve.server.registry import Registry

METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")


def add_inference(app: App, describe: Callable[[str], dict[str, Any]]) -> None:
    """`describe` makes the document of the model that a path of predictions names, or raises."""
    add_document(app, inference_document(package_version("ringserve")))

    async def of_model(request: Request, rest: str) -> HTTPResponse:
        return json_response(describe(request.path), 200, request)

    app.add_route(of_model, "/predictions/<rest:path>", methods=["OPTIONS"], name="predictions-document")


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

"""The management listener: parse, call, render (contract sections 2.1-2.8).

Values that are not numbers count as not given, as in TorchServe; parameters come from the query, or from a JSON object body.
"""

import asyncio
import contextlib
import logging
import re
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

import orjson
from sanic import HTTPResponse
from sanic.request import Request

from ringserve.protocol.errors import BadRequest, BodyTooLarge, InvalidModel, ShuttingDown, WorkflowNotFound
from ringserve.server.admin import describe_server
from ringserve.server.app import App, json_response, make_app
from ringserve.server.health import RETRY_AFTER_S
from ringserve.server.management import IN_BACKGROUND, SCALING, Management
from ringserve.server.registration import Registration
from ringserve.server.repository.config_yaml import FILE_BYTES_MAX, parse_mapping
from ringserve.server.routes.documents import add_management
from ringserve.server.routes.guard import Guard
from ringserve.server.routes.health import add_health
from ringserve.server.routes.token import add_token
from ringserve.server.security.cors import answers_preflights, cors_headers
from ringserve.server.security.keyring import Keyring
from ringserve.server.security.tokens import Plane

logger = logging.getLogger("ringserve.management")

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]{1,20}")
BODY_BYTES_MAX = FILE_BYTES_MAX  # parameters are few
T = TypeVar("T")


class Parameters:
    """The parameters of one request."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values

    def text(self, name: str) -> str | None:
        value = self._values.get(name)
        if isinstance(value, dict | list):
            raise BadRequest(f"{name}: expected text, got {'a list' if isinstance(value, list) else 'an object'}.")
        return None if value is None else str(value)

    def integer(self, name: str) -> int | None:
        value = self._values.get(name)
        text = str(int(value) if isinstance(value, float) and value.is_integer() else value)
        if not _WHOLE_NUMBER.fullmatch(text):
            return None
        return int(text) if INT_MIN <= int(text) <= INT_MAX else None

    def flag(self, name: str, default: bool) -> bool:
        """Anything but `true`, in any case, is false."""
        value = self._values.get(name)
        return default if value is None else str(value).lower() == "true"


async def read_parameters(request: Request) -> Parameters:
    """Raises `BadRequest` for a JSON body that is not an object, `BodyTooLarge` for one that nobody needs."""
    content_type = request.headers.getone("content-type", "").partition(";")[0].strip()
    if content_type.lower() != "application/json" or not request.body:
        return Parameters({name: values[-1] for name, values in request.get_args(keep_blank_values=True).items()})
    if len(request.body) > BODY_BYTES_MAX:
        raise BodyTooLarge(f"Body: expected at most {BODY_BYTES_MAX} bytes of parameters, got {len(request.body)}.")
    values = await _json(request.body)
    if not isinstance(values, dict):
        raise BadRequest(f"Body: expected a JSON object, got {type(values).__name__}.")
    return Parameters(values)


async def _json(body: bytes) -> Any:
    """TorchServe's parser also takes single quotes and names without any. Raises `BadRequest`."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if body.lstrip().startswith(b"{"):
            with contextlib.suppress(InvalidModel):
                return await asyncio.to_thread(parse_mapping, body, "Body")  # that may take a second
        raise BadRequest(f"Body: expected a JSON object, got a document that does not parse: {error}.") from None


def _log_outcome(task: "asyncio.Task[T]") -> None:
    error = None if task.cancelled() else task.exception()
    if error is not None:
        logger.error("what a client asked for before it hung up failed: %s", error)


class ManagementRoutes:
    """The management app."""

    def __init__(self, management: Management, request_bytes_max: int, keyring: Keyring | None = None) -> None:
        self._management = management
        self._changes: set[asyncio.Task[Any]] = set()
        self._closed = ""  # why nothing may be changed
        self.app: App = make_app("ringserve-management", request_bytes_max)
        cors = answers_preflights(cors_headers(management.settings))
        metrics = management.settings.metrics_address == management.settings.management_address
        guard = Guard(Plane.MANAGEMENT, tokens=keyring is not None, cors=cors, metrics=metrics)
        self.guard = self.app.ctx.guard = guard
        if keyring is not None:
            add_token(self.app, keyring, self._check_open, self.to_its_end)
        self.app.add_route(self._register, "/models", methods=["POST"], unquote=True)
        self.app.add_route(self._list, "/models", methods=["GET"], unquote=True)
        self.app.add_route(self._status, "/status", methods=["GET"])
        for path, name in (("/models/<model:str>", "one"), ("/models/<model:str>/<version:str>", "version")):
            self.app.add_route(self._describe, path, methods=["GET"], name=f"describe-{name}", unquote=True)
            self.app.add_route(self._scale, path, methods=["PUT"], name=f"scale-{name}", unquote=True)
            self.app.add_route(self._unregister, path, methods=["DELETE"], name=f"unregister-{name}", unquote=True)
        path = "/models/<model:str>/<version:str>/set-default"
        self.app.add_route(self._set_default, path, methods=["PUT"], name="set-default", unquote=True)
        self.app.add_route(self._list_workflows, "/workflows", methods=["GET"], unquote=True)
        self.app.add_route(self._register_workflow, "/workflows", methods=["POST"], unquote=True)
        self.app.add_route(self._workflow, "/workflows/<workflow:str>", methods=["GET", "DELETE"], unquote=True)
        add_health(self.app, lambda: management.versions.health)
        add_management(self.app, management.registry, management.settings)

    def close(self, reason: str) -> None:
        """Refuse changes from here on."""
        self._closed = reason

    def open(self) -> None:
        self._closed = ""

    def _check_open(self) -> None:
        if self._closed:
            raise ShuttingDown(self._closed, retry_after_s=RETRY_AFTER_S)

    async def finished(self) -> None:
        """Whoever changes something is told how that came out."""
        while self._changes:
            await asyncio.wait(self._changes)

    async def to_its_end(self, work: Coroutine[Any, Any, T]) -> T:
        """A client that hangs up does not undo what it asked for; then the log is told how it ended. Raises `ShuttingDown` when nothing
        may be changed."""
        if self._closed:
            work.close()
        self._check_open()
        task = asyncio.ensure_future(work)
        self._changes.add(task)
        task.add_done_callback(self._changes.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_log_outcome)
            raise

    async def _register(self, request: Request) -> HTTPResponse:
        parameters = await read_parameters(request)
        url = parameters.text("url")
        if url is None:
            raise BadRequest("Parameter url is required.")
        wanted = Registration(
            url=url,
            model_name=parameters.text("model_name"),
            handler=parameters.text("handler"),
            runtime=_runtime(parameters.text("runtime")),
            batch_size=parameters.integer("batch_size"),
            max_batch_delay_ms=parameters.integer("max_batch_delay"),
            initial_workers=parameters.integer("initial_workers"),
            synchronous=parameters.flag("synchronous", True),
            response_timeout_s=parameters.integer("response_timeout"),
            startup_timeout_s=parameters.integer("startup_timeout"),
            queue_timeout_s=parameters.integer("queue_timeout"),
            s3_sse_kms=parameters.flag("s3_sse_kms", False),
        )
        status = await self.to_its_end(self._management.register(wanted))
        return json_response({"status": status}, _status_code(status), request)

    async def _list(self, request: Request) -> HTTPResponse:
        parameters = await read_parameters(request)
        limit, offset = parameters.integer("limit"), parameters.integer("next_page_token")
        page = self._management.list_models(100 if limit is None else limit, offset or 0)
        return json_response(page, 200, request)

    async def _status(self, request: Request) -> HTTPResponse:
        return json_response(describe_server(self._management), 200, request)

    async def _describe(self, request: Request, model: str, version: str | None = None) -> HTTPResponse:
        customized = (await read_parameters(request)).flag("customized", False)
        return json_response(await self._management.describe(model, version, customized=customized), 200, request)

    async def _scale(self, request: Request, model: str, version: str | None = None) -> HTTPResponse:
        parameters = await read_parameters(request)
        low = parameters.integer("min_worker")
        work = self._management.scale(
            model,
            version or parameters.text("model_version"),
            1 if low is None else low,
            parameters.integer("max_worker"),
            synchronous=parameters.flag("synchronous", False),
        )
        status = await self.to_its_end(work)
        return json_response({"status": status}, _status_code(status), request)

    async def _unregister(self, request: Request, model: str, version: str | None = None) -> HTTPResponse:
        status = await self.to_its_end(self._management.unregister(model, version))
        return json_response({"status": status}, 200, request)

    async def _set_default(self, request: Request, model: str, version: str) -> HTTPResponse:
        status = await self.to_its_end(self._management.set_default(model, version))
        return json_response({"status": status}, 200, request)

    # Workflows: TorchServe's last release took them, its successor refuses them for good (contract section 16). What clients ask
    # about them has an answer.

    async def _list_workflows(self, request: Request) -> HTTPResponse:
        return json_response({"workflows": []}, 200, request)

    async def _register_workflow(self, request: Request) -> HTTPResponse:
        raise BadRequest("Workflows are not supported: register the models and call them one after the other.")

    async def _workflow(self, request: Request, workflow: str) -> HTTPResponse:
        raise WorkflowNotFound(f"Workflow not found: {workflow}")


def _status_code(status: str) -> int:
    """Work that goes on in the background is 202; workers that were there and are not any more make it 206."""
    return {IN_BACKGROUND: 202, SCALING: 206}.get(status, 200)


def _runtime(word: str | None) -> str | None:
    if word is not None and word not in ("python", "python3", "LSP"):
        raise BadRequest(f"Invalid RuntimeType value: {word}")
    return word

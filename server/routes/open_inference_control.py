"""The supervisor's part of the Open Inference Protocol over REST: statistics, the repository, trace and log settings, memory that is shared
with clients (contract sections 1.1, 3.1, 3.6, 3.8 to 3.10).

Front ends pass such requests on (routes/forwarding.py), those of gRPC as well, and have decided who may ask; on the management
address they are answered to whoever has its key. Refusals are `{"error": sentence, "code": name of the gRPC status}`.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import orjson
from sanic import HTTPResponse
from sanic.request import Request

from ringserve.protocol.errors import BadRequest, Internal, RingServeError, Unsupported
from ringserve.server.app import App, json_bytes_response
from ringserve.server.control_plane.load_request import check_model_name, check_unload_request, read_load_request
from ringserve.server.control_plane.plane import ControlPlane
from ringserve.server.open_inference.errors import v2_status
from ringserve.server.shared_regions import CUDA, SYSTEM, SharedRegions

logger = logging.getLogger("ringserve.management")

METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH")
LARGE_BYTES = 65_536  # a body that is parsed beside the event loop
ToItsEnd = Callable[[Coroutine[Any, Any, Any]], Awaitable[Any]]
Answer = Callable[..., Coroutine[Any, Any, Any]]


class ControlRoutes:
    """Adds itself to the supervisor's app. `to_its_end` finishes what a client asked for that hangs up, and raises when nothing may be
    changed at the moment."""

    def __init__(
        self, app: App, plane: ControlPlane, to_its_end: ToItsEnd, regions: SharedRegions | None = None
    ) -> None:
        self._app = app
        self._plane = plane
        self._to_its_end = to_its_end
        self._add("/v2/repository/index", POST=self._index)
        self._add("/v2/repository/<repository:str>/index", POST=self._index)  # there is one, whatever it is called
        self._add("/v2/repository/models/<model:str>/load", POST=self._load)
        self._add("/v2/repository/models/<model:str>/unload", POST=self._unload)
        for word in ("load", "unload"):
            self._add(f"/v2/repository/<repository:str>/models/<model:str>/{word}", POST=self._no_repositories)
        self._add("/v2/models/stats", GET=self._statistics)
        self._add("/v2/models/<model:str>/stats", GET=self._statistics)
        self._add("/v2/models/<model:str>/versions/<version:str>/stats", GET=self._statistics)
        self._add("/v2/trace/setting", GET=self._traces, POST=self._set_traces)
        self._add("/v2/models/<model:str>/trace/setting", GET=self._traces, POST=self._set_traces)
        self._add("/v2/logging", GET=self._logs, POST=self._set_logs)
        for word, kind in (("system", SYSTEM), ("cuda", CUDA)):
            if regions is not None:
                self._add_regions(f"/v2/{word}sharedmemory", kind, regions)
        self._app.add_route(_not_found, "/v2/<rest:path>", methods=METHODS, name="v2-not-found")

    def _add(self, path: str, **answers: Answer) -> None:
        """A path with an answer for each method; any other method is refused as the protocol does."""

        async def answered(request: Request, **names: str) -> HTTPResponse:
            answer = answers.get(request.method)
            if answer is None:
                return json_bytes_response(orjson.dumps({"error": "Method Not Allowed"}), 405, request)
            try:
                said = await answer(request, **names)
            except RingServeError as error:
                return refusal(error, request)
            except Exception as error:
                logger.exception("a control request failed inside the server")
                return refusal(Internal(f"The server failed: {type(error).__name__}."), request)
            return json_bytes_response(b"" if said is None else orjson.dumps(said), 200, request)

        self._app.add_route(answered, path, methods=METHODS, name=f"v2{path}".replace("/", "-"), unquote=True)

    def _add_regions(self, path: str, kind: str, regions: SharedRegions) -> None:
        async def status(request: Request, region: str = "") -> Any:
            return regions.status(region, kind)

        async def register(request: Request, region: str) -> None:
            await self._to_its_end(regions.register(region, await read_json(request), kind))

        async def unregister(request: Request, region: str = "") -> None:
            await self._to_its_end(regions.unregister(region, kind))

        self._add(f"{path}/status", GET=status)
        self._add(f"{path}/region/<region:str>/status", GET=status)
        self._add(f"{path}/region/<region:str>/register", POST=register)
        self._add(f"{path}/unregister", POST=unregister)
        self._add(f"{path}/region/<region:str>/unregister", POST=unregister)

    # ---- the repository

    async def _index(self, request: Request, repository: str = "") -> Any:
        ready = (await read_members(request)).get("ready", False)
        if not isinstance(ready, bool):
            raise BadRequest("Invalid value for 'ready': expected a boolean")
        return await self._plane.models.index(ready_only=ready)

    async def _load(self, request: Request, model: str) -> None:
        check_model_name(model)
        body = await read_json(request)
        large = len(request.body) > LARGE_BYTES  # files, perhaps
        wanted = await asyncio.to_thread(read_load_request, body) if large else read_load_request(body)
        await self._to_its_end(self._plane.models.load(model, wanted))

    async def _unload(self, request: Request, model: str) -> None:
        check_unload_request(await read_json(request))
        await self._to_its_end(self._plane.models.unload(model))

    async def _no_repositories(self, request: Request, **names: str) -> None:
        raise Unsupported("'repository_name' specification is not supported")

    # ---- statistics

    async def _statistics(self, request: Request, model: str = "", version: str = "") -> Any:
        return await self._plane.statistics(model, version)

    # ---- settings

    async def _traces(self, request: Request, model: str = "") -> Any:
        return self._plane.tracing.described(model)

    async def _set_traces(self, request: Request, model: str = "") -> Any:
        return await self._plane.tracing.update(model, await read_settings(request))

    async def _logs(self, request: Request) -> Any:
        return dict(self._plane.logs.values)

    async def _set_logs(self, request: Request) -> Any:
        return self._plane.logs.update(await read_settings(request))


async def _not_found(request: Request, rest: str) -> HTTPResponse:
    return json_bytes_response(orjson.dumps({"error": "Not Found"}), 404, request)


async def read_json(request: Request) -> Any:
    """The body; None where there is none. Raises `BadRequest`."""
    body = request.body
    if not body.strip():
        return None
    try:
        return await asyncio.to_thread(orjson.loads, body) if len(body) > LARGE_BYTES else orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"failed to parse the request JSON buffer: {error}") from None


async def read_members(request: Request) -> dict[str, Any]:
    """Of the object that the body is; as Triton takes it, anything else has none. Raises `BadRequest`."""
    body = await read_json(request)
    return body if isinstance(body, dict) else {}


async def read_settings(request: Request) -> dict[str, Any]:
    """The same of a body that must be there. Raises `BadRequest`."""
    if not request.body.strip():
        raise BadRequest("failed to parse the request JSON buffer: The document is empty. at 0")
    return await read_members(request)


def refusal(error: RingServeError, request: Request) -> HTTPResponse:
    """As the protocol's clients read it."""
    status, code = v2_status(error)
    return json_bytes_response(orjson.dumps({"error": error.message, "code": code}), status, request)

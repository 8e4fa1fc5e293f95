"""`/token?type=management|inference`: a new key for a plane, asked for with the API's (contract section 4). The new one is in the key
file only; the answer is a newline, as TorchServe's."""

from collections.abc import Awaitable, Callable, Coroutine
from time import time
from typing import Any

from sanic import HTTPResponse
from sanic.request import Request

from ringserve.protocol.errors import InvalidKey
from ringserve.server.app import App, text_response
from ringserve.server.routes.documents import METHODS
from ringserve.server.security.keyring import Keyring
from ringserve.server.security.tokens import NOT_RENEWED, TOKEN_PATH, Gate, Plane

ToItsEnd = Callable[[Coroutine[Any, Any, None]], Awaitable[None]]


def add_token(app: App, keyring: Keyring, check_open: Callable[[], None], to_its_end: ToItsEnd) -> None:
    """The API's key is asked for here as well: over the private socket, nobody else does. `check_open` raises when nothing may be
    changed at the moment; `to_its_end` finishes what a client asked for that hangs up."""

    async def renew(request: Request) -> HTTPResponse:
        sent = request.headers.getone("authorization", "").encode("utf-8", "surrogateescape")
        if not Gate(keyring.credentials[Plane.API]).admits(sent, time()):
            raise InvalidKey(NOT_RENEWED)
        check_open()
        await to_its_end(keyring.renew(request.args.get("type", "")))
        return text_response(b"\n", "application/json", request)

    app.add_route(renew, TOKEN_PATH, methods=METHODS, name="token")

"""What every request passes before anything else looks at it: a token that opens its plane (security/tokens.py), and the answer
that browsers want before they send one (security/cors.py).

The inference listener asks the guard on Sanic's way; its short way asks the gate alone (connection.py)."""

from time import time

from sanic import HTTPResponse
from sanic.request import Request
from sanic.server.protocols.http_protocol import HttpProtocol

from ringserve.protocol.errors import InvalidKey
from ringserve.server.app import App, empty_response
from ringserve.server.control import Keys
from ringserve.server.open_inference.control_paths import is_control, needs_management
from ringserve.server.security.cors import is_preflight
from ringserve.server.security.tokens import REFUSED, Gate, Gates, Plane


class Guard:
    """Of one listener, which is `own`'s; with `both` it takes what is management's as well, with `metrics` those too. Without `tokens`
    it lets everybody in, with them nobody until it has been given keys."""

    def __init__(self, own: Plane, *, tokens: bool, cors: bool, both: bool = False, metrics: bool = False) -> None:
        self._own = own
        self._gates = Gates(own, both=both, metrics=metrics) if tokens else None
        self._cors = cors

    @property
    def needed(self) -> bool:
        """Whether there is anything that it does."""
        return self._cors or self._gates is not None

    @property
    def gate(self) -> Gate | None:
        """The listener's own; None where everybody is let in."""
        return None if self._gates is None else self._gates.of(self._own)

    def set(self, keys: Keys) -> None:
        """From now on these open, and nothing else does."""
        assert self._gates is not None
        self._gates.set({Plane.INFERENCE: keys.inference, Plane.MANAGEMENT: keys.management, Plane.API: keys.api})

    def answers(self, request: Request) -> bool:
        """Whether this is a browser's question that has its answer in the headers of every response."""
        return self._cors and is_preflight(request.method, request.headers)

    def refusal(self, request: Request, *, managements: bool = False) -> InvalidKey | None:
        """Why the request is not let in, None when it is. `managements`: on a listener of both, whether it is passed on."""
        if self._gates is None:
            return None
        if is_control(request.path) and self._own is Plane.INFERENCE:
            return self.control_refusal(request.method, request.path, request.headers.getone("authorization", ""))
        sent = request.headers.getone("authorization", "").encode("utf-8", "surrogateescape")
        try:
            self._gates.check(request.path, sent, time(), managements=managements)
        except InvalidKey as error:
            return error
        return None

    def control_refusal(self, method: str, path: str, authorization: str) -> InvalidKey | None:
        """The same of a request about the server itself, however it came to the front end: what changes the server needs the key of
        management, what asks about it that of inference."""
        if self._gates is None:
            return None
        plane = Plane.MANAGEMENT if needs_management(method, path) else Plane.INFERENCE
        sent = authorization.encode("utf-8", "surrogateescape")
        return None if self._gates.of(plane).admits(sent, time()) else InvalidKey(REFUSED)


class GuardedHttp(HttpProtocol):
    """Connections of a listener whose app has a guard, `app.ctx.guard`."""

    __slots__ = ()

    def _setup(self) -> None:
        super()._setup()  # type: ignore[no-untyped-call]
        guard: Guard = self.app.ctx.guard
        if guard.needed:
            self.request_handler = self._guarded

    async def _guarded(self, request: Request) -> None:
        app: App = self.app
        guard: Guard = app.ctx.guard
        error = None
        if guard.answers(request):
            await send(request, empty_response(request))
        elif (error := guard.refusal(request)) is not None:
            await app.handle_exception(request, error)
        else:
            await app.handle_request(request)


async def send(request: Request, response: HTTPResponse) -> None:
    """Answer without a route."""
    sent = await request.respond(response)
    assert sent is not None
    await sent.send(end_stream=True)

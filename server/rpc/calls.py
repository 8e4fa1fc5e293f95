"""What all calls of a gRPC front end have in common: who is let in, what becomes of errors, counters and the access log, and the end
of calls that would never end when the server goes.

A servicer's methods are wrapped when they are added, so that a call passes nothing but its own wrapper. `Services` stands for the server
towards the functions that generated modules have for adding a servicer.
"""

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from inspect import isasyncgenfunction
from time import monotonic, time
from types import MappingProxyType
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from ringserve.protocol.errors import BadRequest, DeadlineExceeded, Internal, InvalidKey, RingServeError, ShuttingDown
from ringserve.server.logs.access import AccessLog
from ringserve.server.metrics.meter import Responses
from ringserve.server.rpc.statuses import StatusOf, http_class_of
from ringserve.server.security.tokens import REFUSED, Gate

logger = logging.getLogger("ringserve.grpc")

METHOD = "gRPC"  # as which TorchServe's access log knows a call
STOPPING = "GRPC server is shutting down and has stopped accepting new requests."
OK, CANCELLED, UNKNOWN = 0, 1, 2
TIMEOUT_MS_MAX = 2**31 - 1

Context = Any  # grpc.aio.ServicerContext, whose types know no generated message
Behaviour = Callable[..., Any]
Changes = Callable[[Any], bool]  # whether what a method is asked changes the server


class Door:
    """Who is let in by one listener. Without a `gate`: everybody."""

    def __init__(self, *, tokens: bool) -> None:
        self.gate: Gate | None = Gate() if tokens else None

    def check(self, context: Context, request: Any) -> None:
        """Raises `InvalidKey`."""
        if self.gate is None:
            return
        shown = metadata_of(context, "authorization")
        if not self.gate.admits(shown.encode("utf-8", "surrogateescape"), time()):
            raise InvalidKey(REFUSED)


class _EitherDoor(Door):
    """Asks that of management about requests that change the server, the listener's `own` about others."""

    def __init__(self, changes: Changes, own: Door, management: Door) -> None:
        super().__init__(tokens=own.gate is not None)
        self._changes, self._own, self._management = changes, own, management

    def check(self, context: Context, request: Any) -> None:
        changes = type(request) is not Unreadable and self._changes(request)
        door = self._management if changes else self._own
        door.check(context, request)


class Calls:
    """Those of one front end. `responses` is where they are counted, if they are."""

    def __init__(self, access: AccessLog | None, write_timeout_s: int = 60) -> None:
        self.write_timeout_s = write_timeout_s
        self.responses: Responses | None = None
        self.running = 0
        self.pause: asyncio.Event | None = None  # calls that come now wait for it
        self._access = access
        self._open: set[Requests] = set()

    def end(self, path: str, context: Context, code: int, arrived_s: float) -> None:
        """Every call that has begun ends once."""
        self.running -= 1
        if self.responses is not None and code != CANCELLED:  # nobody is there to have it
            self.responses.count(http_class_of(code))
        if self._access is not None:
            self._access.add(peer_of(context.peer()), METHOD, path, code, monotonic() - arrived_s)

    def hold(self) -> None:
        """Let calls that come wait, until `release`."""
        self.pause = asyncio.Event()

    def release(self) -> None:
        """Nothing more comes: the calls that waited go on, and streams of requests end with what has come."""
        if self.pause is not None:
            self.pause.set()
        for requests in list(self._open):
            requests.cut()

    def opened(self, requests: "Requests") -> None:
        self._open.add(requests)
        if self.pause is not None:
            requests.cut()

    def closed(self, requests: "Requests") -> None:
        self._open.discard(requests)


class Unreadable:
    """What came instead of a message."""

    def __init__(self, error: Exception) -> None:
        self.refusal = error if isinstance(error, RingServeError) else BadRequest("The message cannot be parsed.")


def readable(deserialize: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """An error in `deserialize` itself would be logged as ours and be of no meaning to the client."""

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except (DecodeError, ValueError, RingServeError) as error:
            return Unreadable(error)

    return read


class Requests:
    """The requests of a stream, until the client has sent the last one, or the server stops. Read by one task."""

    def __init__(self, requests: AsyncIterable[Any]) -> None:
        self.was_cut = False
        self._requests = aiter(requests)
        self._reader: asyncio.Task[Any] | None = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self.was_cut:
            raise StopAsyncIteration
        self._reader = task = asyncio.current_task()
        try:
            request = await anext(self._requests)
        except asyncio.CancelledError:
            if not self.was_cut or task is None or task.uncancel():
                raise
            raise StopAsyncIteration from None
        finally:
            self._reader = None
        if type(request) is Unreadable:
            raise request.refusal
        return request

    def cut(self) -> None:
        """None follows."""
        if not self.was_cut:
            self.was_cut = True
            if self._reader is not None:
                self._reader.cancel()


def always(request: Any) -> bool:
    """Of a method that changes the server whatever it is asked."""
    return True


class Services:
    """Collects the services of one listener, whose `door` they have; that of `management` is for what changes the server."""

    def __init__(self, calls: Calls, door: Door, management: Door | None = None) -> None:
        self.names: list[str] = []
        self.handlers: dict[str, Mapping[str, grpc.RpcMethodHandler[Any, Any]]] = {}
        self._calls = calls
        self._own, self._management = door, management or door
        self._door: Door | None = door
        self._changes: Mapping[str, Changes] = {}
        self._status_of: StatusOf | None = None

    def add(
        self,
        add_to_server: Callable[[Any, Any], None],
        servicer: object,
        status_of: StatusOf,
        *,
        guarded: bool = True,
        changes: Mapping[str, Changes] = MappingProxyType({}),
    ) -> None:
        """`add_to_server` is generated. What a method raises of ours becomes what `status_of` says; without a guard, nobody needs
        a key. A method named in `changes` (none of a stream of requests) needs that of management for requests of which its
        function is true."""
        self._door = self._own if guarded else None
        self._status_of, self._changes = status_of, changes
        add_to_server(servicer, self)

    # What a generated function calls: the first of these would be asked for methods by name, one service after another.

    def add_generic_rpc_handlers(self, handlers: Sequence[object]) -> None:
        pass

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.names.append(service)
        self.handlers[service] = {
            name: self._wrapped(f"/{service}/{name}", handler, self._changes.get(name))
            for name, handler in handlers.items()
        }

    def _wrapped(self, path: str, handler: Any, changes: Changes | None) -> "grpc.RpcMethodHandler[Any, Any]":
        assert self._status_of is not None
        door = self._door if changes is None else _EitherDoor(changes, self._own, self._management)
        call = _Call(path, self._calls, door, self._status_of)
        codec = {
            "request_deserializer": readable(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(call.unary(handler.unary_unary), **codec)
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(call.stream(handler.unary_stream), **codec)
        assert handler.stream_stream is not None, f"{path}: no service has a method of this kind"
        return grpc.stream_stream_rpc_method_handler(call.stream(handler.stream_stream, streamed=True), **codec)


class _Call:
    """One method: makes handlers of what the servicer has."""

    def __init__(self, path: str, calls: Calls, door: Door | None, status_of: StatusOf) -> None:
        self._path = path
        self._calls = calls
        self._door = door
        self._status_of = status_of

    def unary(self, behaviour: Behaviour) -> Callable[[Any, Context], Awaitable[Any]]:
        calls, door, path = self._calls, self._door, self._path

        async def call(request: Any, context: Context) -> Any:
            code, arrived_s = UNKNOWN, monotonic()
            calls.running += 1
            try:
                if calls.pause is not None:
                    await calls.pause.wait()
                if door is not None and door.gate is not None:
                    door.check(context, request)
                if type(request) is Unreadable:
                    raise request.refusal
                reply = await behaviour(request, context)
                code = OK
                return reply
            except BaseException as error:
                code, refusal = self._outcome(error, context)
                if refusal is not None:
                    await context.abort(*refusal, retry_after(error))
                raise
            finally:
                calls.end(path, context, code, arrived_s)

        return call

    def stream(self, behaviour: Behaviour, *, streamed: bool = False) -> Callable[[Any, Context], Awaitable[None]]:
        """`behaviour` is an async generator of replies, or a coroutine that writes them itself."""
        calls, door, path = self._calls, self._door, self._path
        generates = isasyncgenfunction(behaviour)

        async def call(request: Any, context: Context) -> None:
            code, arrived_s = UNKNOWN, monotonic()
            requests = Requests(request) if streamed else None
            calls.running += 1
            try:
                if calls.pause is not None:
                    await calls.pause.wait()
                if door is not None and door.gate is not None:
                    door.check(context, request)
                if requests is not None:
                    calls.opened(requests)
                elif type(request) is Unreadable:
                    raise request.refusal
                said = request if requests is None else requests
                if generates:
                    async with aclosing(behaviour(said, context)) as replies:
                        async for reply in replies:
                            await write_within(calls.write_timeout_s, context, reply)
                else:
                    await behaviour(said, context)
                if requests is not None and requests.was_cut:
                    raise ShuttingDown(STOPPING)
                code = OK
            except BaseException as error:
                code, refusal = self._outcome(error, context)
                if refusal is not None:
                    await context.abort(*refusal, retry_after(error))
                raise
            finally:
                if requests is not None:
                    calls.closed(requests)
                calls.end(path, context, code, arrived_s)

        return call

    def _outcome(self, error: BaseException, context: Context) -> tuple[int, tuple[grpc.StatusCode, str] | None]:
        """The code of a call that ended with an error, and what to tell a client that has not been told."""
        while isinstance(error, BaseExceptionGroup):  # of a method with several tasks: the first that failed
            error = error.exceptions[0]
        if isinstance(error, grpc.aio.AbortError):
            said = context.code()
            return (said if isinstance(said, int) else said.value[0]), None
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            return CANCELLED, None
        if not isinstance(error, RingServeError):
            logger.error("a call of %s failed inside the server", self._path, exc_info=error)
            error = Internal(f"{type(error).__name__}: {error}")
        code, details = self._status_of(error)
        return code.value[0], (code, details)


async def write_within(timeout_s: float, context: Context, message: Any) -> None:
    """Send one message of a stream. Raises `DeadlineExceeded` where the client takes nothing for so long: what is kept for it, a part of
    its model's worker, must not stay away from others."""
    try:
        async with asyncio.timeout(timeout_s):
            await context.write(message)
    except TimeoutError:
        raise DeadlineExceeded(f"The client has read nothing for {timeout_s} s.") from None


def retry_after(error: BaseException) -> tuple[tuple[str, str], ...]:
    """In the trailing metadata: when it is worth trying again, in seconds, where somebody knows."""
    after_s = error.retry_after_s if isinstance(error, RingServeError) else None
    return () if after_s is None else (("retry-after", str(after_s)),)


def metadata_of(context: Context, name: str) -> str:
    """What the client has sent under this name, "" where it has not."""
    for key, value in context.invocation_metadata() or ():
        if key == name:
            return value if isinstance(value, str) else value.decode("latin-1")
    return ""


def timeout_ms(context: Context) -> int:
    """How long the client still waits; 0 where it does not say."""
    left_s: float | None = context.time_remaining()
    if left_s is None:
        return 0
    return max(1, min(int(left_s * 1000), TIMEOUT_MS_MAX))


def peer_of(text: str) -> tuple[str, str] | None:
    """`ipv4:1.2.3.4:5` or `ipv6:%5B::1%5D:5` as a socket has it; None for what has no name."""
    family, _, rest = text.partition(":")
    host, _, port = rest.rpartition(":")
    if family not in ("ipv4", "ipv6") or not host:
        return None
    return host.removeprefix("%5B").removesuffix("%5D").strip("[]"), port

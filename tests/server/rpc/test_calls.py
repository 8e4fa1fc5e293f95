"""What all calls of a gRPC front end have in common, on servers in this process: doors, statuses, counters, and the end."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2

from ringserve.protocol.errors import DeadlineExceeded, Internal, NoWorker, QueueFull, RingServeError
from ringserve.server.control import Credential
from ringserve.server.logs.access import AccessLog
from ringserve.server.metrics.meter import Responses
from ringserve.server.rpc.calls import Calls, Door, Requests, Services, peer_of, timeout_ms
from ringserve.server.rpc.statuses import torchserve_status
from ringserve.server.security.tokens import REFUSED, Gate

WAIT_S_MAX = 30.0
Empty = empty_pb2.Empty
KEY = [("authorization", "Bearer the-key-of-inference")]
OTHER_KEY = [("authorization", "Bearer the-key-of-management")]


class Servicer:
    """Its methods raise `error`, or wait for `gate`."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = 0

    async def one(self, request: Any, context: Any) -> Any:
        self.begun += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Empty()

    async def many(self, request: Any, context: Any) -> AsyncGenerator[Any]:
        yield Empty()
        if self.error is not None:
            raise self.error

    async def both(self, requests: Any, context: Any) -> AsyncGenerator[Any]:
        async for _ in requests:
            yield Empty()


def read(data: bytes) -> Any:
    if data == b"bad":
        raise ValueError("no message")
    return Empty.FromString(data)


def add(servicer: Servicer, server: Any) -> None:
    codec: dict[str, Any] = {"request_deserializer": read, "response_serializer": Empty.SerializeToString}
    handlers = {
        "One": grpc.unary_unary_rpc_method_handler(servicer.one, **codec),
        "Change": grpc.unary_unary_rpc_method_handler(servicer.one, **codec),
        "Many": grpc.unary_stream_rpc_method_handler(servicer.many, **codec),
        "Both": grpc.stream_stream_rpc_method_handler(servicer.both, **codec),
    }
    server.add_registered_method_handlers("Test", handlers)


class Rig:
    def __init__(self, servicer: Servicer, calls: Calls, channel: Any, lines: list[bytes]) -> None:
        self.servicer, self.calls, self.channel, self.lines = servicer, calls, channel, lines

    async def ask(self, method: str, metadata: Any = (), data: bytes = b"") -> str:
        """How it ends: "OK", or the code and the details."""
        stub = self.channel.unary_unary(f"/Test/{method}")
        if method == "Many":
            stub = self.channel.unary_stream(f"/Test/{method}")
        try:
            call = stub(data, metadata=metadata, timeout=WAIT_S_MAX)
            if method == "Many":
                async for _ in call:
                    pass
            else:
                await call
        except grpc.aio.AioRpcError as error:
            return f"{error.code().name} {error.details()}"
        return "OK"


@asynccontextmanager
async def serving(*, tokens: bool = False) -> AsyncIterator[Rig]:
    lines: list[bytes] = []
    access = AccessLog(SimpleNamespace(put=lambda data, count: lines.append(data)))  # type: ignore[arg-type]
    calls, servicer = Calls(access), Servicer()
    calls.responses = Responses()
    own, management = Door(tokens=tokens), Door(tokens=tokens)
    services = Services(calls, own, management)
    services.add(add, servicer, torchserve_status, changes={"Change": lambda request: True})
    if tokens:
        own.gate = Gate((Credential("the-key-of-inference", float("inf")),))
        management.gate = Gate((Credential("the-key-of-management", float("inf")),))
    server: Any = grpc.aio.server()
    for name, handlers in services.handlers.items():
        server.add_registered_method_handlers(name, handlers)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Rig(servicer, calls, channel, lines)
    await server.stop(0)
    access.close()


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (QueueFull("full"), "UNAVAILABLE full\nServiceUnavailableException.()"),
        (NoWorker("none", status=409), "ABORTED none\nServiceUnavailableException.()"),
        (Internal("x", status=507), "INTERNAL x\norg.pytorch.serve.http.InternalServerException"),
    ],
)
@pytest.mark.parametrize("method", ["One", "Many"])
def test_an_error_of_ours_is_its_status(error: RingServeError, said: str, method: str) -> None:
    async def scenario() -> None:
        async with serving() as rig:
            rig.servicer.error = error
            assert await rig.ask(method) == said

    run(scenario)


def test_any_other_error_is_logged_and_nothing_of_it_kills_the_server(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving() as rig:
            rig.servicer.error = KeyError("own")
            assert await rig.ask("One") == "INTERNAL KeyError: 'own'\norg.pytorch.serve.http.InternalServerException"
            rig.servicer.error = None
            assert await rig.ask("One") == "OK"

    run(scenario)
    assert "failed inside the server" in caplog.text


@pytest.mark.parametrize("method", ["One", "Many"])
def test_what_is_no_message_is_the_clients_mistake(method: str, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with serving() as rig:
            said = "INVALID_ARGUMENT The message cannot be parsed.\norg.pytorch.serve.http.BadRequestException"
            assert await rig.ask(method, data=b"bad") == said
            assert rig.servicer.begun == 0

    run(scenario)
    assert caplog.text == ""


def test_a_method_that_changes_the_server_needs_the_other_key() -> None:
    async def scenario() -> None:
        async with serving(tokens=True) as rig:
            for method, key, other in (("One", KEY, OTHER_KEY), ("Many", KEY, OTHER_KEY), ("Change", OTHER_KEY, KEY)):
                assert await rig.ask(method, key) == "OK"
                for wrong in (other, (), [("authorization", "the-key-of-inference")]):
                    assert await rig.ask(method, wrong) == f"PERMISSION_DENIED {REFUSED}"
            assert rig.servicer.begun == 2

    run(scenario)


def test_each_call_is_counted_by_how_it_ended_and_is_a_line_of_the_log() -> None:
    async def scenario() -> None:
        async with serving() as rig:
            await rig.ask("One")
            rig.servicer.error = QueueFull("full")
            await rig.ask("One")
            await rig.ask("Many", data=b"bad")
            assert rig.calls.responses is not None
            assert rig.calls.responses.counts == [1, 1, 1]
            assert rig.calls.running == 0
            rig.calls._access.flush()  # type: ignore[union-attr]
            codes = [line.split()[-2] for line in b"".join(rig.lines).splitlines()]
            assert codes == [b"0", b"14", b"3"]

    run(scenario)


def test_a_call_that_comes_while_the_server_stops_is_held_and_then_answered() -> None:
    async def scenario() -> None:
        async with serving() as rig:
            rig.calls.hold()
            asked = asyncio.create_task(rig.ask("One"))
            while not rig.calls.running:
                await asyncio.sleep(0.001)
            assert rig.servicer.begun == 0
            rig.calls.release()
            assert await asked == "OK"

    run(scenario)


def test_a_stream_of_requests_ends_when_the_server_stops_with_what_has_come_answered() -> None:
    async def scenario() -> None:
        async with serving() as rig:
            call = rig.channel.stream_stream("/Test/Both")(timeout=WAIT_S_MAX)
            end: Any = vars(grpc.aio)["EOF"]
            await call.write(b"")
            assert await call.read() == b""
            rig.calls.hold()
            rig.calls.release()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                while await call.read() != end:
                    pass
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert (caught.value.details() or "").startswith("GRPC server is shutting down")

    run(scenario)


def test_a_client_that_takes_nothing_is_cut_off_and_what_it_asked_for_is_let_go() -> None:
    """What its model has for it must not stay away from others."""
    ended = []

    class Endless(Servicer):
        async def many(self, request: Any, context: Any) -> AsyncGenerator[Any]:
            try:
                while True:
                    yield Empty()
            finally:
                ended.append("let go")

    class Unread(SimpleNamespace):
        async def write(self, message: Any) -> None:
            await asyncio.Event().wait()

        async def abort(self, code: grpc.StatusCode, details: str, metadata: object) -> None:
            ended.append(f"{code.name}: {details}")

    async def scenario() -> None:
        services = Services(Calls(None, 0), Door(tokens=False))
        services.add(add, Endless(), torchserve_status)
        (handlers,) = services.handlers.values()
        with pytest.raises(DeadlineExceeded):
            await handlers["Many"].unary_stream(Empty(), Unread(peer=lambda: "ipv4:127.0.0.1:9"))  # type: ignore[misc, arg-type]

    asyncio.run(asyncio.wait_for(scenario(), WAIT_S_MAX))
    assert ended[0] == "let go"
    assert ended[1].startswith("DEADLINE_EXCEEDED: The client has read nothing for 0 s.")


def test_a_task_that_is_cancelled_while_it_reads_requests_is_not_taken_for_the_end_of_them() -> None:
    async def scenario() -> None:
        async def never() -> AsyncGenerator[Any]:
            await asyncio.Event().wait()
            yield None

        requests = Requests(never())
        reader = asyncio.ensure_future(anext(requests))
        await asyncio.sleep(0)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader

    run(scenario)


@pytest.mark.parametrize(
    ("text", "peer"),
    [
        ("ipv4:127.0.0.1:80", ("127.0.0.1", "80")),
        ("ipv6:%5B::1%5D:80", ("::1", "80")),
        ("ipv6:[fe80::1]:80", ("fe80::1", "80")),
        ("unix:/tmp/x", None),
        ("unknown", None),
    ],
)
def test_a_peer_is_what_a_socket_would_call_it(text: str, peer: object) -> None:
    assert peer_of(text) == peer


@pytest.mark.parametrize(("left_s", "ms"), [(None, 0), (1.5, 1500), (0.0001, 1), (-1.0, 1), (1e12, 2**31 - 1)])
def test_the_time_a_client_has_left_is_whole_milliseconds_and_never_none_of_them(left_s: float | None, ms: int) -> None:
    assert timeout_ms(SimpleNamespace(time_remaining=lambda: left_s)) == ms

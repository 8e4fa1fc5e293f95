"""Messages between processes: every type arrives as it was sent, with its descriptors, and an ended process is noticed."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from typing import get_args

import msgspec
import pytest

from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server import channel
from ringserve.server.channel import FDS_MAX, PACKET_BYTES_MAX, Channel, ControlClosed, channel_pair
from ringserve.server.control import (
    Answered,
    Applied,
    AskCounters,
    AskDescription,
    AskQueues,
    AskSequence,
    AttachWorker,
    AtWork,
    BuildEnvironment,
    CloseLane,
    Counted,
    Credential,
    Description,
    Detached,
    DetachWorker,
    Drain,
    EndSequence,
    FrontEndMessage,
    FrontEndReady,
    GrantSequence,
    Keys,
    LaneClosed,
    LinkLane,
    Load,
    Loaded,
    LoadFailed,
    LoadModel,
    ModelRoute,
    OpenLane,
    Queues,
    RefuseSequence,
    ReleaseSequence,
    RevokeSequence,
    Routes,
    SequenceEnded,
    SequenceLeft,
    SequenceRules,
    SequencesSaid,
    SequencesTold,
    ServeHttp,
    ShareCounters,
    ShareQueue,
    StopWorker,
    ToFrontEnd,
    ToWorker,
    UseCertificate,
    VersionRoute,
    WorkerGone,
    WorkerMessage,
    WorkerStuck,
    Worn,
)
from ringserve.server.messages import Message
from ringserve.server.metrics.listing import Emission, Emitted, Series
from ringserve.server.region_messages import DropRegions, RegionRefused, ShareCudaRegion, ShareRegion
from ringserve.server.rpc.messages import GrpcListener, ServeGrpc
from ringserve.server.trace_messages import SetTraces, Trace, Traced
from ringserve.shm.layout import LaneShape, Tensor

SIGNATURE = Signature((TensorSpec("x", "float32", (2, 3)),), (TensorSpec("y", "int64", ()),))
SHAPE = LaneShape(4, 8, (Tensor("x", "float32", (2, 3), 24),), (Tensor("y", "int64", (), 8),), 10, 20)
ROUTE = VersionRoute(1, "m", "1.0", True, 8, 100, False, 100, 120, 2000, 500)
STATEFUL = msgspec.structs.replace(ROUTE, sequences=SequenceRules(500, 3), tickets=True)
MANIFEST: dict[str, object] = {"model": {"modelName": "m", "list": [1, 2.5, None, True]}}

# What may arrive where, and one example of each.
MESSAGES: list[tuple[object, Message | Emitted]] = [
    (ToFrontEnd, ServeHttp(6_553_500, "0.1.0", 60, 120, 60, 2)),
    (BuildEnvironment, BuildEnvironment("/env", ("/site",), "/model/requirements.txt", "/model", False)),
    (
        ToFrontEnd,
        ServeGrpc(GrpcListener("::1", 7070, 5, 6), GrpcListener("127.0.0.1", 7071), 99, "0.1.0", 2, "/s", tls=True),
    ),
    (ToFrontEnd, Routes(3, True, {"m": ModelRoute("1.0", {"1.0": ROUTE})}, False, (ROUTE,))),
    (ToFrontEnd, Keys(4, (Credential("a-key-of-mine", float("inf")),), (Credential("another", 5.5),))),
    (ToFrontEnd, UseCertificate()),
    (ToFrontEnd, ShareQueue(1, 0)),
    (ToFrontEnd, ShareCounters(1, 0)),
    (ToFrontEnd, OpenLane(1, SHAPE, SIGNATURE)),
    (ToFrontEnd, AttachWorker(1, "9000")),
    (ToFrontEnd, DetachWorker(1, "9000")),
    (ToFrontEnd, WorkerGone(1, "9000", 507, "It was killed.")),
    (ToFrontEnd, CloseLane(1)),
    (ToFrontEnd, Routes(3, True, {}, beside=(STATEFUL,))),
    (
        ToFrontEnd,
        SequencesTold(
            (
                GrantSequence(1, "s", 4, 2, "9000", 1),
                RefuseSequence(1, "t", 5, "no"),
                RevokeSequence(1, 2, "ended"),
                SequenceEnded(1, 9),
            )
        ),
    ),
    (ToFrontEnd, SetTraces(9, 0, {"m": 10})),
    (FrontEndMessage, Traced((Trace("m", "1.0", "r", (1, 2, 3, 4, 5, 6, 7)),), 3)),
    (ToFrontEnd, AskQueues(7, (1, 2))),
    (ToFrontEnd, AskCounters(8)),
    (ToFrontEnd, Drain(30.5, 0.5, True, True)),
    (FrontEndMessage, FrontEndReady()),
    (ToFrontEnd, ShareRegion(4, "inputs", 0, 2**40)),
    (ToFrontEnd, ShareCudaRegion(6, "card", bytes(64), 1, 64)),
    (FrontEndMessage, RegionRefused(6, "no driver")),
    (ToFrontEnd, DropRegions(5, ("inputs", "outputs"))),
    (FrontEndMessage, Applied(3)),
    (FrontEndMessage, Detached(1, "9000")),
    (FrontEndMessage, LaneClosed(1)),
    (
        FrontEndMessage,
        SequencesSaid((AskSequence(1, "s", 4), ReleaseSequence(1, 2, 4), EndSequence(1, 9, 2), SequenceLeft(1, 2))),
    ),
    (FrontEndMessage, WorkerStuck(1, "9000")),
    (FrontEndMessage, Queues(7, {1: 0, 2: 99}, {2: Load(99, 5, 3, 1_000_000)})),
    (FrontEndMessage, Counted(8)),
    (ToWorker, LoadModel("m", "1", "/d", "python", "h:f", MANIFEST, {}, SIGNATURE, 8, 99, True, False, "0.1.0")),
    (
        ToWorker,
        LoadModel("m", "1", "/d", "handler", "h", {}, {}, SIGNATURE, 8, 99, True, False, "0.1.0", envelope="kserve"),
    ),
    (ToWorker, LinkLane(SHAPE, Signature())),
    (ToWorker, AskDescription(3)),
    (ToWorker, StopWorker()),
    (WorkerMessage, Loaded(SIGNATURE)),
    (WorkerMessage, AtWork()),
    (WorkerMessage, Answered()),
    (
        WorkerMessage,
        Emitted((Series("Calls", "counter", "Count", (("Level", "Model"),), 2.5),), (Emission(0, 2, 17, "r"),)),
    ),
    (WorkerMessage, Worn()),
    (WorkerMessage, Description(3, b"{}")),
    (WorkerMessage, LoadFailed("no such file", False)),
]
Pair = tuple[Channel, Channel]


@pytest.fixture
def pair() -> Iterator[Pair]:
    """The supervisor's end, and the front end's."""
    mine, theirs = channel_pair()
    ends = Channel(mine, FrontEndMessage), Channel(theirs, ToFrontEnd)
    yield ends
    for end in ends:
        end.close()


def received(channel: Channel) -> tuple[object, list[int]]:
    found = channel.receive(wait=False)
    assert found is not None
    return found


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def test_there_is_an_example_of_every_message() -> None:
    unions = get_args(ToFrontEnd | FrontEndMessage | ToWorker | WorkerMessage)
    assert {type(example) for _, example in MESSAGES} == {*unions, BuildEnvironment}


@pytest.mark.parametrize(("receives", "message"), MESSAGES, ids=lambda value: type(value).__name__)
def test_every_message_arrives_as_it_was_sent(receives: object, message: Message) -> None:
    mine, theirs = channel_pair()
    sender, receiver = Channel(mine, FrontEndMessage), Channel(theirs, receives)
    sender.send(message)
    assert received(receiver) == (message, [])
    sender.close()
    receiver.close()


@pytest.mark.parametrize("count", [1, 5, FDS_MAX - 1])
def test_descriptors_arrive_in_order_open_and_not_inheritable(pair: Pair, count: int) -> None:
    sender, receiver = pair
    pipes = [os.pipe() for _ in range(count)]
    sender.send(AttachWorker(1, "9000"), [ring for _, ring in pipes])
    _, fds = received(receiver)
    assert len(fds) == count
    for number, (fd, (listen, ring)) in enumerate(zip(fds, pipes, strict=True)):
        assert not os.get_inheritable(fd)
        os.write(fd, bytes([number]))
        assert os.read(listen, 9) == bytes([number])
        for each in (fd, listen, ring):
            os.close(each)


def test_messages_keep_their_order(pair: Pair) -> None:
    sender, receiver = pair
    for key in range(50):
        sender.send(CloseLane(key))
    assert [received(receiver)[0] for _ in range(50)] == [CloseLane(key) for key in range(50)]
    assert receiver.receive(wait=False) is None


def test_a_message_too_large_for_a_packet_travels_in_a_memory_file(pair: Pair) -> None:
    """Its own descriptors arrive as if nothing had happened."""
    sender, receiver = pair
    models = {f"model-{n}": ModelRoute("1.0", {"1.0": ROUTE}) for n in range(5000)}
    routes = Routes(1, True, models)
    assert len(msgspec.msgpack.encode(routes)) > 2 * PACKET_BYTES_MAX
    listen, ring = os.pipe()
    before = open_fds()
    sender.send(routes, [ring])
    message, (fd,) = received(receiver)
    assert message == routes
    os.write(fd, b"x")
    assert os.read(listen, 9) == b"x"
    os.close(fd)
    assert open_fds() == before
    os.close(listen)
    os.close(ring)


@pytest.mark.parametrize("over", [-1, 0, 1])
def test_a_message_of_about_a_packet_arrives_whole(pair: Pair, over: int) -> None:
    sender, receiver = pair
    empty = len(msgspec.msgpack.encode(WorkerGone(1, "9000", 500, "x" * 65_000))) - 65_000
    message = WorkerGone(1, "9000", 500, "x" * (PACKET_BYTES_MAX - empty + over))
    sender.send(message)
    assert received(receiver) == (message, [])


def test_nothing_to_read_is_none(pair: Pair) -> None:
    assert pair[0].receive(wait=False) is None


def test_a_closed_peer_is_an_exception_on_both_ways(pair: Pair) -> None:
    sender, receiver = pair
    receiver.close()
    with pytest.raises(ControlClosed):
        sender.send(CloseLane(1))
    for wait in (True, False):
        with pytest.raises(ControlClosed):
            sender.receive(wait=wait)


def test_a_large_message_to_a_closed_peer_leaves_no_descriptor(pair: Pair) -> None:
    sender, receiver = pair
    receiver.close()
    before = open_fds()
    with pytest.raises(ControlClosed):
        sender.send(WorkerGone(1, "9000", 500, "x" * 2 * PACKET_BYTES_MAX))
    assert open_fds() == before


def test_what_a_process_said_before_it_died_is_still_heard(pair: Pair) -> None:
    """Even when it died with unread messages of ours in its queue, which resets the connection."""
    supervisor, front_end = pair
    supervisor.send(CloseLane(1))
    front_end.send(Applied(1))
    front_end.send(LaneClosed(2))
    front_end.close()
    assert received(supervisor) == (Applied(1), [])
    assert received(supervisor) == (LaneClosed(2), [])
    with pytest.raises(ControlClosed):
        supervisor.receive(wait=False)


def test_a_message_for_somebody_else_is_refused_and_its_descriptors_closed(pair: Pair) -> None:
    sender, receiver = pair
    listen, ring = os.pipe()
    before = open_fds()
    sender.send(Loaded(SIGNATURE), [ring])
    with pytest.raises(msgspec.MsgspecError):
        receiver.receive(wait=False)
    assert open_fds() == before
    os.close(listen)
    os.close(ring)


class Watched:
    """What a watching channel heard, and how often it was told that the other end is gone."""

    def __init__(self, channel: Channel) -> None:
        self.heard: list[object] = []
        self.closed = 0
        self._channel = channel

    def _on_closed(self) -> None:
        self.closed += 1

    def run(self, act: Callable[[], None]) -> None:
        """Watch, act, and let the loop go round until it has seen everything."""

        async def watch() -> None:
            raised: list[object] = []
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: raised.append(context))
            self._channel.watch(lambda message, fds: self.heard.append(message), self._on_closed)
            act()
            for _ in range(5):
                await asyncio.sleep(0)
            self._channel.close()
            assert raised == []

        asyncio.run(watch())


def test_a_watcher_hears_everything_and_then_the_end_once(pair: Pair) -> None:
    watched = Watched(pair[0])

    def speak() -> None:
        for epoch in range(3):
            pair[1].send(Applied(epoch))
        pair[1].close()

    watched.run(speak)
    assert watched.heard == [Applied(0), Applied(1), Applied(2)]
    assert watched.closed == 1


@pytest.mark.parametrize(
    "garbage",
    [b"\xc1", b"\x00", b"not msgpack at all", b"\xff" * 1000, b"\x92\xa5Drain", b"\x93\xa8Detached\x01\xa1\xff"],
)
def test_garbage_ends_a_watch_instead_of_crashing_it(garbage: bytes) -> None:
    """What comes before it is heard; whoever talks like that is treated as gone."""
    mine, theirs = channel_pair()
    watched = Watched(Channel(mine, FrontEndMessage))

    def speak() -> None:
        Channel(theirs, ToFrontEnd).send(Applied(1))
        theirs.send(garbage)
        theirs.send(garbage)

    watched.run(speak)
    theirs.close()
    assert watched.heard == [Applied(1)]
    assert watched.closed == 1


def test_a_watcher_may_close_its_channel_from_a_message(pair: Pair) -> None:
    async def watch() -> list[object]:
        heard: list[object] = []

        def on_message(message: object, fds: list[int]) -> None:
            heard.append(message)
            pair[0].close()

        pair[0].watch(on_message, lambda: None)
        pair[1].send(Applied(1))
        pair[1].send(Applied(2))
        for _ in range(5):
            await asyncio.sleep(0)
        return heard

    assert asyncio.run(watch()) == [Applied(1)]


def test_the_marker_of_a_memory_file_begins_no_message() -> None:
    for _, message in MESSAGES:
        assert msgspec.msgpack.encode(message)[:1] != channel._IN_MEMORY_FILE


def test_the_ends_of_a_pair_are_not_inherited() -> None:
    ends = channel_pair()
    assert [end.type for end in ends] == [socket.SOCK_SEQPACKET] * 2
    for end in ends:
        assert not os.get_inheritable(end.fileno())
        end.close()

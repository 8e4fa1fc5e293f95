"""A rolling restart: a new instance takes over the listening sockets of the running one, and only then does that one go.

    new                                          running
     │  AskHandOver ─────────────────────────────▶ │  refuses changes from here on, waits for those under way
     │  ◀── HandOver: sockets, desired state, keys │  goes on answering
     │  loads models, starts front ends,           │
     │  takes the PID file                         │
     │  TakenOver ───────────────────────────────▶ │
     │  ◀── Released                               │  drains and ends

A new instance that ends before it has said `TakenOver` changes nothing: the running one takes changes again. One that was told
to stop meanwhile says `Withdrawn`, so that the new one does not start what somebody wants to have stopped; one that died does not,
and the new one goes on.

They talk over a socket file in the running one's folder, which only its user can reach; each also asks the kernel who the other is.
"""

import asyncio
import contextlib
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from ringserve.protocol.errors import RingServeError, ShuttingDown
from ringserve.server.admin_socket import short_path
from ringserve.server.channel import Channel, ControlClosed, ControlFull
from ringserve.server.control import Credential
from ringserve.server.messages import Message
from ringserve.server.settings import Address

if TYPE_CHECKING:
    from ringserve.server.versions import Versions

logger = logging.getLogger("ringserve.handover")

SOCKET_NAME = "handover.sock"
# What stopping takes at most, after the time that requests have.
STOP_S_MAX = 60
# How long the running instance may take to finish the changes that are under way, and the new one waits for that.
PREPARE_S_MAX = 60.0
ANSWER_S_MAX = PREPARE_S_MAX + 15.0
ASK_S_MAX = 5
LOOK_S = 0.05
CALLED_OFF = "The start was called off before anything was taken over."
_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid


class AskHandOver(Message, frozen=True):
    """Give me your sockets."""


class AskStart(Message, frozen=True):
    """How were you started? Answered with `Start`."""


class TakenOver(Message, frozen=True):
    """I serve: go."""


class Start(Message, frozen=True):
    """How an instance was started, and how long it may take to stop."""

    words: tuple[str, ...]
    folder: str
    log_location: str
    stop_s_max: float


class HandOver(Message, frozen=True):
    """Descriptors: the listening sockets, whose names and addresses these are. `served`: what has workers now, by model and
    version. `desired` is what is to be restored, as the text of a snapshot; empty where none is kept. `keys`: by plane."""

    sockets: tuple[tuple[str, str], ...]
    served: tuple[tuple[str, str], ...]
    desired: str = ""
    keys: dict[str, tuple[Credential, ...]] = msgspec.field(default_factory=dict)


class Released(Message, frozen=True):
    """You have the sockets alone: I touch them no more."""


class Refused(Message, frozen=True):
    reason: str


class Withdrawn(Message, frozen=True):
    """I am told to stop: do not go on for me."""


ToRunning = AskHandOver | AskStart | TakenOver
ToNew = HandOver | Refused | Withdrawn | Released | Start


class NotHandedOver(RingServeError):
    """The running instance does not give up its sockets; the message says why."""


@dataclass(frozen=True, slots=True)
class HandOverHooks:
    """What the running instance does. `prepare` refuses changes, and raises `RingServeError` when it cannot; `release` takes
    them again; `gone` is called once the other one serves."""

    prepare: Callable[[], Awaitable[tuple[HandOver, list[int]]]]
    release: Callable[[], None]
    gone: Callable[[], None]


class HandOverListener:
    """The running instance's side."""

    def __init__(self, folder: Path, start: Start, hooks: HandOverHooks) -> None:
        self._start = start
        self._hooks = hooks
        self._socket = _listen(folder / SOCKET_NAME)
        self._channels: set[Channel] = set()
        self._successor: Channel | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._withdrawn = False
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._connected)

    def _connected(self) -> None:
        try:
            accepted, _ = self._socket.accept()
        except OSError:
            return
        if _peer_uid(accepted) != os.geteuid():
            logger.warning("another user (uid %d) asked for a hand-over and was turned away", _peer_uid(accepted))
            accepted.close()
            return
        channel = Channel(accepted, ToRunning)
        self._channels.add(channel)
        channel.watch(lambda message, fds: self._heard(channel, message), lambda: self._closed(channel))

    def _heard(self, channel: Channel, message: object) -> None:
        match message:
            case AskStart():
                _tell(channel, self._start)
            case AskHandOver() if self._withdrawn:
                _tell(channel, Refused("it has been told to stop"))
            case AskHandOver() if self._successor is not None:
                _tell(channel, Refused("another instance is taking over already"))
            case AskHandOver():
                self._successor = channel
                self._preparing = asyncio.ensure_future(self._prepare(channel))
            case TakenOver() if channel is self._successor:
                logger.info("a new instance serves")
                _tell(channel, Released())
                self._successor, self._withdrawn = None, True  # its end is not ours to notice any more
                self._hooks.gone()

    async def _prepare(self, channel: Channel) -> None:
        try:
            handed, fds = await asyncio.wait_for(self._hooks.prepare(), PREPARE_S_MAX)
        except TimeoutError:
            self._refuse(channel, f"changes are still under way after {PREPARE_S_MAX:.0f} s")
        except RingServeError as error:
            self._refuse(channel, error.message)
        except Exception as error:  # whatever it was, the other one must not be waited for
            logger.exception("nothing can be handed over")
            self._refuse(channel, f"{type(error).__name__}: {error}")
        else:
            _tell(channel, handed, fds)

    def _refuse(self, channel: Channel, reason: str) -> None:
        _tell(channel, Refused(reason))
        if self._successor is channel:
            self._successor = None
            self._hooks.release()

    def _closed(self, channel: Channel) -> None:
        self._channels.discard(channel)
        channel.close()
        if channel is self._successor:
            logger.warning("the instance that was to take over has ended; this one goes on")
            self._successor = None
            if self._preparing is not None:
                self._preparing.cancel()
            self._hooks.release()

    def withdraw(self) -> None:
        """No hand-over any more, nor one that is under way; how this instance was started is still told."""
        self._withdrawn = True
        if self._preparing is not None:
            self._preparing.cancel()
        if self._successor is not None:
            _tell(self._successor, Withdrawn())
            self._successor = None

    def close(self) -> None:
        self.withdraw()
        for channel in self._channels:
            channel.close()
        self._channels.clear()
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._socket.close()


class Predecessor:
    """The new instance's side, until `taken_over`. `as_before`: it was told nothing new, so it has to serve what the other does."""

    def __init__(self, channel: Channel, *, as_before: bool) -> None:
        self._channel = channel
        self._as_before = as_before
        self._answer: asyncio.Future[tuple[object, list[int]]] | None = None
        self._on_withdrawn: Callable[[], None] = lambda: None
        self._ended = self._withdrawn = False  # with the second, it has said so
        self.handed: HandOver | None = None

    async def ask(self, wanted: Mapping[str, Address], on_withdrawn: Callable[[], None]) -> dict[str, socket.socket]:
        """The listening sockets that are `wanted`, by their names. `on_withdrawn` is called when the running instance is told to stop
        before it has gone: then nobody wants a new one either. Raises `NotHandedOver`."""
        self._on_withdrawn = on_withdrawn
        self._answer = asyncio.get_running_loop().create_future()
        self._channel.watch(self._heard, self._closed)
        _tell(self._channel, AskHandOver())
        try:
            message, fds = await asyncio.wait_for(self._answer, ANSWER_S_MAX)
        except TimeoutError:
            raise NotHandedOver("The running instance does not answer.") from None
        if not isinstance(message, HandOver) or len(fds) != len(message.sockets):
            for fd in fds:
                os.close(fd)
            reason = message.reason if isinstance(message, Refused) else "it has ended, or is told to stop"
            raise NotHandedOver(f"The running instance does not hand over: {reason}.")
        self.handed = message
        inherited = {}
        for (name, address), fd in zip(message.sockets, fds, strict=True):
            if name in wanted and str(wanted[name]) == address:
                inherited[name] = socket.socket(fileno=fd)
            else:
                os.close(fd)
        return inherited

    async def equalled(self, versions: "Versions", not_loaded: Sequence[str]) -> None:
        """Wait until what was asked for at start-up has been loaded. Raises `NotHandedOver` for a version that has workers there
        and none here: the other one had better go on. `not_loaded`: what was asked for and of which not even that is known, which
        model it is."""
        assert self.handed is not None
        while not versions.started:
            await asyncio.sleep(LOOK_S)
        for name, version in self.handed.served:
            try:
                found = versions.registry.find(name, version)
            except RingServeError:
                if not_loaded:
                    raise NotHandedOver(_worse(name, version, "; ".join(not_loaded))) from None
                if self._as_before and self.handed.desired:
                    raise NotHandedOver(_worse(name, version, "it is not loaded, the log says why")) from None
                logger.info("%s %s, which the other instance serves, is not asked for any more", name, version)
                continue
            reason = versions.why_not_ready(found)
            if reason is not None:
                raise NotHandedOver(_worse(name, version, reason))

    async def taken_over(self) -> None:
        """From here on the other one drains, unless it has ended without a word. Raises `ShuttingDown` when it was told to stop first."""
        if self._withdrawn:
            self._channel.close()
            raise ShuttingDown(CALLED_OFF)
        self._answer = asyncio.get_running_loop().create_future()
        _tell(self._channel, TakenOver())
        if self._ended:
            self._closed()
        with contextlib.suppress(TimeoutError):  # who is that slow is ending
            await asyncio.wait_for(self._answer, ASK_S_MAX)
        self._channel.close()
        if self._withdrawn:
            raise ShuttingDown(CALLED_OFF)

    def close(self) -> None:
        self._channel.close()

    def _heard(self, message: object, fds: list[int]) -> None:
        if isinstance(message, Withdrawn):
            logger.warning("the running instance has been told to stop; so does this one")
            self._withdrawn = True
            self._on_withdrawn()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((message, fds))
            return
        for fd in fds:
            os.close(fd)

    def _closed(self) -> None:
        self._ended = True
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((None, []))


def _worse(name: str, version: str, reason: str) -> str:
    return f"The running instance goes on: model {name} version {version} is served by it, and not by the new one: {reason}."


def connect(folder: Path) -> Channel:
    """To the instance whose folder this is. Raises `NotHandedOver`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # Not by Python, which would make reading without waiting of it.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", ASK_S_MAX, 0))
    try:
        with short_path(folder / SOCKET_NAME) as name:
            sock.connect(name)
    except OSError as error:
        sock.close()
        raise NotHandedOver(f"The running instance cannot be asked: {error.strerror or error}.") from None
    if _peer_uid(sock) != os.geteuid():
        sock.close()
        raise NotHandedOver("The running instance belongs to another user.")
    return Channel(sock, ToNew)


def how_started(folder: Path) -> Start:
    """How the instance was started whose folder this is. Raises `NotHandedOver`. Blocks: for commands."""
    channel = connect(folder)
    try:
        channel.send(AskStart())
        received = channel.receive(wait=True)
    except (ControlClosed, msgspec.MsgspecError):
        received = None
    finally:
        channel.close()
    if received is None or not isinstance(received[0], Start):
        raise NotHandedOver("The running instance does not answer.")
    return received[0]


def _listen(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with short_path(path) as name:
            sock.bind(name)
        os.chmod(path, 0o600)
        sock.listen(8)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def _peer_uid(sock: socket.socket) -> int:
    """The user on the other end, from the kernel."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(raw)[1])


def _tell(channel: Channel, message: Message, fds: list[int] | None = None) -> None:
    with contextlib.suppress(ControlClosed, ControlFull):  # whoever is not there any more is noticed elsewhere
        channel.send(message, fds or (), wait=False)

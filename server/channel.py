"""A control socket, SOCK_SEQPACKET: how the messages of server/control.py get from one process to another.

One message is one packet (msgpack, tagged by type); descriptors travel beside it by SCM_RIGHTS. A message larger than a
packet may be (many models) travels in a memory file whose descriptor comes last. The socket closing is itself a message:
the other process ended.
"""

import array
import contextlib
import errno
import logging
import os
import socket
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from ringserve.server.messages import Message
from ringserve.server.metrics.listing import Emitted

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger("ringserve.control")

PACKET_BYTES_MAX = 60_000
FDS_MAX = 16
_FDS_SPACE = socket.CMSG_SPACE(FDS_MAX * array.array("i").itemsize)
_IN_MEMORY_FILE = b"\xc1"  # a byte that begins no msgpack document: the message is in the last descriptor

_encode = msgspec.msgpack.Encoder().encode


class ControlClosed(Exception):
    """The other process ended, or closed its end."""


class ControlFull(Exception):
    """The other process is alive and has not read its messages for long."""


class Channel:
    """One end of a control socket. `receives` is the union of messages that may arrive here."""

    def __init__(self, sock: socket.socket, receives: object) -> None:
        self._socket = sock
        self._decode = msgspec.msgpack.Decoder(receives).decode
        self._on_message: Callable[[object, list[int]], None] = lambda message, fds: None
        self._loop: asyncio.AbstractEventLoop | None = None  # that watches it

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message | Emitted, fds: Sequence[int] = (), *, wait: bool = True) -> None:
        """Send and go on; the caller keeps its descriptors. When the other end is a whole buffer of messages behind, wait
        for it, or raise `ControlFull`. Raises `ControlClosed`."""
        assert len(fds) < FDS_MAX
        data, spill = _encode(message), -1
        try:
            if len(data) > PACKET_BYTES_MAX:
                spill = os.memfd_create("ringserve-message", os.MFD_CLOEXEC)
                with open(spill, "wb", closefd=False) as file:
                    file.write(data)
                data, fds = _IN_MEMORY_FILE, (*fds, spill)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            self._socket.sendmsg([data], rights, 0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            raise ControlFull("the other process does not read its messages") from None
        except OSError as error:
            if error.errno == errno.ETOOMANYREFS:  # more descriptors are on their way than this process may have open
                raise ControlFull("the other process does not take its descriptors") from None
            raise ControlClosed(f"the control socket is closed: {error}") from None
        finally:
            if spill >= 0:
                os.close(spill)

    def receive(self, *, wait: bool) -> tuple[object, list[int]] | None:
        """The next message and its descriptors, which are the caller's now; None when there is none and `wait` is false.
        Raises `ControlClosed`, or `msgspec.MsgspecError` for a message this end does not know."""
        try:
            data, fds = self._packet(0 if wait else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise ControlClosed(f"the control socket is closed: {error}") from None
        for fd in fds:
            os.set_inheritable(fd, False)
        if not data:
            raise ControlClosed("the control socket is closed")
        if data == _IN_MEMORY_FILE and fds:
            with open(fds.pop(), "rb") as file:
                file.seek(0)
                data = file.read()
        try:
            return self._decode(data), fds
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            for fd in fds:
                os.close(fd)
            raise msgspec.DecodeError(str(error)) from None

    def _packet(self, flags: int) -> tuple[bytes, list[int]]:
        try:
            return self._received(flags)
        except ConnectionResetError:
            # The other end closed before it had read everything; what it had sent is still to be read.
            return self._received(flags)

    def _received(self, flags: int) -> tuple[bytes, list[int]]:
        # Not socket.recv_fds (and above not send_fds): Python 3.11's drop their `flags`, and a call that may not wait would.
        fds = array.array("i")
        data, ancillary, _, _ = self._socket.recvmsg(PACKET_BYTES_MAX + 1, _FDS_SPACE, flags)
        for level, kind, rights in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
        return data, fds.tolist()

    def watch(self, on_message: Callable[[object, list[int]], None], on_closed: Callable[[], None]) -> None:
        """Call back on the running event loop for every message, and once when the other end is gone."""
        from asyncio import get_running_loop  # not above: a worker never watches, and starts sooner without it

        self._on_message = on_message
        loop = self._loop = get_running_loop()

        def readable() -> None:
            if not self.drain():
                if self.fileno() >= 0:
                    loop.remove_reader(self.fileno())
                on_closed()

        loop.add_reader(self.fileno(), readable)

    def drain(self) -> bool:
        """Hand every message that is here to the watcher; false once the other end is gone."""
        try:
            while self.fileno() >= 0 and (received := self.receive(wait=False)) is not None:
                self._on_message(*received)
        except ControlClosed:
            return False
        except msgspec.MsgspecError as error:
            logger.error("a message on the control socket is none of ours: %s", error)
            return False
        return self.fileno() >= 0

    def close(self) -> None:
        if self.fileno() < 0:
            return
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended
                self._loop.remove_reader(self.fileno())
        self._socket.close()


def channel_pair() -> tuple[socket.socket, socket.socket]:
    """The two ends, for two processes; both closed on exec unless passed on."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

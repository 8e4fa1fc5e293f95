"""The gRPC front end: one process that turns calls of gRPC into rows and answers into messages.

Run as `python -P -m ringserve.server.rpc.frontend CONTROL_FD`. What the supervisor tells it, it has in common with the other front ends
(front_end_core.py).
"""

import contextlib
import logging
import signal
import socket
import sys

import uvloop

from ringserve.server.channel import Channel, ControlClosed
from ringserve.server.control import ToFrontEnd
from ringserve.server.front_end_core import FrontEndCore
from ringserve.server.rpc.listener import GrpcTransport
from ringserve.server.rpc.messages import ServeGrpc


async def _main(control: socket.socket) -> None:
    channel = Channel(control, ToFrontEnd)
    received = channel.receive(wait=True)
    assert received is not None
    message, _ = received
    assert isinstance(message, ServeGrpc)
    core = FrontEndCore(channel)
    transport = GrpcTransport(core, message)
    await core.run(transport)
    transport.close()


def main() -> None:
    """Entry point of a gRPC front-end process."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    for number in (signal.SIGINT, signal.SIGTERM):  # the supervisor drains us, in its order
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(ControlClosed):
        uvloop.run(_main(socket.socket(fileno=int(sys.argv[1]))))


if __name__ == "__main__":
    main()

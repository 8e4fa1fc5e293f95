"""A socket file in the server's own folder, for whoever runs as the same user: `ringserve status`, and the front ends of a server
whose APIs share one address. No token is asked for there.

Addresses of sockets are short (108 bytes) and folders for temporary files may be deep, so both ends name the socket through a
descriptor of its folder.
"""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

SOCKET_NAME = "admin.sock"


@contextlib.contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A short name for a socket, as long as the context lasts. Raises `OSError` when its folder is not there."""
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def is_private(name: object) -> bool:
    """Whether a socket of that name is one of ours: nobody else names one by a descriptor."""
    return isinstance(name, str) and name.startswith("/proc/self/fd/") and name.endswith(f"/{SOCKET_NAME}")


def listen_privately(path: Path, backlog: int) -> socket.socket:
    """A listening socket that only its owner can reach. Raises `OSError`."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with short_path(path) as name:
            sock.bind(name)
        os.chmod(path, 0o600)
        sock.listen(backlog)
    except OSError:
        sock.close()
        raise
    sock.setblocking(False)
    return sock

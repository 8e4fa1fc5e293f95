"""Listening sockets: opened, inherited from a predecessor, closed, and the files of those that have a path.

A socket file is for its owner alone (mode 0600): who may open it has the whole API, and folders and groups differ too much to guess
more. One that a dead server left behind is replaced; one that answers, or a file of another kind, is never touched.
"""

import contextlib
import errno
import logging
import os
import socket
import stat
import weakref
from collections.abc import Iterator, Mapping

from ringserve.server.app import BACKLOG
from ringserve.server.settings import GRPC_SCHEME, Address, ConfigError

logger = logging.getLogger("ringserve.listening")

FILE_MODE = 0o600


def listen(name: str, address: Address) -> socket.socket:
    """A bound, listening socket; one of gRPC only holds its port. Raises `ConfigError`."""
    try:
        if address.scheme == GRPC_SCHEME:
            sock = _reserved(address)
        else:
            sock = _bound_to_path(name, address.path) if address.path else _bound_to_host(address)
    except UnicodeError:  # what no name of a host can be
        raise ConfigError(f"{name}_address: {address} cannot be bound: expected the name of a host") from None
    except OSError as error:
        raise ConfigError(f"{name}_address: {address} cannot be bound: {error.strerror or error}") from None
    sock.setblocking(False)
    return sock


def _bound_to_host(address: Address) -> socket.socket:
    family, _, _, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _reserved(address: Address) -> socket.socket:
    """A port that gRPC front ends are going to listen on, several of them on one, and nobody else: bound and not listening. It
    would not have been bound where another server has the port, though that one shares it; what is shared later is with us."""
    family, _, _, _, where = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of the last server may still be dying
        sock.bind(where)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # otherwise the next server could do the same
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    except OSError:
        sock.close()
        raise
    return sock


def _bound_to_path(name: str, path: str) -> socket.socket:
    _make_way(name, path)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        os.chmod(path, FILE_MODE)  # nobody can connect before it listens
        sock.listen(BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _make_way(name: str, path: str) -> None:
    """Remove what a dead server left. Raises `ConfigError` for what is not that."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise ConfigError(
            f"{name}_address: expected a free path or a socket that nobody serves, got a file of another kind: {path}"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        error = probe.connect_ex(path)
    if error != errno.ECONNREFUSED:
        raise ConfigError(
            f"{name}_address: expected a socket that nobody serves, got one that another process listens on: {path}"
        )
    logger.info("removing the socket that a dead server left at %s", path)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _is_listening(sock: socket.socket) -> bool:
    try:
        return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    except OSError:
        return False


def _identity(path: str) -> tuple[int, int] | None:
    with contextlib.suppress(OSError):
        found = os.lstat(path)
        if stat.S_ISSOCK(found.st_mode):
            return found.st_dev, found.st_ino
    return None


class ListeningSockets(Mapping[str, socket.socket]):
    """The sockets of a server by the names of its listeners. Raises `ConfigError`; then none stays open.

    What is `inherited` from a predecessor is taken as it is: it has that address already. `close` removes the files of those opened
    here; those of inherited ones are the predecessor's until `own_files`, and none are ours after `hand_over`."""

    def __init__(self, wanted: Mapping[str, Address], inherited: Mapping[str, socket.socket] | None = None) -> None:
        left = dict(inherited or {})
        self._sockets: dict[str, socket.socket] = {}
        self._paths = [address.path for address in wanted.values() if address.path]
        self._files: dict[str, tuple[int, int]] = {}
        weakref.finalize(self, _remove, self._files)  # also when a start fails half-way
        try:
            for name, address in wanted.items():
                if name in left:
                    self._sockets[name] = _adopted(name, left.pop(name), address)
                else:
                    self._sockets[name] = listen(name, address)
                    self._own(address.path)
        except BaseException:
            self.close()
            raise
        finally:
            for sock in left.values():
                sock.close()

    def __getitem__(self, name: str) -> socket.socket:
        return self._sockets[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._sockets)

    def __len__(self) -> int:
        return len(self._sockets)

    def _own(self, path: str) -> None:
        identity = _identity(path) if path else None
        if identity is not None:
            self._files[path] = identity

    def own_files(self) -> None:
        """The predecessor is going: all files are ours."""
        for path in self._paths:
            self._own(path)

    def hand_over(self) -> None:
        """A successor has the sockets: their files are its."""
        self._files.clear()

    def remove_files(self) -> None:
        """Nobody finds the sockets that have a path any more; who has connected is still to be accepted."""
        _remove(self._files)

    def close(self) -> None:
        """Also more than once. A file that has been replaced by another's is left alone."""
        for sock in self._sockets.values():
            sock.close()
        _remove(self._files)


def _remove(files: dict[str, tuple[int, int]]) -> None:
    for path, identity in files.items():
        if _identity(path) == identity:
            with contextlib.suppress(OSError):
                os.unlink(path)
    files.clear()


def _adopted(name: str, sock: socket.socket, address: Address) -> socket.socket:
    if address.scheme != GRPC_SCHEME and not _is_listening(sock):
        sock.close()
        raise ConfigError(
            f"{name}_address: expected a listening socket from the server that runs, got another descriptor"
        )
    sock.setblocking(False)
    return sock

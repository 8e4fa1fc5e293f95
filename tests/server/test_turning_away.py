"""A listening socket that lets nobody in any more, so that it can be emptied before it is closed."""

import socket
from pathlib import Path

from ringserve.server.acceptor import turn_away


def test_who_has_connected_is_accepted_and_heard_and_nobody_else_gets_in() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as late:
        with socket.create_connection(listening.getsockname()) as early:
            assert turn_away(listening)
            early.sendall(b"asked")
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.recv(5) == b"asked"
                accepted.sendall(b"answered")
                assert early.recv(8) == b"answered"
        late.setblocking(False)
        late.connect_ex(listening.getsockname())
        listening.setblocking(False)
        try:
            accepted, _ = listening.accept()
        except BlockingIOError:
            return
        accepted.close()
        raise AssertionError("somebody got in")


def test_nobody_finds_a_socket_whose_path_is_gone(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as early:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        early.connect(str(tmp_path / "s"))
        (tmp_path / "s").unlink()
        assert turn_away(listening)
        listening.accept()[0].close()


def test_what_is_no_listener_of_the_network_cannot_be_told_so() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW) as other:
        assert not turn_away(other)

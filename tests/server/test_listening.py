"""Sockets that listen, the files that some of them have, and whose those are."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringserve.server.listening import ListeningSockets, listen
from ringserve.server.settings import Address, ConfigError, parse_address


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A socket's address is short, and folders of tests are long."""
    monkeypatch.chdir(tmp_path)
    yield "own.sock"


def unix(path: str) -> Address:
    return Address("", 0, "unix", path)


def connected(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        return client.connect_ex(path) == 0


@pytest.mark.parametrize(
    ("text", "default_port", "address"),
    [
        ("http://127.0.0.1:8080", 8080, Address("127.0.0.1", 8080)),
        ("http://localhost", 8080, Address("localhost", 80)),
        ("https://localhost", 8080, Address("localhost", 443, "https")),
        ("http://localhost", 8081, Address("localhost", 8081)),
        ("https://localhost", 8081, Address("localhost", 8444, "https")),
        ("http://localhost", 8082, Address("localhost", 8082)),
        ("https://localhost/", 8082, Address("localhost", 8445, "https")),
        ("HTTPS://Host:1", 8080, Address("host", 1, "https")),
        ("http://[::1]:7", 8080, Address("::1", 7)),
        ("unix:/run/x.sock", 8080, Address("", 0, "unix", "/run/x.sock")),
    ],
)
def test_an_address_is_read_as_torchserve_does_and_ipv6_too(text: str, default_port: int, address: Address) -> None:
    assert parse_address(text, "here", default_port) == address


@pytest.mark.parametrize(
    "text",
    ["127.0.0.1:8080", "ftp://h:1", "http://", "http://h:x", "http://h:70000", "http://h/path", "http://u@h:1", "unix:x", "unix:/x/", "unix:", ""],
)  # fmt: skip
def test_another_text_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_address(text, "here", 8080)
    assert str(caught.value) == f"here: expected http://host:port, https://host:port or unix:/path, got {text!r}"


def test_a_path_that_no_socket_can_have_is_refused_with_the_limit() -> None:
    with pytest.raises(ConfigError, match=r"expected a path of at most 107 bytes, .* got 108"):
        parse_address("unix:/" + "x" * 107, "here", 8080)


@pytest.mark.parametrize("text", ["http://h:80", "https://h:443", "http://[::1]:7", "unix:/run/x.sock"])
def test_an_address_shows_what_was_said(text: str) -> None:
    assert str(parse_address(text, "here", 8080)) == text


def test_sockets_with_a_path_and_those_of_this_host_are_of_this_machine() -> None:
    assert unix("/x").loopback
    assert Address("::1", 1).loopback
    assert not Address("::", 1).loopback
    assert not Address("0.0.0.0", 1, "https").loopback


def test_a_socket_file_is_for_its_owner_and_goes_with_the_server(path: str) -> None:
    sockets = ListeningSockets({"inference": unix(path), "management": Address("127.0.0.1", 0)})
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert connected(path)
    assert list(sockets) == ["inference", "management"]
    sockets.close()
    assert not Path(path).exists()
    sockets.close()


def test_ipv6_is_listened_on() -> None:
    try:
        sock = listen("inference", Address("::1", 0))
    except ConfigError as error:
        pytest.skip(f"no IPv6 here: {error}")
    with sock:
        assert sock.getsockname()[0] == "::1"


def test_what_a_dead_server_left_is_replaced(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    assert not connected(path)
    with listen("inference", unix(path)):
        assert connected(path)


def test_a_socket_that_somebody_serves_is_left_alone(path: str) -> None:
    with listen("inference", unix(path)):
        with pytest.raises(
            ConfigError, match=r"inference_address: .* got one that another process listens on: own\.sock"
        ):
            listen("inference", unix(path))
        assert connected(path)


def test_a_file_of_another_kind_is_left_alone(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(ConfigError, match=r"management_address: .* got a file of another kind: own\.sock"):
        listen("management", unix(path))
    assert Path(path).read_text() == "precious"


@pytest.mark.parametrize("address", [unix("no/such/folder.sock"), Address("192.0.2.1", 1)])
def test_what_cannot_be_bound_is_named(path: str, address: Address) -> None:
    with pytest.raises(ConfigError) as caught:
        listen("metrics", address)
    assert str(caught.value).startswith(f"metrics_address: {address} cannot be bound: ")


def test_when_one_cannot_be_opened_none_stays(path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        wanted = {"inference": unix(path), "management": Address("127.0.0.1", taken.getsockname()[1])}
        with pytest.raises(ConfigError, match=r"management_address: .* Address already in use"):
            ListeningSockets(wanted)
    assert not Path(path).exists()


def test_a_start_that_fails_later_leaves_no_file(path: str) -> None:
    sockets = ListeningSockets({"inference": unix(path)})
    kept = sockets["inference"].dup()
    sockets["inference"].close()
    del sockets
    assert not Path(path).exists()
    kept.close()


def test_a_file_that_another_server_has_replaced_is_left_alone(path: str) -> None:
    ours = ListeningSockets({"inference": unix(path)})
    os.unlink(path)
    with listen("inference", unix(path)):
        ours.close()
        assert connected(path)


def test_a_successor_has_the_files_once_it_serves(path: str) -> None:
    wanted = {"inference": unix(path)}
    old = ListeningSockets(wanted)
    given_up = ListeningSockets(wanted, {"inference": old["inference"].dup()})
    given_up.close()  # it has failed before it served
    assert connected(path)
    new = ListeningSockets(wanted, {"inference": old["inference"].dup(), "management": socket.socket()})
    new.own_files()
    old.hand_over()
    old.close()
    assert connected(path)
    assert not new["inference"].getblocking()
    new.close()
    assert not Path(path).exists()


def test_what_is_inherited_must_listen() -> None:
    with pytest.raises(ConfigError, match="expected a listening socket"):
        ListeningSockets({"inference": Address("127.0.0.1", 0)}, {"inference": socket.socket()})


@pytest.mark.parametrize("host", ["a..b", "a" * 70])
def test_what_no_host_can_be_called_is_named(host: str) -> None:
    with pytest.raises(ConfigError, match=r"^inference_address: .* cannot be bound: expected the name of a host$"):
        listen("inference", Address(host, 1))


def grpc_port() -> tuple[socket.socket, Address]:
    """A port that is held for gRPC, and its address."""
    held = listen("grpc_inference", Address("127.0.0.1", 0, "grpc"))
    return held, Address("127.0.0.1", held.getsockname()[1], "grpc")


def shared(address: Address) -> socket.socket:
    """As a front end of gRPC listens on it."""
    sock = socket.socket()
    for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        sock.setsockopt(socket.SOL_SOCKET, option, 1)
    sock.bind((address.host, address.port))
    sock.listen()
    return sock


def test_a_port_that_is_held_for_grpc_is_shared_by_its_front_ends() -> None:
    held, address = grpc_port()
    front_ends = [shared(address) for _ in range(2)]
    with socket.create_connection((address.host, address.port)):
        pass
    for each in (held, *front_ends):
        each.close()


@pytest.mark.parametrize("serving", [False, True])
def test_no_other_server_gets_it_whether_front_ends_listen_on_it_or_not(serving: bool) -> None:
    held, address = grpc_port()
    front_ends = [shared(address)] if serving else []
    for other in (address, Address(address.host, address.port)):
        with pytest.raises(ConfigError, match=r"^grpc_inference_address: .* cannot be bound: Address already in use$"):
            listen("grpc_inference", other)
    for each in (held, *front_ends):
        each.close()


def test_a_held_port_is_taken_over_though_it_does_not_listen() -> None:
    held, address = grpc_port()
    sockets = ListeningSockets({"grpc_inference": address}, {"grpc_inference": held})
    assert sockets["grpc_inference"] is held
    sockets.close()

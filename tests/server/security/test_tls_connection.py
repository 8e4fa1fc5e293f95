"""The transport that TLS is to the protocol above it, between a client of OpenSSL and a socket that a test decides about."""

import asyncio
import gc
import itertools
import ssl
import weakref
from collections.abc import Iterator

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.server.security.tls import Tls, server_context
from ringserve.server.security.tls_connection import HTTPS_ONLY, PIECE_BYTES, RECEIVED, RECORD_BYTES
from tests.authority import Authority
from tests.server.security.tls_rig import Conversation, Lending


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture(scope="module")
def context(authority: Authority) -> ssl.SSLContext:
    issued = authority.issue()
    return server_context(issued.private(PrivateFormat.PKCS8) + issued.certificate.public_bytes(Encoding.PEM))


@pytest.fixture
def tls(context: ssl.SSLContext) -> Iterator[Tls]:
    yield Tls(context, 60.0)
    gc.collect()


@pytest.fixture
def trust(authority: Authority) -> ssl.SSLContext:
    return authority.client_context()


def test_what_either_side_says_arrives(tls: Tls, trust: ssl.SSLContext) -> None:
    async def run() -> None:
        conversation = Conversation(tls, trust)
        await conversation.shake_hands()
        assert tls.handshakes == set()
        conversation.say(b"hello")
        assert conversation.above.received == [b"hello"]
        conversation.connection.writelines([b"a head, ", memoryview(b"a body, "), bytearray(b""), b"an end"])
        assert conversation.hear() == b"a head, a body, an end"
        assert conversation.client.selected_alpn_protocol() is None
        assert conversation.client.version() == "TLSv1.3"

    asyncio.run(run())


def test_a_client_of_tls_1_2_and_one_that_offers_h2_are_served(tls: Tls, trust: ssl.SSLContext) -> None:
    trust.maximum_version = ssl.TLSVersion.TLSv1_2
    trust.set_alpn_protocols(["h2", "http/1.1"])

    async def run() -> None:
        conversation = Conversation(tls, trust)
        await conversation.shake_hands()
        conversation.say(b"hello")
        assert conversation.above.received == [b"hello"]
        assert conversation.client.version() == "TLSv1.2"
        assert conversation.client.selected_alpn_protocol() == "http/1.1"

    asyncio.run(run())


def test_what_comes_with_the_end_of_the_handshake_is_handed_on(tls: Tls, trust: ssl.SSLContext) -> None:
    async def run() -> None:
        conversation = Conversation(tls, trust)
        with pytest.raises(ssl.SSLWantReadError):
            conversation.client.do_handshake()
        conversation.exchange()
        conversation._in.write(bytes(conversation.socket.sent))
        conversation.client.do_handshake()
        conversation.client.write(b"early")
        conversation.give(conversation._out.read())
        await asyncio.sleep(0)
        assert conversation.above.received == [b"early"]

    asyncio.run(run())


def test_many_records_are_one_piece_to_the_protocol(tls: Tls, trust: ssl.SSLContext) -> None:
    async def run() -> None:
        conversation = Conversation(tls, trust)
        await conversation.shake_hands()
        body = bytes(range(256)) * 400
        conversation.say(body)
        assert conversation.above.received == [body]

    asyncio.run(run())


def test_a_body_is_decrypted_into_lent_memory_whatever_its_pieces(tls: Tls, trust: ssl.SSLContext) -> None:
    async def run() -> None:
        conversation = Conversation(tls, trust)
        await conversation.shake_hands()
        body = bytes(range(256)) * 3000
        lending = Lending(bytearray(len(body)), 50_001)
        conversation.connection.set_protocol(lending)
        assert conversation.connection.get_protocol() is lending
        conversation.say(body)
        assert lending.memory == body
        assert max(lending.counts) == 50_001

    asyncio.run(run())


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(1, 40_000), min_size=1, max_size=6),
    st.lists(st.integers(1, 30_000), min_size=1, max_size=5),
    st.integers(1, 50_000),
    st.lists(st.booleans(), min_size=1, max_size=5),
)
def test_nothing_is_lost_however_it_is_cut(
    context: ssl.SSLContext, authority: Authority, sizes: list[int], cuts: list[int], piece: int, fulls: list[bool]
) -> None:
    async def run() -> None:
        conversation = Conversation(Tls(context, 60.0), authority.client_context())
        await conversation.shake_hands()
        body = b"".join(bytes([number]) * size for number, size in enumerate(sizes))
        lending = Lending(bytearray(len(body)), piece)
        conversation.connection.set_protocol(lending)
        conversation.client.write(body)
        encrypted = conversation._out.read()
        for cut in itertools.cycle(cuts):
            conversation.give(encrypted[:cut])
            encrypted = encrypted[cut:]
            if not encrypted:
                break
        assert lending.memory == body
        conversation.connection.set_protocol(conversation.above)
        heard = b""
        for size, full in zip(sizes, itertools.cycle(fulls)):
            conversation.socket.full = full
            conversation.connection.write(body[:size])
            conversation.socket.take()
            heard += conversation.hear()
        assert heard == b"".join(body[:size] for size in sizes)
        assert conversation.connection.get_write_buffer_size() == 0

    asyncio.run(run())


def test_half_a_record_waits_for_the_other_half(tls: Tls, trust: ssl.SSLContext) -> None:
    async def run() -> None:
        conversation = Conversation(tls, trust)
        await conversation.shake_hands()
        lending = Lending(bytearray(1000), 1000)
        for protocol in (None, lending):
            if protocol is not None:
                conversation.connection.set_protocol(protocol)
            conversation.client.write(b"x" * 1000)
            record = conversation._out.read()
            conversation.give(record[:500])
            assert lending.counts == []
            conversation.give(record[500:])
        assert conversation.above.received == [b"x" * 1000]
        assert lending.counts == [1000]

    asyncio.run(run())


def test_writing_is_paused_until_everything_has_left_and_memory_is_let_go_only_then(
    tls: Tls, trust: ssl.SSLContext
) -> None:
    async def run() -> None:
        conversation = Conversation(tls, trust)
        await conversation.shake_hands()
        memory = bytearray(bytes(range(256)) * 8000)
        conversation.socket.full = True
        conversation.connection.write(memoryview(memory))
        assert conversation.above.said == ["pause"]
        assert conversation.connection.get_write_buffer_size() > len(memory)
        assert len(conversation.socket.kept) < 2 * PIECE_BYTES  # a slow reader costs one piece
        with pytest.raises(BufferError):
            memory.clear()
        conversation.socket.take()
        assert conversation.above.said == ["pause", "resume"]
        assert conversation.connection.get_write_buffer_size() == 0
        assert conversation.hear() == memory
        memory.clear()  # nobody refers to it

    asyncio.run(run())


@pytest.mark.parametrize(("size", "kept"), [(100, True), (RECORD_BYTES + 1, False)])
def test_what_tls_says_by_itself_waits_for_the_client_and_never_grows(
    tls: Tls, trust: ssl.SSLContext, size: int, kept: bool
) -> None:
    async def run() -> None:
        conversation = Conversation(tls, trust)
        await conversation.shake_hands()
        conversation.socket.full = True
        conversation.connection.write(b"x" * 100)
        conversation.socket.sent.clear()
        conversation.connection._outgoing.write(b"y" * size)  # as for many requests to change keys
        conversation.client.write(b"more")
        conversation.exchange()
        assert conversation.socket.aborted is not kept
        if kept:
            conversation.socket.take()
            assert conversation.socket.sent.endswith(b"y" * size)

    asyncio.run(run())


def test_closing_lets_everything_leave_and_says_farewell(tls: Tls, trust: ssl.SSLContext) -> None:
    async def run() -> None:
        conversation = Conversation(tls, trust)
        await conversation.shake_hands()
        conversation.socket.full = True
        conversation.connection.write(b"x" * 1_000_000)
        conversation.connection.close()
        assert conversation.connection.is_closing()
        assert not conversation.socket.closed
        assert conversation.socket.reading_paused
        conversation.socket.take()
        assert conversation.socket.closed
        assert not conversation.socket.aborted
        assert conversation.hear() == b"x" * 1_000_000
        assert conversation.client.read(1) == b""  # a farewell, no cut

    asyncio.run(run())


def test_one_direction_ends_and_what_the_client_still_sends_is_ignored(tls: Tls, trust: ssl.SSLContext) -> None:
    async def run() -> None:
        conversation = Conversation(tls, trust)
        await conversation.shake_hands()
        conversation.connection.write(b"refused")
        conversation.connection.write_eof()
        assert conversation.socket.ended
        assert conversation.hear() == b"refused"
        conversation.give(b"garbage that is no TLS")
        assert conversation.above.received == []
        assert conversation.connection.eof_received()
        assert conversation.above.said == ["eof"]
        assert conversation.socket.closed

    asyncio.run(run())


@pytest.mark.parametrize("stays", [False, True])
def test_a_farewell_of_the_client_is_the_end_of_its_input(tls: Tls, trust: ssl.SSLContext, stays: bool) -> None:
    async def run() -> None:
        conversation = Conversation(tls, trust)
        await conversation.shake_hands()
        conversation.above.stays = stays
        with pytest.raises(ssl.SSLWantReadError):
            conversation.client.unwrap()
        conversation.exchange()
        assert conversation.connection.eof_received()
        assert conversation.above.said == ["eof"]  # once, whether the socket ends as well or not
        assert conversation.socket.closed is not stays

    asyncio.run(run())


def test_reading_that_is_paused_goes_on_with_what_has_come_before(tls: Tls, trust: ssl.SSLContext) -> None:
    async def run() -> None:
        conversation = Conversation(tls, trust)
        await conversation.shake_hands()
        conversation.connection.pause_reading()
        assert not conversation.connection.is_reading()
        conversation.say(b"later")
        assert conversation.above.received == []
        conversation.connection.resume_reading()
        assert conversation.above.received == []  # not from within the call
        await asyncio.sleep(0)
        assert conversation.above.received == [b"later"]

    asyncio.run(run())


def test_a_broken_record_ends_the_connection(tls: Tls, trust: ssl.SSLContext) -> None:
    async def run() -> None:
        conversation = Conversation(tls, trust)
        await conversation.shake_hands()
        conversation.give(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert conversation.socket.aborted

    asyncio.run(run())


@pytest.mark.parametrize("start", [b"G", b"POST /predictions/x HTTP/1.1\r\n\r\n"])
def test_plain_http_is_told_what_is_spoken_here(tls: Tls, trust: ssl.SSLContext, start: bytes) -> None:
    async def run() -> None:
        failed: list[bool] = []
        tls.on_failed = lambda: failed.append(True)
        conversation = Conversation(tls, trust)
        conversation.give(start)
        conversation.give(b"more of it")
        assert conversation.socket.sent == HTTPS_ONLY
        assert conversation.socket.ended
        assert not conversation.socket.closed  # the client may still be sending
        assert not conversation.connection.eof_received()
        conversation.connection.connection_lost(None)
        assert failed == [True]
        assert tls.handshakes == set()

    asyncio.run(run())


def test_garbage_ends_with_an_alert(tls: Tls, trust: ssl.SSLContext) -> None:
    async def run() -> None:
        conversation = Conversation(tls, trust)
        conversation.give(b"\x16\x03\x01\x00\x05hello")
        assert conversation.socket.closed
        assert conversation.socket.sent[:1] == b"\x15"
        conversation.connection.connection_lost(None)
        assert tls.handshakes == set()

    asyncio.run(run())


def test_a_handshake_that_stalls_is_cut_off(context: ssl.SSLContext, trust: ssl.SSLContext) -> None:
    async def run() -> None:
        conversation = Conversation(Tls(context, 0.0), trust)
        await asyncio.sleep(0.001)
        assert conversation.socket.aborted

    asyncio.run(run())


def test_too_many_handshakes_are_turned_away(tls: Tls, trust: ssl.SSLContext) -> None:
    async def run() -> None:
        tls.handshakes_max = 1
        first, second = Conversation(tls, trust), Conversation(tls, trust)
        assert (first.socket.aborted, second.socket.aborted) == (False, True)
        first.connection.connection_lost(None)

    asyncio.run(run())


def test_when_nothing_is_accepted_any_more_only_handshakes_that_have_begun_are_waited_for(
    tls: Tls, trust: ssl.SSLContext
) -> None:
    async def run() -> None:
        silent, begun = Conversation(tls, trust), Conversation(tls, trust)
        with pytest.raises(ssl.SSLWantReadError):
            begun.client.do_handshake()
        begun.exchange()
        assert tls.wind_down(0.5) == 2
        for each in (silent, begun):
            each.connection._began_s -= 1.0
        tls.wind_down(0.5)
        assert (silent.socket.aborted, begun.socket.aborted) == (True, False)
        for each in (silent, begun):
            each.connection.connection_lost(None)

    asyncio.run(run())


def test_a_lost_connection_lets_go_of_what_was_to_be_sent(tls: Tls, trust: ssl.SSLContext) -> None:
    async def run() -> None:
        conversation = Conversation(tls, trust)
        await conversation.shake_hands()
        memory = bytearray(1_000_000)
        conversation.socket.full = True
        conversation.connection.write(memoryview(memory))
        conversation.connection.connection_lost(ConnectionResetError())
        memory.clear()
        conversation.connection.write(b"nobody hears it")
        assert conversation.above.said == ["pause", "lost"]

    asyncio.run(run())


def test_a_lost_connection_is_forgotten_at_once(tls: Tls, trust: ssl.SSLContext) -> None:
    async def run() -> None:
        conversation = Conversation(tls, trust)
        await conversation.shake_hands()
        connection = weakref.ref(conversation.connection)
        conversation.say(b"hello")
        conversation.connection.connection_lost(None)
        conversation.socket.protocol = None
        del conversation.connection
        conversation.above.transport = None  # as Sanic's protocols do
        assert connection() is None

    gc.disable()
    try:
        asyncio.run(run())
    finally:
        gc.enable()


def test_what_is_asked_about_the_socket_is_answered_by_it(tls: Tls, trust: ssl.SSLContext) -> None:
    async def run() -> None:
        conversation = Conversation(tls, trust)
        await conversation.shake_hands()
        assert conversation.connection.get_extra_info("peername") == ("127.0.0.1", 7)
        assert conversation.connection.get_extra_info("ssl_object").version() == "TLSv1.3"
        assert conversation.connection.get_write_buffer_limits() == (0, 0)

    asyncio.run(run())


def test_what_is_read_at_once_is_what_the_scratch_holds() -> None:
    assert RECEIVED.nbytes == PIECE_BYTES

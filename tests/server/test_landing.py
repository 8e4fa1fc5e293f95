"""Where bodies arrive: in place, in a buffer that grows, in a spool. Whoever writes in whatever pieces, the bytes are the same."""

import os
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.errors import BadRequest, BodyTooLarge, NoWorker, OutOfResources, QueueFull
from ringserve.protocol.request import InferRequest
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.inflight import Pending
from ringserve.server.landing import (
    SPOOLED_BYTES_MIN,
    BufferLanding,
    FormLanding,
    GrowingLanding,
    Landing,
    SlabLanding,
    copy_into,
)
from ringserve.shm.shm_errors import OutOfSharedMemory
from ringserve.shm.spool import Spool, Windows

if TYPE_CHECKING:
    from tests.server.conftest import Stage

Play = Callable[..., None]
OutcomeOf = Callable[..., Any]
LIMIT = 1 << 20
REQUEST = InferRequest("id", "text/plain", {}, b"")
SUBMITTED: Any = object()
TWO = Signature(
    (TensorSpec("a", "uint8", (3,)), TensorSpec("b", "float32", (2,))),
    (TensorSpec("c", "uint8", (3,)), TensorSpec("d", "float32", (2,))),
)


class Queue:
    """What `Dispatcher.submit` would be given."""

    def __init__(self) -> None:
        self.request: InferRequest | None = None
        self.spool: Spool | None = None

    def submit(self, request: InferRequest, spool: Spool | None) -> Pending:
        self.request, self.spool = request, spool
        pending: Pending = SUBMITTED
        return pending

    def body(self) -> bytes:
        assert self.request is not None
        if self.spool is None:
            return bytes(self.request.body)
        assert self.request.body == b""
        windows = Windows(self.spool.fd, 0, self.spool.written)
        body = b"".join(bytes(window) for window in iter(windows.next, None))
        self.spool.close()
        return body


def poured(landing: Landing, data: bytes, cuts: list[int]) -> None:
    """Partly as a socket fills the memory of the landing, partly as bytes that were read elsewhere."""
    ends = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
    for number, (start, end) in enumerate(pairwise(ends)):
        piece = data[start:end]
        if number % 2:
            copy_into(landing, piece)
            continue
        while piece:
            memory = landing.memory()
            count = min(len(memory), len(piece))
            assert count
            memory[:count] = piece[:count]
            landing.advance(count)
            piece = piece[count:]


cuts = st.lists(st.integers(0, 10**6), max_size=6)
bodies = st.binary(max_size=50) | st.integers(0, SPOOLED_BYTES_MIN + 100_000).map(
    lambda size: os.urandom(64) * (size // 64)
)


@given(bodies, cuts)
def test_a_body_of_known_length_is_submitted_as_it_came(data: bytes, cuts: list[int]) -> None:
    queue = Queue()
    landing = BufferLanding(len(data), REQUEST, queue.submit)
    poured(landing, data, cuts)
    assert landing.commit() is SUBMITTED
    assert queue.body() == data
    assert queue.request == REQUEST._replace(body=bytearray(data))


@given(bodies, cuts, st.booleans())
def test_a_body_of_unknown_length_is_submitted_as_it_came(data: bytes, cuts: list[int], spooled: bool) -> None:
    queue = Queue()
    landing = GrowingLanding(LIMIT, REQUEST, queue.submit, spooled=spooled)
    poured(landing, data, cuts)
    assert landing.commit() is SUBMITTED
    assert (queue.spool is not None) == (spooled or len(data) >= SPOOLED_BYTES_MIN)
    assert landing.received_bytes == len(data)
    assert queue.body() == data


@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), cuts)
def test_a_row_with_several_inputs_is_filled_in_their_order(sizes: list[int], cuts: list[int]) -> None:
    buffers = [bytearray(size) for size in sizes]
    data = os.urandom(sum(sizes))
    landed: list[Pending] = []
    pending: Pending = SUBMITTED
    landing = SlabLanding(pending, [memoryview(each) for each in buffers], landed.append, landed.append)
    poured(landing, data, cuts)
    assert landing.commit() is pending
    assert landed == [pending]
    assert b"".join(buffers) == data


@given(st.integers(0, 300), cuts)
def test_a_body_over_the_limit_is_refused_whatever_its_pieces(limit: int, cuts: list[int]) -> None:
    poured(GrowingLanding(limit), bytes(limit), cuts)
    landing = GrowingLanding(limit, REQUEST, Queue().submit, spooled=True)
    with pytest.raises(BodyTooLarge, match=f"larger than {limit} bytes, the limit max_request_size"):
        poured(landing, bytes(limit + 1), cuts)
    landing.abandon()


FORM = REQUEST._replace(content_type="multipart/form-data; boundary=xyz")
fields = st.lists(st.binary(max_size=50) | st.just(bytes(SPOOLED_BYTES_MIN)), min_size=1, max_size=3)


def form(fields: list[bytes], *, end: bytes = b"--xyz--\r\n") -> bytes:
    part = b'--xyz\r\ncontent-disposition: form-data; name="f%d"\r\n\r\n%b\r\n'
    return b"".join(part % (number, field) for number, field in enumerate(fields)) + end


@given(fields, cuts)
def test_a_form_in_any_pieces_is_submitted_as_its_parts(fields: list[bytes], cuts: list[int]) -> None:
    """Short ones as bytes, long ones as places in a spool."""
    queue = Queue()
    landing = FormLanding(LIMIT, FORM, queue.submit, typed=False)
    poured(landing, form(fields), cuts)
    assert landing.commit() is SUBMITTED
    request = queue.request
    assert request is not None
    if queue.spool is None:
        assert sum(map(len, fields)) < SPOOLED_BYTES_MIN
        assert request.parts is not None
        found = [(part.name, part.data) for part in request.parts]
    else:
        assert request.placed is not None
        places, body = request.placed, queue.body()
        found = [(part.name, body[part.offset : part.offset + part.length]) for part in places]
    assert found == [(f"f{number}", field) for number, field in enumerate(fields)]


@pytest.mark.parametrize("how", ["broken", "too long", "left"])
def test_a_long_form_that_is_none_or_never_ends_leaves_nothing_open(how: str) -> None:
    whole = form([bytes(SPOOLED_BYTES_MIN)], end=b"and no boundary")
    landing = FormLanding(len(whole), FORM, Queue().submit, typed=False)
    poured(landing, whole, [SPOOLED_BYTES_MIN])
    spool = landing._spool
    assert spool is not None
    if how == "broken":
        with pytest.raises(BadRequest):
            landing.commit()
    elif how == "too long":
        with pytest.raises(BodyTooLarge):
            poured(landing, b"x", [])
        landing.abandon()
    else:
        landing.abandon()
    assert spool.fd == -1


def test_a_body_without_a_request_never_leaves_this_process() -> None:
    """A form is parsed before it is a request."""
    landing = GrowingLanding(LIMIT)
    copy_into(landing, bytes(SPOOLED_BYTES_MIN + 1))
    assert len(landing.body) == SPOOLED_BYTES_MIN + 1


def test_a_spooled_body_that_will_not_come_leaves_nothing_open() -> None:
    landing = GrowingLanding(LIMIT, REQUEST, Queue().submit, spooled=True)
    spool = landing._spool
    assert spool is not None
    copy_into(landing, b"some of it")
    landing.abandon()
    assert spool.fd == -1
    landing.abandon()


def test_a_spool_that_gets_no_memory_says_so_and_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    landing = GrowingLanding(LIMIT, REQUEST, Queue().submit)

    def full(fd: int, at: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", full)
    with pytest.raises(OutOfSharedMemory):
        copy_into(landing, bytes(SPOOLED_BYTES_MIN))
    spool = landing._spool
    assert spool is not None
    landing.abandon()
    assert spool.fd == -1


# ---- what a dispatcher lends


@pytest.fixture
def every_body_lands(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """However short it is."""
    monkeypatch.setattr("ringserve.server.intake.LANDED_BYTES_MIN", 1)
    yield


@pytest.mark.usefixtures("every_body_lands")
def test_a_typed_body_is_received_in_its_arrays(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        stage.attach()
        before = stage.submit(bytes(11), binary=True)
        landing = stage.land(11, binary=True)
        assert [len(landing.memory())] == [3], "the place of the first input"
        body = bytes(range(1, 12))
        pending = stage.commit(landing, body)
        assert pending.fill is not None
        slab = pending.fill.slab
        assert slab.inputs[0][1].tobytes() + slab.inputs[1][1].tobytes() == body
        await stage.work()
        assert outcome_of(pending) == bytes(255 - byte for byte in body)
        assert outcome_of(before) == b"\xff" * 11

    play(scenario, signature=TWO)


@pytest.mark.usefixtures("every_body_lands")
def test_a_typed_body_of_another_length_need_not_even_come(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        with pytest.raises(BadRequest, match="expected 11 bytes"):
            stage.land(12)
        assert stage.free() == 4

    play(scenario, signature=TWO)


@pytest.mark.usefixtures("every_body_lands")
def test_json_for_a_typed_model_is_received_elsewhere(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        stage.attach()
        text = b'{"a": [1, 2, 3], "b": [0, 0]}'
        landing = stage.dispatcher.land(InferRequest("id", "application/json", {}, b"", None, True), len(text), LIMIT)
        assert isinstance(landing, BufferLanding)
        pending = stage.commit(landing, text)
        await stage.work()
        assert outcome_of(pending) == bytes([254, 253, 252]) + b"\xff" * 8

    play(scenario, signature=TWO)


def test_a_short_body_does_not_take_a_row_while_it_arrives(play: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        assert isinstance(stage.land(4), BufferLanding)

    play(scenario)


@pytest.mark.usefixtures("every_body_lands")
def test_a_body_larger_than_any_slab_goes_into_a_spool(play: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        stage.attach()
        landing = stage.land(5000)
        assert isinstance(landing, GrowingLanding)
        pending = stage.commit(landing, b"x" * 5000)
        await stage.work()
        assert outcome_of(pending) == b"answer to " + b"x" * 5000
        assert pending.parcel is None

    play(scenario, region=4096)


@pytest.mark.usefixtures("every_body_lands")
@pytest.mark.parametrize("signature", [Signature(), TWO], ids=["bytes", "typed"])
def test_a_body_that_came_before_the_lane_is_a_request_when_it_opens(
    play: Play, outcome_of: OutcomeOf, signature: Signature
) -> None:
    async def scenario(stage: "Stage") -> None:
        landing = stage.land(11, binary=True)
        assert isinstance(landing, GrowingLanding)
        copy_into(landing, b"early")
        stage.open_lane()
        pending = stage.commit(landing, b" body,")
        stage.attach()
        await stage.work()
        sent = b"early body,"
        assert outcome_of(pending) == (bytes(255 - each for each in sent) if signature.typed else b"answer to " + sent)

    play(scenario, opened=False, signature=signature)


@pytest.mark.parametrize("refused", ["no worker", "full"])
def test_a_refused_request_leaves_no_spool_open(play: Play, refused: str) -> None:
    async def scenario(stage: "Stage") -> None:
        landing = stage.dispatcher.land_unknown(REQUEST, LIMIT)
        copy_into(landing, bytes(SPOOLED_BYTES_MIN))
        assert isinstance(landing, GrowingLanding)
        spool = landing._spool
        assert spool is not None
        if refused == "full":
            stage.submit()
        else:
            stage.dispatcher.set_serviceable(False)
        with pytest.raises(QueueFull if refused == "full" else NoWorker):
            landing.commit()
        assert spool.fd == -1

    play(scenario, capacity=1)


@pytest.mark.usefixtures("every_body_lands")
def test_without_memory_a_body_is_refused_before_it_comes(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(stage: "Stage") -> None:
        def full(fd: int, flags: int = 0) -> int:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr("os.memfd_create", full)
        with pytest.raises(OutOfResources, match="does not fit into memory"):
            stage.land(5000)
        assert stage.free() == 4

    play(scenario, region=4096)

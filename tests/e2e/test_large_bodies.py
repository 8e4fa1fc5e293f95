"""Bodies too large for one read arrive as they were sent: in whatever pieces, framing and order, at whatever address."""

import contextlib
import hashlib
import random
import threading
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from ringserve.server.testing import ServerProcess
from tests.e2e.raw_http import ANSWER_S_MAX, Connection, head, post

PAUSE_S = 0.02
IMAGE = (3, 224, 224)
IMAGE_BYTES = 3 * 224 * 224 * 4
MASK_BYTES = 100
CHECKSUMS_CONFIG = f"""
backend: python
batchSize: 4
inputs:
  - {{name: image, dtype: float32, shape: {list(IMAGE)}}}
  - {{name: mask, dtype: uint8, shape: [{MASK_BYTES}]}}
outputs:
  - {{name: crcs, dtype: int64, shape: [2]}}
"""
# On both sides of what a read, a slab or a parcel may hold.
SIZES = (0, 1, 65_535, 65_536, 65_537, 602_112, 3_000_000)


def cut(data: bytes, sizes: Callable[[], int]) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        size = sizes()
        yield data[at : at + size]
        at += size


def chunked(pieces: Iterable[bytes], *, extension: bytes = b"", trailers: bytes = b"") -> bytes:
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
    return chunks + b"0" + extension + b"\r\n" + trailers + b"\r\n"


CHUNKED = head("/predictions/echo", "transfer-encoding: chunked")


def send_whole(connection: Connection, body: bytes) -> None:
    connection.send(post(body))


def send_head_and_body_apart(connection: Connection, body: bytes) -> None:
    connection.send(post(body)[: -len(body) or None], pause_s=PAUSE_S)
    connection.send(body)


def send_head_in_two_pieces(connection: Connection, body: bytes) -> None:
    connection.send(post(body)[:30], pause_s=PAUSE_S)
    connection.send(post(body)[30:])


def send_last_byte_apart(connection: Connection, body: bytes) -> None:
    connection.send(post(body)[:-1], pause_s=PAUSE_S)
    connection.send(post(body)[-1:])


def send_packets(connection: Connection, body: bytes) -> None:
    connection.send(*cut(post(body), lambda: 1460))


def send_random_pieces(connection: Connection, body: bytes) -> None:
    random_one = random.Random(len(body))
    connection.send(*cut(post(body), lambda: int(random_one.paretovariate(0.5)) + 1))


def send_with_pauses(connection: Connection, body: bytes) -> None:
    connection.send(*cut(post(body), lambda: len(body) // 5 + 7), pause_s=PAUSE_S)


def send_chunked(connection: Connection, body: bytes) -> None:
    random_one = random.Random(len(body))
    stream = CHUNKED + chunked(cut(body, lambda: random_one.randrange(1, 200_000)))
    connection.send(*cut(stream, lambda: random_one.randrange(1, 100_000)))


WAYS = (
    send_whole,
    send_head_and_body_apart,
    send_head_in_two_pieces,
    send_last_byte_apart,
    send_packets,
    send_random_pieces,
    send_with_pauses,
    send_chunked,
)


@pytest.fixture(scope="module")
def server(archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    store = tmp_path_factory.mktemp("large") / "store"
    archive(store, "echo", "echo.py", config="batchSize: 4\n")
    archive(store, "digest", "digest.py:handle")
    archive(store, "checksums", "checksums.py", config=CHECKSUMS_CONFIG)
    with ServerProcess(store, config={"default_workers_per_model": 1, "job_queue_size": 1000}) as server:
        yield server
        assert "Traceback" not in server.log, server.log
    assert server.remains() == []


@pytest.fixture
def connection(server: ServerProcess) -> Iterator[Connection]:
    with Connection(server) as connection:
        yield connection


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.inference_url, timeout=ANSWER_S_MAX, trust_env=False) as client:
        yield client


def typed_row(seed: int) -> tuple[bytes, list[int]]:
    """A body for the typed model, and what it is answered."""
    image = np.random.default_rng(seed).integers(0, 256, IMAGE).astype("<f4").tobytes()
    mask = random.Random(seed).randbytes(MASK_BYTES)
    return image + mask, [zlib.crc32(image), zlib.crc32(mask)]


@pytest.mark.parametrize("way", WAYS)
def test_a_body_of_any_size_sent_in_any_pieces_comes_back(connection: Connection, way: Callable[..., None]) -> None:
    for size in SIZES:
        body = random.Random(size).randbytes(size)
        way(connection, body)
        answer = connection.answer()
        assert (answer.status, len(answer.body)) == (200, size)
        assert answer.body == body


def test_one_connection_carries_bodies_of_all_sizes_in_all_ways(connection: Connection) -> None:
    random_one = random.Random(5)
    for number in range(60):
        body = random_one.randbytes(random_one.choice((0, 10, 70_000, 300_000, random_one.randrange(3_000_000))))
        way = random_one.choice(WAYS)
        way(connection, body)
        answer = connection.answer()
        assert answer.status == 200, (number, way)
        assert answer.body == body, (number, way, len(body))
        assert answer.headers["connection"] == "keep-alive"


@pytest.mark.parametrize("pieces", ["whole", "random"])
def test_large_bodies_between_pipelined_requests_are_answered_in_order(connection: Connection, pieces: str) -> None:
    sizes = (10, 200_000, 0, 2_000_000, 70_000, 65_536, 5, 1_000_000, 3)
    bodies = [random.Random(number).randbytes(size) for number, size in enumerate(sizes)]
    chunks = random.Random(3)
    stream = b"".join(
        CHUNKED + chunked(cut(body, lambda: chunks.randrange(1, 90_000))) if number % 4 == 3 else post(body)
        for number, body in enumerate(bodies)
    )
    size = (lambda: len(stream)) if pieces == "whole" else (lambda: chunks.randrange(1, 150_000))
    sending = threading.Thread(target=connection.send, args=tuple(cut(stream, size)))
    sending.start()
    answers = [connection.answer() for _ in bodies]
    sending.join(ANSWER_S_MAX)
    assert [answer.status for answer in answers] == [200] * len(bodies)
    assert [answer.body for answer in answers] == bodies


@pytest.mark.parametrize("cut_at", [1, 40, 65_536, 99_999])
def test_a_request_cut_behind_a_large_one_is_a_request_of_its_own(connection: Connection, cut_at: int) -> None:
    first, second = random.Random(1).randbytes(150_000), random.Random(2).randbytes(100_000)
    follower = post(second)
    connection.send(post(first) + follower[:cut_at])
    assert connection.answer().body == first
    connection.send(follower[cut_at:])
    assert connection.answer().body == second


def test_any_method_brings_a_large_body(connection: Connection) -> None:
    body = random.Random(8).randbytes(200_000)
    for method in ("PUT", "PATCH", "DELETE", "GET"):
        connection.send(post(body, method=method))
        assert connection.answer().body == body, method


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize(
    ("target", "rest"),
    [
        ("/predictions/digest", ""),
        ("/predictions/digest/", ""),
        ("/predictions/digest/1.0", ""),
        ("/predictions/di%67est?a=b", ""),
        ("http://x/predictions/digest", ""),
        ("/predictions/digest/1.0/rest/of/path", "rest/of/path"),
    ],
)
def test_a_large_body_reaches_its_model_by_every_path(
    connection: Connection, target: str, rest: str, framing: str
) -> None:
    body = random.Random(4).randbytes(400_000)
    if framing == "length":
        connection.send(post(body, target))
    else:
        connection.send(head(target, "transfer-encoding: chunked") + chunked([body]))
    seen = connection.answer().json
    assert seen == {"body": ["bytearray", len(body), hashlib.sha256(body).hexdigest()], "url_path": rest}


@pytest.mark.parametrize("ending", ["close", "keep-alive"])
def test_a_client_of_http_1_0_gets_its_large_body_back(connection: Connection, ending: str) -> None:
    body = random.Random(10).randbytes(300_000)
    connection.send(head("/predictions/echo", f"content-length: {len(body)}", f"connection: {ending}", version="1.0"))
    connection.send(body)
    assert connection.answer().body == body
    if ending == "close":
        assert connection.rest() == b""


@pytest.mark.parametrize(
    ("chunk_bytes", "body_bytes"), [(1, 20_000), (7, 70_000), (1000, 1_000_000), (1 << 20, 5 << 20)]
)
def test_a_chunked_body_arrives_whatever_its_chunks(connection: Connection, chunk_bytes: int, body_bytes: int) -> None:
    body = random.Random(chunk_bytes).randbytes(body_bytes)
    connection.send(CHUNKED + chunked(cut(body, lambda: chunk_bytes)))
    assert connection.answer().body == body
    connection.send(post(b"next"))
    assert connection.answer().body == b"next"


def test_chunk_extensions_and_trailers_are_read_over(connection: Connection) -> None:
    body = random.Random(11).randbytes(250_000)
    trailers = b"x-checksum: 17\r\nx-more: GET /predictions/echo HTTP/1.1\r\n"
    stream = CHUNKED + chunked(cut(body, lambda: 100_000), extension=b';name=value;more="a b"', trailers=trailers)
    for pieces in ([stream], cut(stream, lambda: 997)):
        connection.send(*pieces)
        assert connection.answer().body == body
    connection.send(post(b"next"))
    assert connection.answer().body == b"next"


@pytest.mark.parametrize(
    "first", [b"", b"11170\r\n" + bytes(70_000) + b"\r\n"], ids=["at once", "behind a large chunk"]
)
@pytest.mark.parametrize("size", [b"zz", b"-5", b"0x5", b"+5", b"5_0", b"", b"5 5"])
def test_a_chunk_whose_size_is_no_number_is_a_bad_request(connection: Connection, size: bytes, first: bytes) -> None:
    connection.send(CHUNKED + first + size + b"\r\nabcde\r\n0\r\n\r\n")
    answer = connection.answer()
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert connection.rest() == b""


@pytest.mark.parametrize("size", [b"7fffffff", b"f" * 16, b"f" * 17, b"f" * 400])
def test_a_chunk_larger_than_any_limit_is_refused_at_once(connection: Connection, size: bytes) -> None:
    connection.send(CHUNKED + size + b"\r\nabcde")
    answer = connection.answer()
    assert (answer.status in (400, 413), answer.headers["connection"]) == (True, "close")
    assert connection.rest() == b""


@pytest.mark.parametrize("large", [10, 100_000])
def test_a_chunk_longer_than_it_said_is_a_bad_request(connection: Connection, large: int) -> None:
    connection.send(CHUNKED + b"%x\r\n" % large + bytes(large) + b"and more\r\n0\r\n\r\n")
    answer = connection.answer()
    assert (answer.status, answer.headers["connection"]) == (400, "close")
    assert connection.rest() == b""


def test_large_files_of_a_form_are_parts_of_their_own(client: httpx.Client) -> None:
    files = {
        "first": ("a.bin", random.Random(1).randbytes(2_000_000), "application/octet-stream"),
        "second": ("b.bin", b"\r\n--almost a boundary\r\n" * 40_000, "application/octet-stream"),
    }
    seen = client.post("/predictions/digest", files=files, data={"small": "field"}).json()
    for name, content in (("first", files["first"][1]), ("second", files["second"][1]), ("small", b"field")):
        assert seen[name] == ["bytearray", len(content), hashlib.sha256(content).hexdigest()]


def test_a_large_form_may_come_in_chunks(connection: Connection) -> None:
    content = random.Random(2).randbytes(1_500_000)
    form = b'--b\r\ncontent-disposition: form-data; name="file"; filename="f"\r\n\r\n' + content + b"\r\n--b--\r\n"
    framing = ("transfer-encoding: chunked", "content-type: multipart/form-data; boundary=b")
    connection.send(head("/predictions/digest", *framing) + chunked(cut(form, lambda: 333_333)))
    seen = connection.answer().json
    assert seen["file"] == ["bytearray", len(content), hashlib.sha256(content).hexdigest()]


@pytest.mark.parametrize("way", ["whole", "apart", "pieces", "chunked"])
def test_a_typed_model_sees_the_raw_bytes_of_its_inputs_in_order(connection: Connection, way: str) -> None:
    target, random_one = "/predictions/checksums", random.Random(6)
    for seed in range(4):
        body, crcs = typed_row(seed)
        if way == "chunked":
            pieces = chunked(cut(body, lambda: random_one.randrange(1, 100_000)))
            connection.send(head(target, "transfer-encoding: chunked") + pieces)
        elif way == "apart":
            connection.send(post(body, target)[: -len(body)], pause_s=PAUSE_S)
            connection.send(body)
        else:
            connection.send(*cut(post(body, target), lambda: 1 << 20 if way == "whole" else 2000))
        answer = connection.answer()
        assert (answer.status, answer.json) == (200, crcs)


def test_a_typed_model_takes_large_inputs_as_json(client: httpx.Client) -> None:
    body, crcs = typed_row(9)
    image = np.frombuffer(body[:IMAGE_BYTES], "<f4").reshape(IMAGE).astype(int).tolist()
    row = {"image": image, "mask": list(body[IMAGE_BYTES:])}
    assert client.post("/predictions/checksums", json=row).json() == crcs


def test_large_bodies_that_come_before_their_models_have_loaded_are_answered(
    archive: Callable[..., Path], start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """Nobody knows yet where they will lie in memory. The models load once their folder has a file `open`."""
    handlers, store = Path(__file__).parent / "handlers", tmp_path / "store"
    waiting = f"import os, time\nwhile not os.path.exists({str(tmp_path / 'open')!r}):\n    time.sleep(0.005)\n"
    for name, config in (("echo", ""), ("checksums", CHECKSUMS_CONFIG)):
        source = (handlers / f"{name}.py").read_text().partition('"""\n')[2] + waiting
        archive(store, name, f"{name}.py", source=source, config=config)
    server = start_server(store)
    with contextlib.ExitStack() as stack:
        echoes = [(way, random.Random(number).randbytes(400_000)) for number, way in enumerate(WAYS)]
        rows = [typed_row(seed) for seed in range(3)]
        connections = [stack.enter_context(Connection(server)) for _ in (*echoes, *rows)]
        for connection, (way, body) in zip(connections, echoes, strict=False):
            way(connection, body)
        for connection, (body, _) in zip(connections[len(echoes) :], rows, strict=True):
            connection.send(post(body, "/predictions/checksums"))
        wrong = stack.enter_context(Connection(server))
        wrong.send(post(rows[0][0][:-1], "/predictions/checksums"))
        (tmp_path / "open").touch()
        answers = [connection.answer() for connection in connections]
        assert wrong.answer().status == 400
    assert [answer.body for answer in answers[: len(echoes)]] == [body for _, body in echoes]
    assert [answer.json for answer in answers[len(echoes) :]] == [crcs for _, crcs in rows]


@pytest.mark.parametrize("wrong_by", [-1, 1, 100_000, -IMAGE_BYTES])
def test_a_large_body_of_the_wrong_size_for_a_typed_model_is_refused(connection: Connection, wrong_by: int) -> None:
    body, crcs = typed_row(1)
    wrong = body[:wrong_by] if wrong_by < 0 else body + bytes(wrong_by)
    connection.send(post(wrong, "/predictions/checksums"))
    answer = connection.answer()
    assert answer.status == 400
    assert str(IMAGE_BYTES + MASK_BYTES) in answer.body.decode()
    with httpx.Client(trust_env=False) as client:
        address = connection.socket.getpeername()
        url = f"http://{address[0]}:{address[1]}/predictions/checksums"
        assert client.post(url, content=body).json() == crcs


def test_many_clients_at_once_each_get_their_own(client: httpx.Client) -> None:
    def ask(number: int) -> bool:
        if number % 2:
            body, crcs = typed_row(number)
            return bool(client.post("/predictions/checksums", content=body).json() == crcs)
        body = random.Random(number).randbytes(50_000 * number)
        return client.post("/predictions/echo", content=body).content == body

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(48)))


@pytest.mark.parametrize("ending", ["finished", "abandoned"])
def test_a_body_that_stops_midway_keeps_no_other_row_of_the_model_waiting(server: ServerProcess, ending: str) -> None:
    """More of them than a slab, or all slabs, have rows."""
    rows = [typed_row(seed) for seed in range(40, 60)]
    stalled = [Connection(server) for _ in rows]
    for connection, (body, _) in zip(stalled, rows, strict=True):
        connection.send(post(body, "/predictions/checksums")[:-200_000])
    with Connection(server) as other:
        for seed in range(5):
            body, crcs = typed_row(seed)
            other.send(post(body, "/predictions/checksums"))
            assert other.answer().json == crcs
    for connection, (body, crcs) in zip(stalled, rows, strict=True):
        if ending == "finished":
            connection.send(body[-200_000:])
            assert connection.answer().json == crcs
        connection.close()
    with Connection(server) as other:
        body, crcs = typed_row(99)
        other.send(post(body, "/predictions/checksums"))
        assert other.answer().json == crcs

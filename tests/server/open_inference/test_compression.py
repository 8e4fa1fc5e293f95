"""Compressed bodies: both codings, whatever the header calls them, and nothing that grows without end."""

import gzip
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.errors import BadRequest, BodyTooLarge
from ringserve.server.open_inference.compression import UnknownCoding, chosen_coding, compressed, inflated


@given(st.lists(st.binary(), max_size=4), st.sampled_from(["gzip", "deflate"]))
def test_what_is_compressed_can_be_inflated(parts: list[bytes], coding: str) -> None:
    whole = b"".join(parts)
    packed = compressed(list(parts), coding)
    assert (gzip.decompress if coding == "gzip" else zlib.decompress)(packed) == whole
    for name in ("gzip", "Deflate "):
        assert inflated(memoryview(packed), name, len(whole)) == whole


def test_what_is_not_compressed_stays_as_it_is() -> None:
    assert inflated(b"abc", "identity", 1) == b"abc"
    assert inflated(b"abc", "", 1) == b"abc"


@pytest.mark.parametrize(
    ("body", "coding", "error"),
    [
        (b"abc", "gzip", BadRequest),
        (b"", "gzip", BadRequest),
        (gzip.compress(b"abc" * 99, mtime=0)[:-9], "gzip", BadRequest),
        (gzip.compress(b"abc", mtime=0) + b"more", "gzip", BadRequest),
        (gzip.compress(bytes(1001), mtime=0), "gzip", BodyTooLarge),
        (gzip.compress(bytes(100 << 20), 1, mtime=0), "gzip", BodyTooLarge),
        (b"abc", "br", UnknownCoding),
        (b"abc", "gzip, gzip", UnknownCoding),
    ],
)
def test_what_cannot_be_inflated_is_refused(body: bytes, coding: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        inflated(body, coding, 1000)


def test_an_unknown_coding_is_told_the_known_ones() -> None:
    assert UnknownCoding("").headers == {"Accept-Encoding": "gzip, deflate"}
    assert UnknownCoding("").http_status == 501


@pytest.mark.parametrize(
    ("accepted", "expected"),
    [
        ("", ""),
        ("gzip", "gzip"),
        ("GZIP", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate", "gzip"),
        ("deflate, gzip", "deflate"),
        ("gzip;q=0.5, deflate", "deflate"),
        ("gzip;q=0.5, identity;q=0.9", ""),
        ("identity, gzip", ""),
        ("gzip;q=0", ""),
        ("gzip; q=0.1", "gzip"),
        ("*", ""),
        ("*, gzip;q=0.5", ""),
        ("br, zstd", ""),
        ("br;q=1, gzip;q=0.2", "gzip"),
        ("gzip;q=x, deflate;q=0.1", "deflate"),
        ("gzip;q=7", ""),
        (";;,,;q=1", ""),
    ],
)
def test_the_highest_weight_wins_and_of_equal_ones_the_first(accepted: str, expected: str) -> None:
    assert chosen_coding(accepted) == expected

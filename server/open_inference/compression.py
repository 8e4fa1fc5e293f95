"""Compressed bodies of inferences: gzip, and deflate in zlib's wrapper, both ways (contract section 1.8)."""

import zlib

from ringserve.protocol.errors import BadRequest, BodyTooLarge, Unsupported

CODINGS = ("gzip", "deflate")
# A shorter answer would not be worth the client's trouble.
COMPRESSED_BYTES_MIN = 1024
_GZIP_WBITS = 16 + zlib.MAX_WBITS
_EITHER_WBITS = 32 + zlib.MAX_WBITS  # the first bytes say which of the two it is
_LEVEL = 1  # network and processor considered together


class UnknownCoding(Unsupported):
    """A content encoding that nobody here can undo."""

    headers = {"Accept-Encoding": ", ".join(CODINGS)}  # noqa: RUF012 - nobody changes it


def inflated(body: bytes | bytearray | memoryview, coding: str, limit_bytes: int) -> bytes | bytearray | memoryview:
    """The body as it was before the client compressed it. Raises `UnknownCoding`, `BadRequest` for what is not whole or not
    compressed, `BodyTooLarge` as soon as it is larger than the limit: no more than that is ever inflated."""
    name = coding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in CODINGS:
        raise UnknownCoding("Unsupported compression type")
    inflater = zlib.decompressobj(_EITHER_WBITS)
    try:
        plain = inflater.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise BadRequest(f"The body cannot be inflated as {name}: {error}") from None
    if len(plain) > limit_bytes:
        raise BodyTooLarge(
            f"Body: inflated, the request is larger than {limit_bytes} bytes, the limit max_request_size."
        )
    if not inflater.eof or inflater.unused_data:
        raise BadRequest(f"The body is not one whole {name} stream.")
    return plain


def chosen_coding(accepted: str) -> str:
    """What an `Accept-Encoding` prefers of the codings: "gzip", "deflate", or "" for none of them. The highest weight wins, of equal
    ones the first. What is not well formed counts as nothing."""
    weights: dict[str, float] = {}
    for item in accepted[:1024].split(","):
        name, _, rest = item.partition(";")
        weight = _weight(rest)
        if name.strip() and weight is not None:
            weights.setdefault(name.strip().lower(), weight)
    best, best_weight = "", 0.0
    for name, weight in weights.items():
        named = "identity" if name == "*" else name  # who takes anything has not asked for work
        if named in (*CODINGS, "identity") and weight > best_weight:
            best, best_weight = named, weight
    return "" if best == "identity" else best


def _weight(parameters: str) -> float | None:
    """1 where no `q=` says anything else; None where it says no number from 0 to 1."""
    text = parameters.strip().lower()
    if not text:
        return 1.0
    try:
        weight = float(text.removeprefix("q=")) if text.startswith("q=") else -1.0
    except ValueError:
        return None
    return weight if 0 <= weight <= 1 else None


def compressed(parts: list[bytes | bytearray | memoryview], coding: str) -> bytes:
    """All parts as one stream."""
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP_WBITS if coding == "gzip" else zlib.MAX_WBITS)
    return b"".join([*(deflater.compress(part) for part in parts), deflater.flush()])

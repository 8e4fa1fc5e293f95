"""How long a client says that it waits for its answer: the header `x-request-timeout-ms`."""

from sanic.request import Request

from ringserve.protocol.errors import BadRequest

TIMEOUT_HEADER = "x-request-timeout-ms"
TIMEOUT_MS_MAX = 2**31 - 1


def asked_timeout_ms(request: Request) -> int:
    """In milliseconds, 0 where the client does not say. Raises `BadRequest`."""
    headers = request.headers
    return timeout_ms(headers.getone(TIMEOUT_HEADER)) if TIMEOUT_HEADER in headers else 0


def timeout_ms(text: str) -> int:
    """The client's patience. Raises `BadRequest`."""
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 0 < int(text) <= TIMEOUT_MS_MAX):
        raise BadRequest(
            f"Header {TIMEOUT_HEADER}: expected a whole number from 1 to {TIMEOUT_MS_MAX}, got {text[:64]!r}."
        )
    return int(text)

"""Archives over http and https: every address is checked before it is connected to, and every redirect like a new URL.

The name is resolved once, here, and the connection goes to the address that was checked: a name that means another address
a moment later gains nothing. Proxies of the environment are not used, for they would resolve by themselves.
"""

import asyncio
import contextlib
import os
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from functools import partial
from http import HTTPStatus
from importlib.metadata import version as package_version
from ipaddress import ip_address

import httpcore

from ringserve.server.repository.allowed_urls import (
    AllowedUrls,
    BadUrl,
    HttpUrl,
    IPAddress,
    climbs,
    parse_http,
    redirected,
    shown_url,
    why_refused,
)
from ringserve.server.repository.incoming import DownloadLimits, Incoming, NotAllowed, SourceFailed
from ringserve.server.repository.threads import in_daemon_thread

REDIRECTS = (301, 302, 303, 307, 308)
ADDRESSES_MAX = 4  # of one host, tried one after the other
CAUSE_CHARS_MAX = 200
Sign = Callable[[str], Mapping[str, str]]


@contextlib.asynccontextmanager
async def open_http(
    url: str, allowed: AllowedUrls, limits: DownloadLimits, sign: Sign | None = None
) -> AsyncIterator[Incoming]:
    """The file at `url`, after redirects. Raises `SourceFailed`, also while it is read. `sign` makes the headers that prove
    who asks; they go to the first server alone."""
    first = here = _parsed(url)
    with _cause_named():
        for hop in range(limits.redirects_max + 1):
            headers = {}
            if sign is not None and here.origin == first.origin:
                headers = dict(await in_daemon_thread(partial(sign, str(here))))
            # Patterns are compared with the URL as it was given, not with our spelling of it.
            network = _CheckedNetwork(named=allowed.name(str(here) if hop else url, here.host), first_hop=hop == 0)
            async with _answer(here, headers, network, limits) as response:
                if response.status not in REDIRECTS:
                    yield _incoming(response, limits)
                    return
                here = _next_hop(here, response, allowed)
        raise SourceFailed(f"more than {limits.redirects_max} redirects")


def _parsed(url: str) -> HttpUrl:
    try:
        return parse_http(url)
    except BadUrl as error:
        raise SourceFailed(str(error)) from None


@contextlib.contextmanager
def _cause_named() -> Iterator[None]:
    try:
        yield
    except httpcore.TimeoutException as error:
        what = "no connection" if isinstance(error, httpcore.ConnectTimeout) else "nothing more came"
        raise SourceFailed(f"{what} within the time") from error
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol, ssl.SSLError) as error:
        raise SourceFailed(_first_cause(error)) from error


def _first_cause(error: BaseException) -> str:
    """What the system said, below what the libraries made of it. httpcore cuts the chain of causes, and keeps what it
    translated as its argument."""
    below = error.__cause__ or next((each for each in error.args if isinstance(each, BaseException)), None)
    if below is not None:
        return _first_cause(below)
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        words = os.strerror(error.errno)
        return words[:1].lower() + words[1:]
    return str(error)[:CAUSE_CHARS_MAX] or "the connection was lost"


def _next_hop(here: HttpUrl, response: httpcore.Response, allowed: AllowedUrls) -> HttpUrl:
    location = _header(response, b"location")
    if not location:
        raise SourceFailed(f"status {response.status} without a location")
    try:
        target = redirected(here, location)
    except BadUrl as error:
        raise SourceFailed(f"redirected to {shown_url(location)}: {error}") from None
    if climbs(str(target)) or not allowed.match(str(target)):
        raise SourceFailed(f"redirected to {shown_url(str(target))}, which does not match any allowed URL(s)")
    return target


@contextlib.asynccontextmanager
async def _answer(
    url: HttpUrl, headers: Mapping[str, str], network: httpcore.AsyncNetworkBackend, limits: DownloadLimits
) -> AsyncIterator[httpcore.Response]:
    """One request, on a connection of its own."""
    context = await in_daemon_thread(httpcore.default_ssl_context) if url.scheme == "https" else None
    sent = {
        "Host": url.netloc,
        "User-Agent": f"ringserve/{package_version('ringserve')}",
        "Accept": "*/*",
        "Accept-Encoding": "identity",  # the archive's own bytes
        "Connection": "close",
        **headers,
    }
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), min(limits.stall_s, limits.total_s))
    target = httpcore.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target)
    async with (
        httpcore.AsyncConnectionPool(ssl_context=context, max_connections=1, network_backend=network) as pool,
        pool.stream("GET", target, headers=list(sent.items()), extensions={"timeout": timeouts}) as response,
    ):
        yield response


def _incoming(response: httpcore.Response, limits: DownloadLimits) -> Incoming:
    if response.status != HTTPStatus.OK:
        phrase = response.extensions.get("reason_phrase", b"").decode("latin-1")
        raise SourceFailed(f"status {response.status} {_printable(phrase)}".rstrip())
    encoding = _header(response, b"content-encoding")
    if encoding.lower() not in ("", "identity"):
        raise SourceFailed(f"expected the file as it is, got content-encoding {_printable(encoding)}")
    length = _header(response, b"content-length")
    announced = int(length) if length.isascii() and length.isdigit() and len(length) < 20 else None
    too_large = limits.too_large(announced or 0)
    if too_large:
        raise SourceFailed(too_large)
    chunks = response.aiter_stream()
    assert hasattr(chunks, "aclose"), "httpcore gives an asynchronous generator"
    return Incoming(announced, chunks)  # type: ignore[arg-type]


def _header(response: httpcore.Response, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in response.headers if key.lower() == name), "")


def _printable(text: str) -> str:
    return "".join(each for each in text if each.isprintable())[:80]


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, and to nothing else."""

    def __init__(self, *, named: bool, first_hop: bool) -> None:
        self._named = named
        self._first_hop = first_hop
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        addresses = await _resolved(host, port, timeout)
        cause = why_refused(host, addresses, named=self._named, first_hop=self._first_hop)
        if cause is not None:
            raise NotAllowed(cause) if self._first_hop else SourceFailed(f"redirected, and {cause}")
        tried = addresses[:ADDRESSES_MAX]
        patience_s = None if timeout is None else timeout / len(tried)
        for address in tried[:-1]:
            with contextlib.suppress(httpcore.ConnectError, httpcore.ConnectTimeout):
                return await self._network.connect_tcp(str(address), port, patience_s, local_address, socket_options)
        return await self._network.connect_tcp(str(tried[-1]), port, patience_s, local_address, socket_options)


async def _resolved(host: str, port: int, timeout_s: float | None) -> list[IPAddress]:
    """All addresses of a host, each once, in the resolver's order."""
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        async with asyncio.timeout(timeout_s):
            found = await in_daemon_thread(look_up)
    except TimeoutError:
        raise SourceFailed(f"the address of {host} was not found within {timeout_s:g} s") from None
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise SourceFailed(f"{host} has no address: {why}") from None
    return list(dict.fromkeys(ip_address(entry[4][0]) for entry in found))

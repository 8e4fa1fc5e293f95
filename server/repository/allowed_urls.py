"""Which remote URLs may be fetched: the patterns of `allowed_urls`, and a rule about addresses. Pure: nothing is resolved or
opened here.

A pattern like `https://.*` means the internet, not the networks this machine happens to be in. So a host whose address is
not a public one is reached only where a pattern names that host; a machine's metadata service only where a pattern names
its address.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import SplitResult, quote, unquote, urljoin, urlsplit

from ringserve.server.repository.archive import ACCEPTED_SUFFIXES

IPAddress = IPv4Address | IPv6Address

REMOTE = re.compile(r"(?:https?|s3|file):", re.IGNORECASE)
URL_CHARS_MAX = 8192  # presigned URLs have about 2,000
SHOWN_CHARS_MAX = 300
NAME_BYTES_MAX = 220  # a file name may have 255; the rest is for a temporary name
DEFAULT_PORTS = {"http": 80, "https": 443}
# How a user who means this machine writes it. Other spellings (127.1, 2130706433, localhost.) are those of tricks.
LOOPBACK_NAMES = ("127.0.0.1", "::1", "localhost")
# Where clouds tell a machine its credentials; link-local addresses besides.
METADATA = frozenset(
    ip_address(text) for text in ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "fd20:ce::254")
)
GLOBAL_UNICAST = IPv6Network("2000::/3")
NAT64 = IPv6Network("64:ff9b::/96")

_HOST = re.compile(r"[A-Za-z0-9._-]+")
# A host as a pattern spells it: characters that stand for themselves, and a dot whether escaped or not.
_NAMED = re.compile(
    r":(?:\\?/){2}((?:\\?[.-]|\w)(?:(?:\\?[.-]|\w)(?![?*+{]))*|\\\[[0-9A-Fa-f:.]+\\\])(?=$|\\?[/:]|[()|$]|\.[*+])",
    re.ASCII,
)
_USER_INFO = re.compile(r"^([a-z0-9+.-]+:[/\\]*)[^/\\?#]*@", re.IGNORECASE)


class BadUrl(Exception):
    """The URL is not one that can be fetched; the message says what was expected and what came."""


class AllowedUrls:
    """The patterns: regular expressions that a whole URL matches, in any case, as in TorchServe. None of them: nothing."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        """Raises `ValueError` naming the pattern that is no regular expression."""
        self._patterns = [(_compiled(text), frozenset(_named_hosts(text))) for text in patterns]

    def match(self, url: str) -> bool:
        # Some patterns take time that grows with the square of the length.
        return len(url) <= URL_CHARS_MAX and any(pattern.fullmatch(url) for pattern, _ in self._patterns)

    def name(self, url: str, host: str) -> bool:
        """Whether a pattern that matches names this very host."""
        return any(host in hosts and pattern.fullmatch(url) for pattern, hosts in self._patterns)


def _compiled(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"expected regular expressions separated by commas, got {text!r} ({error})") from None


def _named_hosts(pattern: str) -> list[str]:
    if "(?!" in pattern or "(?<!" in pattern:
        return []  # what it spells out may be what it keeps out
    return [match[1].replace("\\", "").strip("[]").lower() for match in _NAMED.finditer(pattern)]


# ---- addresses


def why_refused(host: str, addresses: Sequence[IPAddress], *, named: bool, first_hop: bool) -> str | None:
    """Why a host with these addresses may not be connected to; None when it may be.

    `host` is as the URL spells it, in lower case, an IPv6 address without its brackets. `named`: a pattern that matches the
    URL names it. `first_hop`: the URL is the client's own, not one that a server redirects to.
    """
    if not addresses:
        return f"{host} has no address"
    if first_hop and host in LOOPBACK_NAMES and all(address.is_loopback for address in addresses):
        return None
    for address in addresses:
        meant = _meant(address)
        shown = host if host == str(address) else f"{host} ({address})"
        if (meant.is_link_local or meant in METADATA) and not (named and host == str(address)):
            return f"{shown} is a link-local or metadata address, which allowed_urls has to name"
        if not named and not is_public(meant):
            return f"{shown} is not a public address, and no entry of allowed_urls that matches names this host"
    return None


def is_public(address: IPAddress) -> bool:
    """Whether an address means a host on the internet, whatever it is wrapped in."""
    address = _meant(address)
    if isinstance(address, IPv6Address) and address not in GLOBAL_UNICAST:
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def _meant(address: IPAddress) -> IPAddress:
    """The IPv4 address that a mapped, 6to4 or NAT64 address leads to."""
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address in NAT64:
            inner = IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return inner
    return address


# ---- URLs


@dataclass(frozen=True, slots=True)
class HttpUrl:
    """One http or https URL as it is sent. `host` is in lower case, an IPv6 address without its brackets."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def netloc(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> tuple[str, str, int]:
        return self.scheme, self.host, self.port

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.target}"


def parse_http(url: str) -> HttpUrl:
    """Raises `BadUrl`. What two readers of a URL may understand differently is refused, not repaired."""
    parts = _split(url)
    try:
        port = parts.port
    except ValueError as error:
        raise BadUrl(f"expected http(s)://host/path ({error})") from None
    scheme = parts.scheme.lower()
    if scheme not in DEFAULT_PORTS:
        raise BadUrl(f"expected http or https, got {scheme!r}")
    if "@" in parts.netloc:
        raise BadUrl("expected a URL without user name and password")
    host = (parts.hostname or "").lower()
    if not (_is_ipv6(host) if parts.netloc.startswith("[") else _HOST.fullmatch(host)):
        raise BadUrl(f"expected a host name of letters, digits, dots and dashes, got {host!r:.100}")
    path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    query = "?" + quote(parts.query, safe="/%:@!$&'()*+,;=~-._?") if parts.query else ""
    return HttpUrl(scheme, host, DEFAULT_PORTS[scheme] if port is None else port, path + query)


def redirected(url: HttpUrl, location: str) -> HttpUrl:
    """Where a server sends us. Raises `BadUrl` when that is nowhere, or takes TLS away."""
    check_characters(location)
    try:
        target = urljoin(str(url), location)
    except ValueError as error:
        raise BadUrl(f"a redirect to no URL ({error})") from None
    found = parse_http(target)
    if url.scheme == "https" and found.scheme == "http":
        raise BadUrl("a redirect from https to http")
    return found


def parse_file(url: str) -> str:
    """The absolute path of a `file:` URL. Raises `BadUrl`."""
    parts = _split(url)
    path = unquote(parts.path)
    if parts.netloc.lower() not in ("", "localhost"):
        raise BadUrl(f"expected file:///path on this machine, got the host {parts.netloc!r:.100}")
    if not path.startswith("/") or "\0" in path or parts.query or parts.fragment:
        raise BadUrl("expected file:///path, an absolute one without query and fragment")
    return path


def parse_s3(url: str) -> tuple[str, str]:
    """Bucket and key. Raises `BadUrl`."""
    check_characters(url)
    match = re.fullmatch(r"s3://([A-Za-z0-9._:-]{1,255})/([^?#]+)", url, re.IGNORECASE)
    if match is None:
        raise BadUrl("expected s3://bucket/key")
    return match[1], match[2]


def _split(url: str) -> SplitResult:
    check_characters(url)
    try:
        return urlsplit(url)
    except ValueError as error:
        raise BadUrl(f"expected scheme://host/path ({error})") from None


def check_characters(url: str) -> None:
    """Raises `BadUrl`. Parsers drop some characters and read others as `/`; patterns do not."""
    if len(url) > URL_CHARS_MAX:
        raise BadUrl(f"expected a URL of at most {URL_CHARS_MAX} characters, got {len(url)}")
    if not url.isprintable() or " " in url or "\\" in url:
        raise BadUrl("expected a URL without blanks, backslashes and control characters")


def file_name(url: str) -> str:
    """The name in the model store: the last component of the URL's path, as it is spelt. Raises `BadUrl`."""
    name = _split(url).path.rpartition("/")[2]
    if name.startswith(".") or not name.lower().endswith(ACCEPTED_SUFFIXES):
        raise BadUrl(f"expected a file name that ends in {' or '.join(ACCEPTED_SUFFIXES)}, got {name!r:.100}")
    if len(name.encode()) > NAME_BYTES_MAX:
        raise BadUrl(f"expected a file name of at most {NAME_BYTES_MAX} bytes, got {len(name.encode())}")
    return name


def climbs(url: str) -> bool:
    """Whether it holds `..`, plainly or encoded: a server may read more into a path than a pattern saw."""
    return ".." in url or ".." in unquote(url.partition("?")[0])


def shown_url(url: str) -> str:
    """For messages, logs and listings: without password, and without a query, which may be a signature."""
    return shortened(_without_secrets(url))


def shown_location(text: str) -> str:
    """What a client gave as the place of an archive, for listings: a name of the store as it is, anything like a URL without its
    secrets."""
    return _without_secrets(text) if "://" in text else text


def shortened(text: str) -> str:
    """On one line of a log, and no longer than one wants to read."""
    shown = "".join(each if each.isprintable() else repr(each)[1:-1] for each in text[: SHOWN_CHARS_MAX + 1])
    return shown if len(text) <= SHOWN_CHARS_MAX else f"{shown[:SHOWN_CHARS_MAX]}…"


def _without_secrets(url: str) -> str:
    base, query, _ = url.partition("#")[0].partition("?")
    return _USER_INFO.sub(r"\1***@", base.lstrip()) + ("?***" if query else "")


def _is_ipv6(text: str) -> bool:
    try:
        return isinstance(ip_address(text), IPv6Address)
    except ValueError:
        return False

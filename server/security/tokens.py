"""Who may use what: keys, shown as `Authorization: Bearer <key>`, and the planes that they open (contract section 4).

Pure: what a request brings and the time come in, yes or no goes out. A comparison costs the same wherever the two differ.
"""

import re
from collections.abc import Mapping, Sequence
from enum import StrEnum
from hmac import compare_digest

from ringserve.protocol.errors import InvalidKey
from ringserve.server.control import Credential


class Plane(StrEnum):
    """What one key opens. The values are the words of `key_file.json`."""

    INFERENCE = "inference"
    MANAGEMENT = "management"
    API = "API"  # making new keys for the other two


REFUSED = "Token Authorization failed. Token either incorrect, expired, or not provided correctly"
NOT_RENEWED = "Token Authentication failed. Token either incorrect, expired, or not provided correctly"
TOKEN_PATH = "/token"
METRICS_PATH = "/metrics"
KEY_CHARACTERS_MIN, KEY_CHARACTERS_MAX = 8, 1024
_KEY = re.compile(r"[\x21-\x7e]*")
_BEARER = re.compile(rb"Bearer[ \t]+(\S+)[ \t]*")  # the word is case-sensitive, as in TorchServe
# Describing the API and being alive is for everybody.
_OPEN = frozenset(("", "/api-description"))
_OPEN_PREFIX = "/health/"
NEVER_S = float("-inf")


def key_problem(key: str) -> str | None:
    """Why this cannot be a key, without saying what it is; None when it can."""
    if not KEY_CHARACTERS_MIN <= len(key) <= KEY_CHARACTERS_MAX:
        return f"expected {KEY_CHARACTERS_MIN} to {KEY_CHARACTERS_MAX} characters, got {len(key)}"
    if not _KEY.fullmatch(key):
        return "expected printable ASCII characters without blanks, got others"
    return None


class Gate:
    """One plane's: lets in who shows one of its credentials. The first is the one that nearly everybody shows."""

    __slots__ = ("_bearers", "_first", "_first_until_s")

    def __init__(self, credentials: Sequence[Credential] = ()) -> None:
        self._bearers = [(b"Bearer " + each.key.encode(), each.until_s) for each in credentials]
        self._first, self._first_until_s = self._bearers[0] if self._bearers else (b"", NEVER_S)

    def admits(self, authorization: bytes, now_s: float) -> bool:
        """`authorization` is the header's value, empty where there is none; `now_s` counts from 1970."""
        if compare_digest(authorization, self._first) and now_s < self._first_until_s:
            return True
        return self._admits_otherwise(authorization, now_s)

    def _admits_otherwise(self, authorization: bytes, now_s: float) -> bool:
        """With more blanks, or by another credential. Every one is compared with, whatever came."""
        match = _BEARER.fullmatch(authorization)
        shown = b"Bearer " + match[1] if match else b""
        admitted = False
        for bearer, until_s in self._bearers:
            admitted |= compare_digest(shown, bearer) & (now_s < until_s)
        return admitted


class Gates:
    """The gates of one listener, which is `own`'s; with `both` it takes what is management's as well. With `metrics` it serves those
    too, to everybody."""

    def __init__(self, own: Plane, *, both: bool = False, metrics: bool = False) -> None:
        self._own = own
        self._both = both
        self._open_prefixes = (_OPEN_PREFIX, METRICS_PATH + "/") if metrics else (_OPEN_PREFIX,)
        self._open = _OPEN | {METRICS_PATH} if metrics else _OPEN
        self._gates = {plane: Gate() for plane in Plane}

    def set(self, credentials: Mapping[Plane, Sequence[Credential]]) -> None:
        """From now on these open the planes, and nothing else does."""
        self._gates = {plane: Gate(credentials.get(plane, ())) for plane in Plane}

    def of(self, plane: Plane) -> Gate:
        return self._gates[plane]

    def plane(self, path: str, *, managements: bool) -> Plane | None:
        """Whose key a request for this path needs, None for nobody's; `managements`: on a listener of both, whether it is passed on."""
        bare = path.rstrip("/")
        if bare in self._open or path.startswith(self._open_prefixes):
            return None
        if bare == TOKEN_PATH and (self._both or self._own is Plane.MANAGEMENT):
            return Plane.API
        return Plane.MANAGEMENT if self._both and managements else self._own

    def check(self, path: str, authorization: bytes, now_s: float, *, managements: bool = False) -> None:
        """Raises `InvalidKey`."""
        plane = self.plane(path, managements=managements)
        if plane is not None and not self._gates[plane].admits(authorization, now_s):
            raise InvalidKey(NOT_RENEWED if plane is Plane.API else REFUSED)

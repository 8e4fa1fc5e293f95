"""Pages of other origins: the headers that let browsers hand them our answers (contract section 1.1), and who asks beforehand.

A browser asks with OPTIONS, and without a token, whether a page may send what it is about to send. TorchServe takes that for any
other request (contract section 15, 20)."""

import re
from collections.abc import Mapping

from ringserve.server.settings import ConfigError, Settings

ORIGIN = "access-control-allow-origin"
_VALUE = re.compile(r"[\t\x20-\x7e]*")


def cors_headers(settings: Settings) -> dict[str, str]:
    """What every response says besides; nothing where nothing is configured. Raises `ConfigError`."""
    wanted = {
        "cors_allowed_origin": (ORIGIN, settings.cors_allowed_origin),
        "cors_allowed_methods": ("access-control-allow-methods", settings.cors_allowed_methods),
        "cors_allowed_headers": ("access-control-allow-headers", settings.cors_allowed_headers),
    }
    for key, (_, value) in wanted.items():
        if not _VALUE.fullmatch(value):
            raise ConfigError(f"{key}: expected printable ASCII characters, got {value!r}")
    return {name: value for name, value in wanted.values() if value}


def answers_preflights(headers: Mapping[str, str]) -> bool:
    """Whether the headers of every response tell a browser what it asks beforehand; without an origin they do not."""
    return ORIGIN in headers


def is_preflight(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a browser asks on behalf of a page."""
    return method == "OPTIONS" and "origin" in headers and "access-control-request-method" in headers

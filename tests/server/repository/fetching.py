"""Fetching from a source of a test into a folder: what came, or the sentence that says why nothing did."""

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from ringserve.protocol.errors import DownloadFailed, RingServeError
from ringserve.server.repository.incoming import DownloadLimits
from ringserve.server.repository.remote import Fetched, RemoteSources

BODY = os.urandom(300_000)
ANY = ("https?://.*", "file://.*")
LIMITS = DownloadLimits(bytes_max=1_000_000, total_s=20, stall_s=10)


def fetch(
    url: str, store: Path, patterns: tuple[str, ...] = ANY, limits: DownloadLimits = LIMITS, **more: Any
) -> Fetched:
    return asyncio.run(RemoteSources(patterns, limits).fetch(url, store, **more))


def refused(kind: type[RingServeError], url: str, store: Path, *more: Any) -> str:
    """The message; and nothing is left in the store."""
    before = sorted(store.iterdir())
    with pytest.raises(kind) as caught:
        fetch(url, store, *more)
    assert type(caught.value) is kind
    assert sorted(store.iterdir()) == before
    return caught.value.message


def failure(url: str, store: Path, *more: Any) -> str:
    """The cause that a failed download names, after TorchServe's sentence."""
    message = refused(DownloadFailed, url, store, *more)
    start = f"Failed to download archive from: {url} ("
    assert message.startswith(start)
    return message.removeprefix(start).removesuffix(")")

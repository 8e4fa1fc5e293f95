"""What all remote sources have in common: a length, bytes as they come, limits, and failures that say why."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass

MIB = 1 << 20
CHUNK_BYTES = MIB
PROGRESS_S = 5.0
PROGRESS_S_MIN = 1.0
PROGRESS_SHARE = 0.1


class SourceFailed(Exception):
    """The source could not be read; the message says why, in words for the client."""


class NotAllowed(SourceFailed):
    """The URL itself means what may not be read."""


@dataclass(frozen=True, slots=True)
class DownloadLimits:
    """How much and how long. `stall_s` bounds connecting, and every wait for more bytes."""

    bytes_max: int = 16 << 30
    total_s: float = 600.0
    stall_s: float = 20.0
    redirects_max: int = 5

    def too_large(self, size_bytes: int) -> str | None:
        if size_bytes <= self.bytes_max:
            return None
        return f"{size_bytes:,} bytes, and max_model_download_bytes is {self.bytes_max:,}"


@dataclass(frozen=True, slots=True)
class Incoming:
    """A file on its way. `bytes_announced` is None where the source does not say."""

    bytes_announced: int | None
    chunks: AsyncGenerator[bytes, None]


class Progress:
    """When to say how far it is: every five seconds, and sooner for every tenth of the whole."""

    def __init__(self, bytes_announced: int | None, now_s: float) -> None:
        self._whole = bytes_announced
        self._said_bytes = 0
        self._said_s = now_s

    def line(self, received_bytes: int, now_s: float) -> str | None:
        """What to say now, if anything."""
        waited_s = now_s - self._said_s
        tenth = self._whole and received_bytes - self._said_bytes >= PROGRESS_SHARE * self._whole
        if waited_s < (PROGRESS_S_MIN if tenth else PROGRESS_S):
            return None
        self._said_bytes, self._said_s = received_bytes, now_s
        if not self._whole:
            return f"{received_bytes / MIB:.1f} MiB"
        return f"{received_bytes / MIB:.1f} of {self._whole / MIB:.1f} MiB ({received_bytes / self._whole:.0%})"

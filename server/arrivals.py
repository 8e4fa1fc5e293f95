"""Bodies on their way to a version. One that leaves the routes waits for them, so that no request which found it is refused; but
not for ever, because a client may send as slowly as it likes."""

import asyncio
from collections.abc import Callable

LEAVING_S_MAX = 15.0


class Arrivals:
    """Counts them. `on_none` is called when the last one has ended, and when nobody waits for the others any longer."""

    __slots__ = ("_count", "_on_none", "_patient")

    def __init__(self, on_none: Callable[[], None]) -> None:
        self._count = 0
        self._patient = True
        self._on_none = on_none

    @property
    def awaited(self) -> bool:
        return self._patient and self._count > 0

    def begin(self) -> None:
        self._count += 1

    def end(self) -> None:
        assert self._count > 0
        self._count -= 1
        if not self._count:
            self._on_none()

    def limit(self) -> None:
        """The version has left the routes."""
        if self._count:
            asyncio.get_running_loop().call_later(LEAVING_S_MAX, self._give_up)

    def _give_up(self) -> None:
        self._patient = False
        self._on_none()

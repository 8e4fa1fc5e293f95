"""Where models whose `execute` is a coroutine function run: an event loop in a thread of its own, as Triton has it.

Tasks that such a model begins go on there after `execute` has returned, which is how it answers several requests at the same time.
"""

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any

STOP_S_MAX = 5.0  # that a worker waits for a model's task which does not give way


class EventLoop:
    """Its thread begins with the first coroutine."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """What the coroutine returns. Raises what it raises."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=_serve, args=(self._loop,), name="triton-model", daemon=True)
            self._thread.start()
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def stop(self) -> None:
        """Let the thread end. Tasks that have not ended are left where they are."""
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(STOP_S_MAX)
            self._loop = self._thread = None


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()

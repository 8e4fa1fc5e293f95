"""The answers of a model as server-sent events, sent while they are being made (protocol/request.py: `Source`)."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable

from ringserve.server.open_inference.call import InferResult
from ringserve.server.open_inference.generate import event, generated

# So many answers may wait for a client that reads slowly; then the model waits.
WAITING_MAX = 16

ErrorText = Callable[[BaseException], bytes]


class Events:
    """One event for each answer that has outputs. `error_text` makes the JSON of an error."""

    __slots__ = ("_error_text", "_results", "_room", "_task", "_waiting", "broken", "ended", "length", "on_change")

    def __init__(self, results: AsyncIterator[InferResult], error_text: ErrorText) -> None:
        self._results = results
        self._error_text = error_text
        self._waiting: deque[bytes] = deque()
        self._room = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self.length: int | None = None
        self.ended = self.broken = False
        self.on_change: Callable[[], None] = _nobody

    async def begin(self) -> None:
        """Wait for the first answer, or the end. Raises what the model raises before it."""
        try:
            if await self._take():
                self._task = asyncio.ensure_future(self._go_on())
            else:
                self.ended = True
        except BaseException:
            await _closed(self._results)
            raise

    async def _take(self) -> bool:
        """One more event; false at the end."""
        async for result in self._results:
            if result.outputs:
                self._waiting.append(event(generated(result)))
                return True
        return False

    async def _go_on(self) -> None:
        try:
            while await self._take():
                self.on_change()
                while len(self._waiting) >= WAITING_MAX:
                    self._room.clear()
                    await self._room.wait()
        except Exception as error:  # noqa: BLE001 - the status is long said, whatever it was
            self._waiting.append(event(self._error_text(error)))
        finally:
            await _closed(self._results)
        self.ended = True
        self.on_change()

    def next(self) -> bytes | None:
        if not self._waiting:
            return None
        self._room.set()
        return self._waiting.popleft()

    def close(self) -> None:
        """Nobody listens any more: the model is told."""
        self._waiting.clear()
        task, self._task = self._task, None
        if task is not None:
            task.cancel()


async def _closed(results: AsyncIterator[InferResult]) -> None:
    closing = getattr(results, "aclose", None)
    if closing is not None:
        await closing()


def _nobody() -> None:
    """Nobody listens yet."""

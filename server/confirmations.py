"""Who waits for which word of which front end.

A word is a tuple: the type of a message, the front end, and what else tells it from others of that type. It comes, or the front
end goes, or it takes too long; nobody waits for ever.
"""

import asyncio
from collections.abc import Awaitable

from ringserve.server.control import FrontEndReady

Word = tuple[object, ...]


class Confirmations:
    def __init__(self) -> None:
        self._waiters: dict[Word, asyncio.Future[object]] = {}

    def __contains__(self, word: Word) -> bool:
        """Whether somebody waits for it."""
        return word in self._waiters

    def expect(self, word: Word, timeout_s: float) -> Awaitable[object | None]:
        """What comes with it; None when it does not come in time. Expect before asking."""
        waiter = self._waiters[word] = asyncio.get_running_loop().create_future()

        async def outcome() -> object | None:
            try:
                return await asyncio.wait_for(waiter, timeout_s)
            except TimeoutError:
                return None
            finally:
                if self._waiters.get(word) is waiter:
                    del self._waiters[word]

        return outcome()

    def came(self, word: Word, value: object = True) -> None:
        waiter = self._waiters.get(word)
        if waiter is not None and not waiter.done():
            waiter.set_result(value)

    def front_end_gone(self, index: int) -> None:
        """It will confirm nothing any more: what was asked ended with it. Only that it is ready will not become true."""
        for word in [each for each in self._waiters if each[1] == index]:
            self.came(word, None if word[0] is FrontEndReady else True)

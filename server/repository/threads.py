"""Calls that may hang (a resolver, a network file system), in threads that nobody has to wait for.

`asyncio.to_thread` has a few threads, and the process cannot end before all of them have: one hung call is one less for
everybody, and keeps a server from stopping.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(call: Callable[[], T]) -> T:
    """What `call` returns or raises. Cancelled, it returns at once, and the thread ends when it can."""
    run, future = _answering(call)
    threading.Thread(target=run, name="ringserve-call", daemon=True).start()
    return await future


def _answering(call: Callable[[], T]) -> tuple[Callable[[], None], "asyncio.Future[T]"]:
    """What a thread has to run, and the future of the running loop that is told how it ended."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(act: Callable[[], None]) -> None:
        if not future.done():
            act()

    def run() -> None:
        act: Callable[[], None]
        try:
            act = partial(future.set_result, call())
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the caller's
            act = partial(future.set_exception, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, act)

    return run, future


class ThreadOfOne:
    """Something that has to be closed, and the thread that all calls on it run in. The thread closes it too, after the call
    that it may be hanging in: a descriptor closed by another one could by then be another file's."""

    def __init__(self, close: Callable[[], None]) -> None:
        self._close = close
        self._calls: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._started = False
        self._closed = False

    async def use(self, call: Callable[[], T]) -> T:
        """One call after the other. Raises what it raises."""
        assert not self._closed, "used after it was closed"
        run, future = _answering(call)
        self._calls.put(run)
        self._start()
        return await future

    def close(self) -> None:
        """At once, or when the thread is out of its call; nobody waits."""
        if not self._closed:
            self._closed = True
            self._calls.put(None)
            self._start()

    def _start(self) -> None:
        if not self._started:
            self._started = True
            threading.Thread(target=self._serve, name="ringserve-file", daemon=True).start()

    def _serve(self) -> None:
        while (run := self._calls.get()) is not None:
            run()
        self._close()

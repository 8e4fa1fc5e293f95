"""Being told to stop: by a signal, or by what happens. A second signal does not want to wait for anything."""

import asyncio
import contextlib
import signal
from collections.abc import Callable, Coroutine, Iterator

# SIGHUP: a terminal has closed, which `nohup` keeps from us.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class StopRequest:
    """`asked` is set by the first signal or by `ask`, `hurry` by the second signal. `on_signal` is called at once for each of them,
    `on_asked` for each time that somebody asks."""

    def __init__(self, on_signal: Callable[[], None], on_asked: Callable[[], None]) -> None:
        self.asked = asyncio.Event()
        self.hurry = asyncio.Event()
        self._on_signal = on_signal
        self._on_asked = on_asked
        self._signalled = False

    def obey_signals(self) -> None:
        """Not by the loop's own handlers: they end with it, and for a moment the system's would be back, which kill."""
        loop = asyncio.get_running_loop()

        def signalled(number: int, frame: object) -> None:
            with contextlib.suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(self._obey)

        for number in STOP_SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, signalled)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)

    def _obey(self) -> None:
        if self._signalled:
            self.hurry.set()
        self._signalled = True
        self._on_signal()
        self.ask()

    def ask(self) -> None:
        """Without a signal: the next one is the first."""
        self.asked.set()
        self._on_asked()

    async def unless(self, work: Coroutine[None, None, None]) -> None:
        """Archives and packages may take their time: who wants us to end does not wait for them."""
        task, stop = asyncio.ensure_future(work), asyncio.ensure_future(self.asked.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def ignore_stop_signals() -> None:
    """One more must not spoil the exit code, nor leave the PID file."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def holding_stop_signals() -> Iterator[None]:
    """Until `obey_signals` lets them pass: killed before that, we would leave the PID file."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

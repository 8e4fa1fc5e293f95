"""Clients that ask time and again and never retry: what they lose is lost."""

import http.client
import random
import threading
import time
from collections import Counter
from types import TracebackType
from typing import Self

# Whether a client keeps its connection, and how many seconds at most it waits between an answer and its next request.
HABITS = ((True, 0.002), (True, 0.02), (True, 0.2), (True, 0.2), (False, 0.005), (False, 0.02))


class Persistent:
    """One thread a habit. `lost` holds what happened to requests that got no answer, `statuses` counts the answers; who is refused
    a connection goes away, and is in `refused`."""

    def __init__(self, url: str, path: str) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._address, self._path = (host, int(port)), path
        self.statuses: Counter[int] = Counter()
        self.closing = 0  # answers that were the last ones of their connections
        self.lost: list[str] = []
        self.refused = 0
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=habit) for habit in HABITS]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    @property
    def answered(self) -> int:
        return sum(self.statuses.values())

    @property
    def clients_left(self) -> int:
        return sum(thread.is_alive() for thread in self._threads)

    def _ask(self, keeps: bool, pause_s_max: float) -> None:
        connection: http.client.HTTPConnection | None = None
        while not self._enough.is_set():
            if connection is None:
                connection = http.client.HTTPConnection(*self._address, timeout=30)
                try:
                    connection.connect()
                except OSError:
                    self.refused += 1
                    return
            try:
                connection.request("POST", self._path, b"x")
                response = connection.getresponse()
                response.read()
            except (OSError, http.client.HTTPException) as error:
                self.lost.append(f"{keeps} {pause_s_max}: {error!r}")
                return
            self.statuses[response.status] += 1
            if response.getheader("connection") == "close" or not keeps:
                self.closing += keeps
                connection.close()
                connection = None
            time.sleep(random.random() * pause_s_max)
        if connection is not None:
            connection.close()

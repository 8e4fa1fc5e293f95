"""What a model says of itself, for `GET /models/{m}?customized=true` (contract section 2.5): the supervisor's half of
server/describing.py.
"""

import asyncio
import itertools
from collections.abc import Callable

from ringserve.protocol.errors import RingServeError, WorkerLost, error_from
from ringserve.server.control import AskDescription, Description


class Descriptions:
    """Who waits for which worker's answer. A worker is asked one thing at a time: whoever asks meanwhile shares the answer."""

    def __init__(self) -> None:
        self._tokens = itertools.count(1)
        self._asked: dict[str, tuple[int, asyncio.Future[bytes | None]]] = {}  # by worker

    async def ask(self, worker_id: str, send: Callable[[AskDescription], None], timeout_s: float) -> bytes | None:
        """The JSON text of the model's answer, None when it gave none. `timeout_s` 0 waits as long as it takes. Raises
        `TimeoutError`, `WorkerLost`, or what the model's failure was."""
        token, answer = self._asked.get(worker_id, (0, None))
        if answer is None:
            token, answer = next(self._tokens), asyncio.get_running_loop().create_future()
            self._asked[worker_id] = (token, answer)
            send(AskDescription(token, timeout_s))
        return await asyncio.wait_for(asyncio.shield(answer), timeout_s or None)

    def heard(self, worker_id: str, said: Description) -> None:
        token, answer = self._asked.get(worker_id, (0, None))
        if answer is None or token != said.token:
            return
        del self._asked[worker_id]
        if said.error is None:
            answer.set_result(said.text)
        else:
            self._fail(answer, error_from(said.error.code, said.error.message, said.status))

    def lost(self, worker_id: str, cause: str) -> None:
        """The worker has ended."""
        _, answer = self._asked.pop(worker_id, (0, None))
        if answer is not None:
            self._fail(answer, WorkerLost(cause))

    @staticmethod
    def _fail(answer: "asyncio.Future[bytes | None]", error: RingServeError) -> None:
        answer.set_exception(error)
        answer.exception()  # whoever asked may have stopped waiting; that is not an unhandled error

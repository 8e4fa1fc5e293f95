"""Clients that ask one model after another request without a pause, and count what comes."""

import threading
from collections import Counter
from typing import Self

import httpx

ANSWER_S_MAX = 30.0


class Asking:
    """Asks from `with` to its end. `answers` are counted by their text, or by their status where that is an error."""

    def __init__(self, inference_url: str, model: str, *, clients: int = 1) -> None:
        self.answers: Counter[str] = Counter()
        self._url = f"{inference_url}/predictions/{model}"
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._be_client) for _ in range(clients)]

    def _be_client(self) -> None:
        with httpx.Client(timeout=ANSWER_S_MAX, trust_env=False) as client:
            while not self._stopping.is_set():
                response = client.post(self._url)
                self.answers[response.text if response.status_code == 200 else str(response.status_code)] += 1

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

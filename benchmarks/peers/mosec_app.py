"""The two models for mosec.

python mosec_app.py echo --port PORT
python mosec_app.py mlp WEIGHTS WAIT_MS --port PORT
"""

import json
import os
import sys
from typing import Any

from mosec import Server, Worker  # type: ignore[import-not-found]  # in an environment of its own

WEIGHTS = "BENCHMARK_WEIGHTS"  # to the process of the worker


class Echo(Worker):  # type: ignore[misc]
    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: bytes) -> bytes:
        return data


class Mlp(Worker):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        import torch

        torch.set_num_threads(1)
        self._torch = torch
        self._model = torch.jit.load(os.environ[WEIGHTS]).eval()  # type: ignore[no-untyped-call]

    def deserialize(self, data: bytes) -> Any:
        return self._torch.frombuffer(bytearray(data), dtype=self._torch.float32)

    def serialize(self, data: list[float]) -> bytes:
        return json.dumps(data).encode()

    def forward(self, data: list[Any]) -> list[list[float]]:
        with self._torch.inference_mode():
            rows: list[list[float]] = self._model(self._torch.stack(data)).tolist()
        return rows


def main() -> None:
    server = Server()
    if sys.argv.pop(1) == "echo":
        server.append_worker(Echo, num=1)
    else:
        os.environ[WEIGHTS] = sys.argv.pop(1)
        server.append_worker(Mlp, num=1, max_batch_size=32, max_wait_time=int(sys.argv.pop(1)))
    server.run()  # reads its own options from the command line


if __name__ == "__main__":
    main()

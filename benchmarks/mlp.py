"""The model of the benchmark, 784-512-512-10 on one thread, its requests and the right answers; and ceiling 2, the
model alone, in this process.
"""

import time
from pathlib import Path

import msgspec
import numpy as np
import torch
from torch import nn

from benchmarks.contestants import Archive
from benchmarks.loader import Answer

NAME = "mlp"
WIDTHS = (784, 512, 512, 10)
SEED = 0
BODIES = 16  # distinct requests, so that an answer given to the wrong client is a wrong answer
CONFIG = f"""\
backend: torchscript
inputs:
  - {{name: x, dtype: float32, shape: [{WIDTHS[0]}]}}
outputs:
  - {{name: y, dtype: float32, shape: [{WIDTHS[-1]}]}}
minWorkers: 1
maxWorkers: 1
batchSize: 32
maxBatchDelay: 2
"""


class Mlp(nn.Module):
    """Three layers with a ReLU between."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third, last = WIDTHS
        self.layers = nn.Sequential(
            nn.Linear(first, second), nn.ReLU(), nn.Linear(second, third), nn.ReLU(), nn.Linear(third, last)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.layers(x)
        return y


class Case(msgspec.Struct, frozen=True):
    """The saved model, requests to it and what they must be answered with."""

    weights: Path
    bodies: list[bytes]
    answers: list[Answer]


def archive(case: Case) -> Archive:
    """The typed model, for our server."""
    return Archive(NAME, CONFIG, weights=case.weights)


def make(directory: Path) -> Case:
    """Write the TorchScript file; the same weights and requests every time."""
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    weights = directory / "mlp.pt"
    scripted = torch.jit.script(Mlp().eval())
    torch.jit.save(scripted, str(weights))
    # Centred rows: the answers then differ by far more than the tolerance they are compared with.
    rows = np.random.default_rng(SEED).standard_normal((BODIES, WIDTHS[0]), dtype=np.float32)
    with torch.inference_mode():
        answers: list[Answer] = [scripted(torch.from_numpy(row[None]))[0].tolist() for row in rows]
    return Case(weights, [row.astype("<f4").tobytes() for row in rows], answers)


def rows_per_s(weights: Path, batch_size: int, seconds: float) -> float:
    """How many rows a second the worker's model computes with nothing around it."""
    assert torch.get_num_threads() == 1
    model = torch.jit.load(str(weights)).eval()  # type: ignore[no-untyped-call]
    batch = torch.rand(batch_size, WIDTHS[0])
    with torch.inference_mode():
        for _ in range(20):  # TorchScript specialises itself on its first calls
            model(batch)
        rows = 0
        start_s = time.perf_counter()
        while time.perf_counter() - start_s < seconds:
            model(batch)
            rows += batch_size
        return rows / (time.perf_counter() - start_s)

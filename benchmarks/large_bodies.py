"""Experiment: 602 112 bytes in and the same out (an image of 3 x 224 x 224 float32), with and without what is done for large
bodies.

Two things are, and each is switched off for comparison: bodies go straight between sockets and shared memory, and processes keep
the memory of large buffers instead of getting it anew from the kernel for every request. With neither, the server is as it was
before there was either.
"""

from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np

from benchmarks import contestants
from benchmarks.contestants import ROOT, Archive, Target
from benchmarks.loader import Answer, Load
from benchmarks.measuring import Conditions, job_for, measure, warm_up
from benchmarks.report import Ratio, load_columns, rates, ratio

NAME = "echo"
BODY_BYTES = 602_112
BODIES = 4  # distinct requests, so that an answer given to the wrong client is a wrong answer
CONNECTIONS = (1, 8)
GOAL = 2.5
COPIED = {"RINGSERVE_SOCKET_TO_SLAB": "0"}
NEITHER = {**COPIED, "RINGSERVE_KEEP_MEMORY": "0"}
CONFIG = "minWorkers: 1\nmaxWorkers: 1\nbatchSize: 1\n"
ARCHIVE = Archive(NAME, CONFIG, handler=str(ROOT / "benchmarks" / "handlers" / "echo.py"))


def make_bodies() -> list[bytes]:
    chance = np.random.default_rng(0)
    return [chance.bytes(BODY_BYTES) for _ in range(BODIES)]


class Point(msgspec.Struct, frozen=True):
    """All rounds at one number of connections."""

    connections: int
    straight: list[Load]
    copied: list[Load]
    neither: list[Load]

    @property
    def gain(self) -> Ratio:
        """Over the server without either."""
        return ratio(rates(self.straight), rates(self.neither))

    @property
    def gain_of_the_way(self) -> Ratio:
        return ratio(rates(self.straight), rates(self.copied))


def render(points: list[Point]) -> str:
    lines = ["echo, 602 112 bytes in and out, batches of 1", "   c  bodies          rps   p50 ms   p99 ms  errors"]
    for point in points:
        lines.append(f"{point.connections:>4}  neither  {load_columns(point.neither)}")
        lines.append(f"{point.connections:>4}  copied   {load_columns(point.copied)}   memory kept")
        lines.append(f"{point.connections:>4}  straight {load_columns(point.straight)}   memory kept")
        lines.append(f"      straight to neither {point.gain} (goal {GOAL}), to copied {point.gain_of_the_way}")
    return "\n".join(lines)


class LargeBodies:
    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._points = [Point(connections, [], [], []) for connections in CONNECTIONS]
        self._bodies = make_bodies()
        self._answers: list[Answer] = [*self._bodies]

    def start(self, stack: ExitStack, directory: Path) -> None:
        self._directory = directory / "large-bodies"
        self._directory.mkdir()

    def measure_round(self) -> None:
        """With servers of its own: how fast a process copies half a megabyte depends on where its memory happened to come to
        lie, for as long as it lives."""
        with ExitStack() as stack:
            straight = stack.enter_context(contestants.ringserve(ARCHIVE, self._directory))
            copied = stack.enter_context(contestants.ringserve(ARCHIVE, self._directory, environment=COPIED))
            neither = stack.enter_context(contestants.ringserve(ARCHIVE, self._directory, environment=NEITHER))
            for target in (straight, copied, neither):
                warm_up(target, self._bodies, self._answers)
            for point in self._points:
                point.straight.append(self._load(straight, point.connections))
                point.copied.append(self._load(copied, point.connections))
                point.neither.append(self._load(neither, point.connections))

    def _load(self, target: Target, connections: int) -> Load:
        job = job_for(target, self._bodies, self._answers, connections, self._conditions.seconds)
        return measure(self._conditions.loader, job)

    def finish(self) -> None:
        pass

    def render(self) -> str:
        return render(self._points)

    def figures(self) -> object:
        return {
            "results": self._points,
            "ratios": [
                {"connections": p.connections, "straight_to_neither": p.gain, "straight_to_copied": p.gain_of_the_way}
                for p in self._points
            ],
        }

    @property
    def errors(self) -> int:
        return sum(load.errors for point in self._points for load in (*point.straight, *point.copied, *point.neither))

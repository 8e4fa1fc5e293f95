"""Experiment: what measuring costs. Two servers get the same load in turn, one with its metrics, as always, and one that measures
nothing (`enable_metrics_api=false`)."""

import statistics
from contextlib import ExitStack
from pathlib import Path

import msgspec

from benchmarks import contestants, mlp
from benchmarks.contestants import Target
from benchmarks.loader import Load
from benchmarks.measuring import Conditions, job_for, measure, warm_up
from benchmarks.report import Ratio, ratio

GOAL = 0.99
SETTINGS: dict[str, dict[str, object]] = {"on": {}, "off": {"enable_metrics_api": "false"}}
CONNECTIONS_MIN = 16  # with fewer, the machine waits most of the time, for nothing that this is about


class Round(msgspec.Struct, frozen=True):
    """One load on one server. CPU is that of the front end, which is where requests are measured."""

    load: Load
    cpu_s: float

    @property
    def cpu_us_per_request(self) -> float:
        return self.cpu_s * 1e6 / max(1, self.load.requests)


class Point(msgspec.Struct, frozen=True):
    connections: int
    rounds: dict[str, list[Round]]

    @property
    def throughput(self) -> Ratio:
        on, off = ([each.load.rps for each in self.rounds[name]] for name in SETTINGS)
        return ratio(on, off)

    @property
    def cpu(self) -> Ratio:
        on, off = ([each.cpu_us_per_request for each in self.rounds[name]] for name in SETTINGS)
        return ratio(on, off)


def render(points: list[Point]) -> str:
    lines = [f"what measuring costs (3 KB rows); the goal is {GOAL} of the throughput"]
    lines.append("   connections   metrics   requests/s   CPU µs/request   errors")
    for point in points:
        for name, rounds in point.rounds.items():
            rps = statistics.median(each.load.rps for each in rounds)
            spent_us = statistics.median(each.cpu_us_per_request for each in rounds)
            errors = sum(each.load.errors for each in rounds)
            lines.append(f"{point.connections:>14}{name:>10}{rps:>13,.0f}{spent_us:>17.2f}{errors:>9}")
        on, off = (statistics.median(each.load.rps for each in point.rounds[name]) for name in SETTINGS)
        lines.append(
            f"      on to off: throughput {on / off:.3f}, by rounds {point.throughput.median:.3f}"
            f" ({point.throughput.low:.3f}..{point.throughput.high:.3f}); CPU {point.cpu.median:.3f}"
            f" ({point.cpu.low:.3f}..{point.cpu.high:.3f})"
        )
    return "\n".join(lines)


class MetricsCost:
    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        wanted = [each for each in conditions.connections if each >= CONNECTIONS_MIN] or [CONNECTIONS_MIN]
        self._points = [Point(each, {name: [] for name in SETTINGS}) for each in wanted]
        self._targets: dict[str, Target] = {}

    def start(self, stack: ExitStack, directory: Path) -> None:
        home = directory / "metrics"
        home.mkdir()
        self._case = case = mlp.make(home)
        for name, settings in SETTINGS.items():
            target = stack.enter_context(contestants.ringserve(mlp.archive(case), home, settings))
            warm_up(target, case.bodies, case.answers)
            self._targets[name] = target

    def measure_round(self) -> None:
        for point in self._points:
            measured = len(point.rounds["on"])
            for name in sorted(SETTINGS, reverse=bool(measured % 2)):  # nobody is always the second
                target, case = self._targets[name], self._case
                job = job_for(target, case.bodies, case.answers, point.connections, self._conditions.seconds)
                pids = contestants.front_end_pids(target)
                before_s = sum(contestants.cpu_s(pids))
                load = measure(self._conditions.loader, job)
                point.rounds[name].append(Round(load, sum(contestants.cpu_s(pids)) - before_s))

    def finish(self) -> None:
        pass

    def render(self) -> str:
        return render(self._points)

    def figures(self) -> object:
        ratios = [
            {"connections": point.connections, "throughput": point.throughput, "cpu": point.cpu}
            for point in self._points
        ]
        return {"results": self._points, "ratios": ratios}

    @property
    def errors(self) -> int:
        return sum(each.load.errors for point in self._points for rounds in point.rounds.values() for each in rounds)

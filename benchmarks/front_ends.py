"""Experiment: what a second front end costs. Both servers get the same requests a second, well below what either could take;
processes that wait for each other, or wake each other for nothing, would use more CPU for the same answers."""

import statistics
from contextlib import ExitStack
from pathlib import Path

import msgspec

from benchmarks import contestants, mlp
from benchmarks.contestants import HOST, Target
from benchmarks.measuring import Conditions, run_open_loop, warm_up
from benchmarks.open_loop import PRECISE_CONNECTIONS_MAX, OpenJob, OpenLoad
from benchmarks.report import Ratio, ratio

RATE_PER_S = 1000.0
CONNECTIONS = 32
GOAL = 1.15
COUNTS = (1, 2)


class Round(msgspec.Struct, frozen=True):
    """One load; `cpu_s` by front end, user and system. `waits` is how often they slept: a front end that is woken for each
    request alone spends more on it than one that finds several."""

    load: OpenLoad
    cpu_s: list[float]
    waits: int

    @property
    def cpu_us_per_request(self) -> float:
        return sum(self.cpu_s) * 1e6 / self.answered

    @property
    def waits_per_request(self) -> float:
        return self.waits / self.answered

    @property
    def answered(self) -> int:
        return max(1, sum(self.load.statuses.values()))


def cost(rounds: dict[int, list[Round]]) -> Ratio:
    one, two = ([each.cpu_us_per_request for each in rounds[count]] for count in COUNTS)
    return ratio(two, one)


def render(rounds: dict[int, list[Round]]) -> str:
    lines = [f"CPU of the front ends at {RATE_PER_S:,.0f} requests a second (open loop, 3 KB rows)"]
    lines += ["   front ends   CPU µs/request   waits/request   p50 ms   p99 ms  errors   shares"]
    for count, measured in rounds.items():
        spent_us = statistics.median(each.cpu_us_per_request for each in measured)
        p50_ms = statistics.median(each.load.right_p50_ms for each in measured)
        p99_ms = statistics.median(each.load.right_p99_ms for each in measured)
        errors = sum(map(errors_of, measured))
        shares = " ".join(f"{used / (sum(measured[-1].cpu_s) or 1):.0%}" for used in measured[-1].cpu_s)
        waits = statistics.median(each.waits_per_request for each in measured)
        lines.append(f"{count:>13}{spent_us:>17.1f}{waits:>16.2f}{p50_ms:>9.2f}{p99_ms:>9.2f}{errors:>8}   {shares}")
    lines.append(f"two to one: {cost(rounds)} (goal at most {GOAL})")
    return "\n".join(lines)


def errors_of(measured: Round) -> int:
    """Below saturation nothing is refused and nothing is late."""
    return measured.load.errors + measured.load.refused + measured.load.expired


class FrontEnds:
    def __init__(self, conditions: Conditions) -> None:
        self._conditions = conditions
        self._targets: dict[int, Target] = {}
        self._rounds: dict[int, list[Round]] = {count: [] for count in COUNTS}

    def start(self, stack: ExitStack, directory: Path) -> None:
        home = directory / "front-ends"
        home.mkdir()
        case = mlp.make(home)
        self._body, self._answer = case.bodies[0], case.answers[0]
        for count in COUNTS:
            target = stack.enter_context(contestants.ringserve(mlp.archive(case), home, {"frontends": count}))
            if (found := len(contestants.front_end_pids(target))) != count:
                raise SystemExit(f"The server was asked for {count} front ends and runs {found}.")
            warm_up(target, case.bodies, case.answers)
            self._targets[count] = target

    def measure_round(self) -> None:
        counts = COUNTS if len(self._rounds[COUNTS[0]]) % 2 else COUNTS[::-1]  # nobody is always the second
        for count in counts:
            target = self._targets[count]
            pids = contestants.front_end_pids(target)
            before, waits = contestants.cpu_s(pids), contestants.waits(pids)
            load = run_open_loop(self._job(target))
            used = [now - then for now, then in zip(contestants.cpu_s(pids), before, strict=True)]
            self._rounds[count].append(Round(load, used, contestants.waits(pids) - waits))

    def _job(self, target: Target) -> OpenJob:
        seconds, seed = self._conditions.seconds, len(self._rounds[COUNTS[-1]])
        return OpenJob(
            HOST, target.port, target.path, RATE_PER_S, seconds, self._body, self._answer,
            connections=CONNECTIONS, connections_max=PRECISE_CONNECTIONS_MAX, precise=True, seed=seed,
        )  # fmt: skip

    def finish(self) -> None:
        pass

    def render(self) -> str:
        return render(self._rounds)

    def figures(self) -> object:
        rounds = {str(count): measured for count, measured in self._rounds.items()}
        return {"results": rounds, "ratios": {"two_to_one_cpu": cost(self._rounds)}}

    @property
    def errors(self) -> int:
        return sum(errors_of(each) for measured in self._rounds.values() for each in measured)

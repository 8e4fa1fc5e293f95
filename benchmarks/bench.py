"""Our server beside its own ceilings, as ratios: the same load, in the same minutes, on the same machine.

    python benchmarks/bench.py [--rounds 3] [--seconds 3] [--points 1,16,64] [--loader wrk|asyncio] [--json FILE]

Ceiling 1 is Sanic answering without a model: what HTTP alone costs. Ceiling 2 is the model in this process: what the
arithmetic alone costs. Rounds are interleaved, so that what disturbs the machine disturbs everybody. Ends with 1 when
anybody answered anything wrong: such figures compare nothing.
"""

import argparse
import importlib
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run by its path, a script finds its neighbours but not their folder's name

from benchmarks import contestants, mlp, report, wrk
from benchmarks.contestants import Target
from benchmarks.loader import Job, Load, is_right

BATCH_MAX = 32
MODEL_SECONDS_SHARE = 1 / 3  # the model alone is steady: it needs less time than a load
WARM_UP_CONNECTIONS, WARM_UP_S = 16, 1.0
SPARE_S = 30.0


def run_loader(job: Job) -> Load:
    """The bundled loader, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loader"]
    sent, limit_s = msgspec.json.encode(job), job.seconds + SPARE_S
    done = subprocess.run(command, input=sent, stdout=subprocess.PIPE, check=True, cwd=ROOT, timeout=limit_s)
    return msgspec.json.decode(done.stdout, type=Load)


def is_answered_right(url: str, body: bytes, answer: list[float]) -> bool:
    """One request on its own. A refusal is no right answer."""
    try:
        return is_right(contestants.ask(url, body), answer)
    except OSError:
        return False


def wrong_answers(job: Job) -> int:
    """How many of the requests are answered wrong when asked one by one."""
    url = f"http://{job.host}:{job.port}{job.path}"
    asked = zip(job.bodies, job.answers, strict=True)
    return sum(not is_answered_right(url, body, answer) for body, answer in asked)


def measure(loader: str, job: Job) -> Load:
    """One run of the chosen loader, plus a look at the answers afterwards."""
    if loader == wrk.NAME:
        with tempfile.TemporaryDirectory(prefix="ringserve-wrk-") as scratch:
            load = wrk.run(job, Path(scratch))
    else:
        load = run_loader(job)
    return msgspec.structs.replace(load, errors=load.errors + wrong_answers(job))


def job_for(target: Target, case: mlp.Case, connections: int, seconds: float) -> Job:
    return Job(contestants.HOST, target.port, target.path, connections, seconds, case.bodies, case.answers)


def warm_up(target: Target, case: mlp.Case) -> None:
    """Always by the bundled loader, which checks bodies: concurrent clients must each get their own answer."""
    load = run_loader(job_for(target, case, WARM_UP_CONNECTIONS, WARM_UP_S))
    if load.errors:
        raise SystemExit(
            f"{load.errors} of {load.requests + load.errors} answers to the warm-up were wrong or missing."
        )


def round_trip_us() -> tuple[float, float] | None:
    """An empty batch through the rings. None where the benchmark of the rings is not in the tree."""
    try:
        rings = importlib.import_module("benchmarks.rings")
    except ModuleNotFoundError:
        return None
    p50_us, p99_us = rings.round_trip_us()
    return p50_us, p99_us


def run(loader: str, rounds: int, seconds: int, connections: list[int]) -> report.Results:
    """Start everybody, measure in turn, stop everybody."""
    points = [report.Point(c, [], [], min(c, BATCH_MAX), []) for c in connections]
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringserve-bench-")))
        case = mlp.make(directory)
        constant = msgspec.structs.replace(case, answers=[case.answers[0]] * len(case.answers))
        sanic = stack.enter_context(contestants.sanic_without_a_model(case, directory))
        ours = stack.enter_context(contestants.ringserve(case, directory))
        warm_up(sanic, constant)
        warm_up(ours, case)
        for number in range(rounds):
            for point in points:
                print(f"round {number + 1} of {rounds}, c={point.connections}", file=sys.stderr, flush=True)
                point.ours.append(measure(loader, job_for(ours, case, point.connections, seconds)))
                point.sanic.append(measure(loader, job_for(sanic, constant, point.connections, seconds)))
                alone = mlp.rows_per_s(case.weights, point.model_batch, seconds * MODEL_SECONDS_SHARE)
                point.model_rows_per_s.append(alone)
        memory = contestants.memory(ours)
    return report.Results(loader, seconds, points, memory, round_trip_us())


def connection_counts(text: str) -> list[int]:
    """`1,16,64` as numbers."""
    counts = [int(part) for part in text.split(",")]
    if min(counts) < 1:
        raise ValueError("a load needs at least one connection")
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the server beside its own ceilings.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of every load")
    parser.add_argument("--points", type=connection_counts, default=[1, 16, 64], help="numbers of connections")
    parser.add_argument("--loader", choices=("wrk", "asyncio"), default="wrk" if wrk.is_installed() else "asyncio")
    parser.add_argument("--json", type=Path, help="also write every round to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by way of what stops the servers
    try:
        results = run(options.loader, options.rounds, options.seconds, options.points)
    except KeyboardInterrupt:
        return 130
    print(report.render(results))
    if options.json is not None:
        options.json.write_bytes(report.to_json(results))
    return 1 if results.errors else 0


if __name__ == "__main__":
    sys.exit(main())

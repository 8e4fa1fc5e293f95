"""Our server beside its own ceilings, as ratios: the same load, in the same minutes, on the same machine.

    python benchmarks/bench.py [--only NAMES] [--rounds 3] [--seconds 3] [--points 1,16,64] [--loader wrk|asyncio] [--json FILE]

Every experiment answers one question; docs/benchmarks.md says which. All servers run from the start and rounds are
interleaved, so that what disturbs the machine disturbs everybody. Ends with 1 when anybody answered anything wrong: such figures
compare nothing.
"""

import argparse
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run by its path, a script finds its neighbours but not their folder's name

from benchmarks import wrk
from benchmarks.front_ends import FrontEnds
from benchmarks.large_bodies import LargeBodies
from benchmarks.measuring import Conditions, Experiment
from benchmarks.metrics_cost import MetricsCost
from benchmarks.open_inference import OpenInference
from benchmarks.overload import Overload
from benchmarks.small_rows import SmallRows

EXPERIMENTS: dict[str, type[Experiment]] = {
    "mlp3k": SmallRows,
    "echo602k": LargeBodies,
    "front-ends": FrontEnds,
    "overload": Overload,
    "metrics": MetricsCost,
    "v2": OpenInference,
}


def run(names: list[str], rounds: int, conditions: Conditions) -> dict[str, Experiment]:
    """Start everybody, measure in turn, stop everybody."""
    experiments = {name: EXPERIMENTS[name](conditions) for name in names}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringserve-bench-")))
        for experiment in experiments.values():
            experiment.start(stack, directory)
        for number in range(rounds):
            for name, experiment in experiments.items():
                print(f"round {number + 1} of {rounds}, {name}", file=sys.stderr, flush=True)
                experiment.measure_round()
        for experiment in experiments.values():
            experiment.finish()
    return experiments


def connection_counts(text: str) -> list[int]:
    """`1,16,64` as numbers."""
    counts = [int(part) for part in text.split(",")]
    if min(counts) < 1:
        raise ValueError("a load needs at least one connection")
    return counts


def experiment_names(text: str) -> list[str]:
    """`mlp3k,overload` as names, in the order in which they are measured."""
    wanted = {part.strip() for part in text.split(",")}
    if unknown := sorted(wanted - EXPERIMENTS.keys()):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(EXPERIMENTS)}, got {', '.join(unknown)}")
    return [name for name in EXPERIMENTS if name in wanted]


def render(experiments: dict[str, Experiment], rounds: int, conditions: Conditions) -> str:
    head = f"{rounds} rounds of {conditions.seconds} s, load from {conditions.loader}"
    return "\n\n".join([head, *(experiment.render() for experiment in experiments.values())])


def to_json(experiments: dict[str, Experiment], rounds: int, conditions: Conditions) -> bytes:
    """Every round, and the ratios drawn from them."""
    figures = {name: experiment.figures() for name, experiment in experiments.items()}
    errors = sum(experiment.errors for experiment in experiments.values())
    return msgspec.json.format(
        msgspec.json.encode({"conditions": conditions, "rounds": rounds, **figures, "errors": errors})
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the server beside its own ceilings.")
    parser.add_argument(
        "--only", type=experiment_names, default=list(EXPERIMENTS), metavar="NAMES", help=", ".join(EXPERIMENTS)
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of every load")
    parser.add_argument(
        "--points", type=connection_counts, default=[1, 16, 64], help="numbers of connections of mlp3k and metrics"
    )
    parser.add_argument("--loader", choices=("wrk", "asyncio"), default="wrk" if wrk.is_installed() else "asyncio")
    parser.add_argument("--json", type=Path, help="also write every round to this file")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by way of what stops the servers
    conditions = Conditions(options.loader, options.seconds, options.points)
    try:
        experiments = run(options.only, options.rounds, conditions)
    except KeyboardInterrupt:
        return 130
    print(render(experiments, options.rounds, conditions))
    if options.json is not None:
        options.json.write_bytes(to_json(experiments, options.rounds, conditions))
    return 1 if any(experiment.errors for experiment in experiments.values()) else 0


if __name__ == "__main__":
    sys.exit(main())

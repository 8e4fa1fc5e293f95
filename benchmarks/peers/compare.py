"""Ours beside its peers under one load, round by round. The README says how they are installed.

python benchmarks/peers/compare.py --mosec VENV --triton VENV [--points echo602k:1,echo602k:8,mlp3k:16] [--rounds 3]
"""

import argparse
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run by its path, a script finds its neighbours but not their folder's name

from benchmarks import large_bodies, mlp, wrk
from benchmarks.loader import Load
from benchmarks.peers.servers import Peer, Question, start_all
from benchmarks.report import load_columns, rates, ratio

POINTS = "echo602k:1,echo602k:8,mlp3k:16,mlp3k:64"
GOALS = {("echo602k", 8, "mosec"): 2.0, ("echo602k", 8, "triton"): 3.0}
WARM_UP_S = 1

Loads = dict[tuple[str, int], dict[str, list[Load]]]


def questions(directory: Path, workloads: set[str]) -> dict[str, Question]:
    """The models of the points that are asked for."""
    found = {}
    if "echo602k" in workloads:
        (body, *_) = large_bodies.make_bodies()
        floats = large_bodies.BODY_BYTES // 4
        found["echo602k"] = Question("echo", large_bodies.ARCHIVE, body, body, [floats])
    if "mlp3k" in workloads:
        case = mlp.make(directory)
        found["mlp3k"] = Question("mlp", mlp.archive(case), case.bodies[0], case.answers[0], [1, mlp.WIDTHS[0]])
    return found


def measure(peer: Peer, connections: int, seconds: float) -> Load:
    """One load, with a look at the answer before and after it."""
    wrong = int(not peer.is_answered_right())
    with tempfile.TemporaryDirectory(prefix="ringserve-wrk-") as scratch:
        load = wrk.run_on(peer.url, peer.body, peer.headers, connections, seconds, Path(scratch))
    wrong += not peer.is_answered_right()
    return msgspec.structs.replace(load, errors=load.errors + wrong)


def run(points: list[tuple[str, int]], options: argparse.Namespace) -> Loads:
    """Everybody runs from the start, and is measured in turn."""
    loads: Loads = {point: {} for point in points}
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ringserve-peers-")))
        asked = questions(directory, {workload for workload, _ in points})
        peers = {
            workload: start_all(stack, question, directory, options.mosec, options.triton, options.wait_ms)
            for workload, question in asked.items()
        }
        for number in range(options.rounds):
            for workload, connections in points:
                print(
                    f"round {number + 1} of {options.rounds}, {workload} c={connections}", file=sys.stderr, flush=True
                )
                for name, peer in peers[workload].items():
                    measure(peer, connections, WARM_UP_S)
                    measured = measure(peer, connections, options.seconds)
                    loads[workload, connections].setdefault(name, []).append(measured)
    return loads


def render(loads: Loads) -> str:
    lines = ["point            server            rps   p50 ms   p99 ms  errors   ours to theirs"]
    for (workload, connections), by_name in loads.items():
        ours = rates(by_name["ringserve"])
        for name, measured in by_name.items():
            compared = "" if name == "ringserve" else f"   {ratio(ours, rates(measured))}"
            goal = GOALS.get((workload, connections, name))
            compared += "" if goal is None else f" (goal {goal})"
            lines.append(f"{workload + f' c={connections}':<17}{name:<10}{load_columns(measured)}{compared}")
    return "\n".join(lines)


def point(text: str) -> tuple[str, int]:
    """`echo602k:8` as workload and number of connections."""
    workload, _, connections = text.partition(":")
    if workload not in ("echo602k", "mlp3k") or int(connections) < 1:
        raise ValueError(f"expected echo602k or mlp3k, a colon and a number of connections, got {text}")
    return workload, int(connections)


def points(text: str) -> list[tuple[str, int]]:
    return [point(part) for part in text.split(",")]


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the server beside its peers.")
    parser.add_argument("--mosec", type=lambda text: Path(text).absolute(), help="virtual environment with mosec")
    parser.add_argument("--triton", type=lambda text: Path(text).absolute(), help="one with nvidia-pytriton")
    parser.add_argument("--points", type=points, default=points(POINTS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=3, help="of every load")
    parser.add_argument(
        "--wait-ms", type=int, default=2, help="mosec waits so long for a fuller batch; Triton not at all"
    )
    options = parser.parse_args()
    if not wrk.is_installed():
        parser.error("wrk is not installed")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by way of what stops the servers
    try:
        loads = run(options.points, options)
    except KeyboardInterrupt:
        return 130
    print(render(loads))
    return 1 if any(load.errors for by_name in loads.values() for each in by_name.values() for load in each) else 0


if __name__ == "__main__":
    sys.exit(main())

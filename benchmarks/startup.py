"""From the command to the first prediction, and what a server costs that has nothing to do.

python benchmarks/startup.py [--rounds 5] [--peers VENV]

With `--peers`, or a `torchserve` on the PATH, TorchServe starts in the same rounds with the same archive: one worker, which imports torch.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # run by its path, a script finds its neighbours but not their folder's name

from benchmarks.contestants import HOST, READY_S_MAX, RINGSERVE, Archive, ask, free_ports, pack, process
from benchmarks.report import ratio

ARCHIVE = Archive("linear", "minWorkers: 1\nmaxWorkers: 1\n", str(ROOT / "benchmarks" / "handlers" / "linear.py"))
BODY = b"[1, 2, 3, 4]"
HEADERS = {"Content-Type": "application/json"}
POLL_S = 0.01
IDLE_S = 10.0
SETTLE_S = 2.0
RESIDENT_BYTES_MAX = 150 << 20
IDLE_CORE_MAX = 0.005
RATIO_MAX = 1.0


def configuration(home: Path, *, grpc: bool = True) -> tuple[int, Path]:
    """The inference port, and a file with free addresses; gRPC can be switched off with ours only."""
    *ports, grpc_inference, grpc_management = free_ports(5)
    path = home / "config.properties"
    names = ("inference", "management", "metrics")
    lines = [f"{name}_address=http://{HOST}:{port}\n" for name, port in zip(names, ports, strict=True)]
    lines += [f"grpc_inference_port={grpc_inference}\n", f"grpc_management_port={grpc_management}\n"]
    lines += [] if grpc else ["enable_grpc=false\n"]
    path.write_text("".join([*lines, "default_workers_per_model=1\n"]))
    return ports[0], path


def commands(torchserve: Path | None) -> dict[str, list[str]]:
    """What starts each server in the foreground, without its models."""
    common = ["--foreground", "--model-store", "store", "--ts-config", "config.properties", "--disable-token-auth"]
    found = {"ringserve": [str(RINGSERVE), "start", *common, "--no-config-snapshots"]}
    if torchserve is not None:
        found["torchserve"] = [str(torchserve), "--start", *common, "--ncs"]
    return found


def first_prediction_s(command: Sequence[str], home: Path) -> float:
    """How long it takes from the command until the model has answered right."""
    port, _ = configuration(home)
    url = f"http://{HOST}:{port}/predictions/{ARCHIVE.name}"
    bin_dir = Path(command[0]).parent
    environment = {"PATH": f"{bin_dir}:{os.environ['PATH']}", "LOG_LOCATION": str(home), "METRICS_LOCATION": str(home)}
    log = home / "server.log"
    began_s = time.monotonic()
    with process([*command, "--models", f"{ARCHIVE.name}.mar"], home, log, environment) as child:
        while True:
            with contextlib.suppress(OSError, ValueError):  # refused, or no worker yet
                if len(json.loads(ask(url, BODY, HEADERS))) == 3:
                    return time.monotonic() - began_s
            took_s = time.monotonic() - began_s
            if child.poll() is not None or took_s > READY_S_MAX:
                raise SystemExit(f"{command[0]} did not answer:\n{log.read_text(errors='replace')[-3000:]}")
            time.sleep(POLL_S)


@contextmanager
def homes(names: Sequence[str]) -> Iterator[dict[str, Path]]:
    """A folder for each server, with the archive in its store."""
    with tempfile.TemporaryDirectory(prefix="ringserve-startup-") as directory:
        found = {name: Path(directory) / name for name in names}
        for home in found.values():
            (home / "store").mkdir(parents=True)
            pack(ARCHIVE, home / "store", home)
        yield found


def measure_starts(contestants: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """Each server in turn. The first round fills the page cache and does not count."""
    taken_s: dict[str, list[float]] = {name: [] for name in contestants}
    with homes(list(contestants)) as found:
        for number in range(rounds + 1):
            for name in sorted(contestants, reverse=bool(number % 2)):
                took_s = first_prediction_s(contestants[name], found[name])
                if number:
                    taken_s[name].append(took_s)
                    print(f"  round {number}: {name} {took_s:.2f} s", flush=True)
    return taken_s


def measure_idleness(command: list[str]) -> tuple[int, int, float]:
    """Of our server without models: resident and proportional bytes of all its processes, and how much of a core they use."""
    with homes(["idle"]) as found:
        home = found["idle"]
        port, _ = configuration(home, grpc=False)
        with process(command, home, home / "server.log") as child:
            end_s = time.monotonic() + READY_S_MAX
            while "Model server started." not in (home / "server.log").read_text():
                if child.poll() is not None or time.monotonic() > end_s:
                    raise SystemExit((home / "server.log").read_text())
                time.sleep(POLL_S)
            ask(f"http://{HOST}:{port}/ping")
            time.sleep(SETTLE_S)
            server = psutil.Process(child.pid)
            processes = [server, *server.children(recursive=True)]
            before_s = _cpu_s(processes)
            time.sleep(IDLE_S)
            used_s = _cpu_s(processes) - before_s
            maps = [each.memory_full_info() for each in processes]
            return sum(each.rss for each in maps), sum(each.pss for each in maps), used_s / IDLE_S


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    """By the scheduler's account, which is exact; that of the clock's ticks counts hundredths."""
    total_ns = 0
    for each in processes:
        for schedstat in Path(f"/proc/{each.pid}/task").glob("*/schedstat"):
            total_ns += int(schedstat.read_text().split()[0])
    return total_ns / 1e9


def find_torchserve(peers: Path | None) -> Path | None:
    if peers is not None:
        found = peers / "bin" / "torchserve"
        if not found.exists():
            raise SystemExit(f"--peers: expected a virtual environment with TorchServe, found no {found}")
        return found
    on_path = shutil.which("torchserve")
    # Our own has this name as well: the other one is told by the package beside it.
    if on_path is not None and Path(on_path).resolve().parent != RINGSERVE.resolve().parent:
        return Path(on_path)
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure the start of the server, and what it costs when idle.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers", type=Path, help="a virtual environment with TorchServe")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by way of what stops the servers
    contestants = commands(find_torchserve(options.peers))
    print(f"command to first prediction, one worker with torch, {options.rounds} rounds")
    failed = False
    taken_s = measure_starts(contestants, options.rounds)
    for name, each in taken_s.items():
        print(f"{name:>12}  median {statistics.median(each):.2f} s  ({min(each):.2f}..{max(each):.2f})")
    if "torchserve" in taken_s:
        ours = ratio(taken_s["ringserve"], taken_s["torchserve"])
        print(f"ringserve to torchserve: {ours}, goal at most {RATIO_MAX}")
        failed |= ours.median > RATIO_MAX
    resident, proportional, core = measure_idleness(contestants["ringserve"])
    print(f"without models: {resident / 2**20:.0f} MiB resident (shared pages counted again for each process),")
    print(f"                {proportional / 2**20:.0f} MiB in all, goal less than {RESIDENT_BYTES_MAX / 2**20:.0f}")
    print(f"idle for {IDLE_S:.0f} s: {core:.2%} of a core, goal less than {IDLE_CORE_MAX:.1%}")
    failed |= resident >= RESIDENT_BYTES_MAX or core >= IDLE_CORE_MAX
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"{error.cmd[0]} failed with {error.returncode}")

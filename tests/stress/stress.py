"""A real server under everything at once: random requests in random manners, clients that leave, processes that are killed.

    python tests/stress/stress.py [--seconds 600] [--front-ends 2] [--workers 3] [--seed N]

Every request must be answered exactly once, with its own content or an honest error; only a kill excuses a cut connection or a
lost worker. Front ends are killed in the first fifth of the time. Afterwards their memory is watched, since only a process that
lives can be seen to grow. In the end all slabs are free and nothing is left. Ends with 1 when anything of this does not hold;
the same seed draws the same requests, though never the same race.
"""

import argparse
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run by its path, a script does not find the folders of the tree

from ringserve.server.testing import ServerProcess
from tests.stress.chaos import Killer, Resident, Site, Watcher, make_server
from tests.stress.client import ANSWER_S_MAX, Job
from tests.stress.plans import Kind
from tests.stress.verdicts import Tally, Word, merge, shortcomings, unexcused

CLIENT_SCRIPT = Path(__file__).with_name("client.py")
FRONT_END_KILLS_SHARE = 0.2
RSS_GROWTH_MAX = 0.05
RSS_SECONDS_MIN = 120.0  # a younger process is still warming up
PROGRESS_S = 15.0
SPARE_S = ANSWER_S_MAX + 15
MEBIBYTE = 1 << 20
EXCUSES_SHOWN = 8


class Options(msgspec.Struct, frozen=True):
    seconds: float = 600
    front_ends: int = 2
    workers: int = 3
    seed: int = 0
    processes: int = 2
    clients: int = 24  # of each process
    kill_every_s: float = 6.0
    kinds: list[str] = []
    sabotage: str = ""
    requests_min: int = 0  # of each process


class Outcome(msgspec.Struct):
    """What happened, and what should not have."""

    options: Options
    tally: Tally
    seconds: float = 0.0
    worker_kills: int = 0
    front_end_kills: int = 0
    resident: dict[int, list[Resident]] = {}
    rss_growth: dict[int, float] = {}
    violations: list[str] = []

    @property
    def violation_count(self) -> int:
        return self.tally.violation_count + len(self.violations)


class Clients:
    """The processes that send."""

    def __init__(self, server: ServerProcess, options: Options) -> None:
        host, _, port = server.inference_url.removeprefix("http://").partition(":")
        self._limit_s = options.seconds + SPARE_S
        self._latest: dict[int, int] = {}
        self._last_lines: dict[int, str] = {}
        self._children: list[subprocess.Popen[str]] = []
        for number in range(options.processes):
            job = Job(
                host,
                int(port),
                f"p{number}",
                options.seed,
                options.clients,
                options.seconds,
                options.kinds,
                options.requests_min,
            )
            child = subprocess.Popen(
                [sys.executable, str(CLIENT_SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            assert child.stdin is not None
            child.stdin.write(msgspec.json.encode(job).decode())
            child.stdin.close()
            self._children.append(child)
        self._readers = [threading.Thread(target=self._read, args=pair) for pair in enumerate(self._children)]
        for reader in self._readers:
            reader.start()

    def _read(self, number: int, child: subprocess.Popen[str]) -> None:
        assert child.stdout is not None
        for line in child.stdout:
            self._last_lines[number] = line
            self._latest[number] = msgspec.json.decode(line).get("requests", self._latest.get(number, 0))

    @property
    def requests(self) -> int:
        return sum(self._latest.values())

    def wait(self) -> list[Tally]:
        """The tallies of all that came to their end."""
        end_s, tallies = time.monotonic() + self._limit_s, []
        shown_s = time.monotonic()
        while any(child.poll() is None for child in self._children) and time.monotonic() < end_s:
            time.sleep(0.2)
            if time.monotonic() - shown_s > PROGRESS_S:
                shown_s += PROGRESS_S
                print(f"{self.requests:,} requests", file=sys.stderr, flush=True)
        self.stop()
        for number, child in enumerate(self._children):
            if child.returncode == 0:
                tallies.append(msgspec.json.decode(self._last_lines[number], type=Tally))
        return tallies

    def stop(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.wait()
        for reader in self._readers:
            reader.join()
        for child in self._children:
            assert child.stdout is not None
            child.stdout.close()


@contextmanager
def running(options: Options, folder: Path) -> Iterator[Site]:
    """The server, ready; stopped however the test ends."""
    server = make_server(folder, options.front_ends, options.workers, options.sabotage)
    site = Site(server, options.front_ends, options.workers)
    try:
        server.start()
        site.wait_ready()
        yield site
    finally:
        site.close()
        server.stop()


def run(options: Options, folder: Path) -> Outcome:
    """The whole test."""
    outcome = Outcome(options, Tally())
    with running(options, folder) as site:
        started_s = time.monotonic()
        quiet_from_s = started_s + FRONT_END_KILLS_SHARE * options.seconds
        killer = Killer(site, options.seed, options.kill_every_s, quiet_from_s)
        watcher = Watcher(site.server)
        clients = Clients(site.server, options)
        watching = threading.Timer(max(0.0, quiet_from_s + 1 - time.monotonic()), watcher.start)
        try:
            killer.start()
            watching.start()
            tallies = clients.wait()
        finally:
            clients.stop()
            killer.stop()
            watching.cancel()
            watching.join()
        outcome.seconds = time.monotonic() - started_s
        if watcher.started:
            watcher.stop()
        outcome.tally = merge(tallies)
        if len(tallies) < options.processes:
            outcome.violations.append(
                f"{options.processes - len(tallies)} processes of clients did not come to their end"
            )
        site.wait_ready()
        outcome.violations += [*site.leaks(), *site.log_bugs()]
        outcome.worker_kills, outcome.front_end_kills = len(killer.worker_s), len(killer.front_end_s)
        judge(outcome, killer, watcher)
    outcome.violations += site.server.remains()
    return outcome


def judge(outcome: Outcome, killer: Killer, watcher: Watcher) -> None:
    """What can only be said when all is over."""
    tally = outcome.tally
    hangs_s = [until_s for _, until_s in tally.hangs]  # the server kills such a worker itself
    outcome.violations += unexcused(tally.suspects, [*killer.worker_s, *hangs_s], killer.front_end_s)
    outcome.violations += [*shortcomings(tally), *killer.violations]
    outcome.resident, outcome.rss_growth = watcher.samples, watcher.growth()
    if (1 - FRONT_END_KILLS_SHARE) * outcome.options.seconds < RSS_SECONDS_MIN:
        return
    if not outcome.rss_growth:
        outcome.violations.append("no front end lived long enough for its memory to be watched")
    for pid, growth in outcome.rss_growth.items():
        if growth > RSS_GROWTH_MAX:
            outcome.violations.append(f"front end {pid} grew by {growth:.1%}, more than {RSS_GROWTH_MAX:.0%}")


def table(tally: Tally) -> list[str]:
    """A line for each kind of request."""
    lines = ["kind              sent    right  refused     left      cut   lost    statuses"]
    for kind in Kind:
        counts = tally.counts.get(kind.value)
        if counts is None:
            continue
        statuses = " ".join(f"{word}:{count}" for word, count in sorted(counts.items()) if word.isdigit())
        figures = (counts.get(word, 0) for word in ("sent", Word.RIGHT, Word.REFUSED, Word.LEFT, "cut", Word.SUSPECT))
        sent, right, refused, left, cut, lost = figures
        lines.append(f"{kind.value:<13}{sent:>9}{right:>9}{refused:>9}{left:>9}{cut:>9}{lost:>7}    {statuses}")
    return lines


def memory_curve(samples: Sequence[Resident]) -> str:
    """Total (own and shared) at ten moments of the time that was watched."""
    moments = [samples[len(samples) * part // 10] for part in range(10)] + [samples[-1]]
    return " ".join(
        f"{each.total / MEBIBYTE:.0f}({each.own / MEBIBYTE:.0f},{each.shared / MEBIBYTE:.0f})" for each in moments
    )


def excuses(tally: Tally) -> Counter[str]:
    """What was put down to a kill, without the numbers that make each of them differ."""
    return Counter(re.sub(r"\d+", "N", suspect.what.partition(" was ")[2]) for suspect in tally.suspects)


def render(outcome: Outcome) -> str:
    """The summary."""
    tally, options = outcome.tally, outcome.options
    rate = tally.requests / outcome.seconds if outcome.seconds else 0.0
    lines = [
        f"{tally.requests:,} requests in {outcome.seconds:.0f} s, {rate:,.0f} a second",
        f"{options.front_ends} front ends, {options.workers} workers of each model, seed {options.seed}",
        f"killed: {outcome.worker_kills} workers, {outcome.front_end_kills} front ends; {len(tally.hangs)} workers hung",
        *table(tally),
        f"rows that failed for another one's fault: {tally.innocent}",
    ]
    for pid, samples in sorted(outcome.resident.items()):
        growth = f"{outcome.rss_growth[pid]:+.1%}" if pid in outcome.rss_growth else "not watched for long enough"
        lines.append(f"front end {pid}, MiB resident, beside shared memory {growth}: {memory_curve(samples)}")
    lines += [f"excused: {count} times {text}" for text, count in excuses(tally).most_common(EXCUSES_SHOWN)]
    shown = [*outcome.violations, *tally.violations][:60]
    lines += [f"VIOLATION: {violation}" for violation in shown]
    lines.append(f"{outcome.violation_count} violations")
    return "\n".join(lines)


def options_from(arguments: Sequence[str]) -> Options:
    parser = argparse.ArgumentParser(description="A real server under everything at once.")
    defaults = Options()
    parser.add_argument("--seconds", type=float, default=defaults.seconds)
    parser.add_argument("--front-ends", type=int, default=defaults.front_ends)
    parser.add_argument("--workers", type=int, default=defaults.workers, help="of each of the five models")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--processes", type=int, default=defaults.processes, help="of clients")
    parser.add_argument("--clients", type=int, default=defaults.clients, help="of each process")
    parser.add_argument("--kill-every-s", type=float, default=defaults.kill_every_s, help="on average")
    parser.add_argument("--kinds", default="", help=f"only these, of {', '.join(kind.value for kind in Kind)}")
    parser.add_argument(
        "--sabotage", default="", choices=("", "swap", "damage"), help="a model that is wrong on purpose"
    )
    chosen = vars(parser.parse_args(arguments))
    chosen["kinds"] = [Kind(kind.strip()).value for kind in chosen["kinds"].split(",") if kind.strip()]
    return Options(**chosen)


def main() -> int:
    options = options_from(sys.argv[1:])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # by way of what stops the server
    folder = Path(tempfile.mkdtemp(prefix="ringserve-stress-"))
    print(f"seed {options.seed}, server and its log in {folder}", file=sys.stderr, flush=True)
    outcome = run(options, folder)
    print(render(outcome))
    if outcome.violation_count:
        return 1
    shutil.rmtree(folder, ignore_errors=True)  # a log is kept for as long as there is something to find in it
    return 0


if __name__ == "__main__":
    sys.exit(main())

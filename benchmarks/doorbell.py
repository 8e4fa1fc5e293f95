"""What waking another process costs: the candidates for the doorbell of a ring, side by side.

    python benchmarks/doorbell.py [--count N]

Ping-pong: two processes ring each other in turn, each blocked until the other has rung; one figure is the whole round
trip, two wake-ups. The scheduler's placement decides much of it, so it is measured as placed, with both processes on
one CPU, and on two. Ringing alone: the cost to the ringer when nobody waits, as when the consumer is busy.
"""

import argparse
import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import NamedTuple

import posix_ipc

COUNT = 10_000
WARM_UP_COUNT = 500
TOKEN = (1).to_bytes(8, "little")  # eventfd moves eight bytes; so does everybody
BURST = 100  # unheard rings in a row; fits the smallest socket buffer
BURSTS = 200
LIMIT_S = 120  # a bell that loses a ring would leave both sides waiting for ever


class Bell(NamedTuple):
    """One direction: `ring` by one process, `wait` by the other; each wait takes one ring."""

    ring: Callable[[], object]
    wait: Callable[[], object]


@contextmanager
def pipe_bell() -> Iterator[Bell]:
    reader, writer = os.pipe()
    try:
        yield Bell(lambda: os.write(writer, TOKEN), lambda: os.read(reader, len(TOKEN)))
    finally:
        os.close(reader)
        os.close(writer)


@contextmanager
def eventfd_bell() -> Iterator[Bell]:
    # As a semaphore: a plain eventfd would hand all rings to the first wait, and a burst could not be taken one by one.
    descriptor = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
    try:
        yield Bell(lambda: os.eventfd_write(descriptor, 1), lambda: os.eventfd_read(descriptor))
    finally:
        os.close(descriptor)


@contextmanager
def semaphore_bell() -> Iterator[Bell]:
    semaphore = posix_ipc.Semaphore(None, posix_ipc.O_CREX, initial_value=0)
    semaphore.unlink()  # the child inherits the mapping, not the name
    try:
        yield Bell(semaphore.release, semaphore.acquire)
    finally:
        semaphore.close()


@contextmanager
def socket_bell(kind: socket.SocketKind) -> Iterator[Bell]:
    left, right = socket.socketpair(socket.AF_UNIX, kind)
    with left, right:
        yield Bell(lambda: left.send(TOKEN), lambda: right.recv(len(TOKEN)))


BELLS: dict[str, Callable[[], AbstractContextManager[Bell]]] = {
    "pipe": pipe_bell,
    "eventfd": eventfd_bell,
    "posix_ipc.Semaphore": semaphore_bell,
    "unix socket, stream": lambda: socket_bell(socket.SOCK_STREAM),
    "unix socket, seqpacket": lambda: socket_bell(socket.SOCK_SEQPACKET),
}


class Placement(NamedTuple):
    """Which CPUs the two processes may run on; None leaves it to the scheduler."""

    name: str
    ours: set[int] | None
    theirs: set[int] | None


def placements() -> list[Placement]:
    """Those that this machine allows."""
    cpus = sorted(os.sched_getaffinity(0))
    found = [Placement("as placed", None, None), Placement("one CPU", {cpus[0]}, {cpus[0]})]
    if len(cpus) > 1:
        found.append(Placement("two CPUs", {cpus[0]}, {cpus[1]}))
    return found


class RoundTrip(NamedTuple):
    """Microseconds there and back."""

    p50_us: float
    p99_us: float


def summarize(durations_ns: list[int]) -> RoundTrip:
    """Median and 99th percentile."""
    cuts = statistics.quantiles(durations_ns, n=100)
    return RoundTrip(cuts[49] / 1000, cuts[98] / 1000)


def echo(there: Bell, back: Bell, count: int, cpus: set[int] | None) -> None:
    """The child's side."""
    signal.alarm(LIMIT_S)
    if cpus is not None:
        os.sched_setaffinity(0, cpus)
    for _ in range(count):
        there.wait()
        back.ring()


def ping_pong(there: Bell, back: Bell, count: int, placement: Placement) -> RoundTrip:
    """Ring a child `count` times, each time waiting for it to ring back."""
    before = os.sched_getaffinity(0)
    child = os.fork()
    if child == 0:
        status = 1  # whatever happens, the child must not go on as a copy of us
        try:
            echo(there, back, WARM_UP_COUNT + count, placement.theirs)
            status = 0
        finally:
            os._exit(status)
    try:
        if placement.ours is not None:
            os.sched_setaffinity(0, placement.ours)
        durations_ns = []
        for _ in range(WARM_UP_COUNT + count):
            start_ns = time.perf_counter_ns()
            there.ring()
            back.wait()
            durations_ns.append(time.perf_counter_ns() - start_ns)
    finally:
        os.sched_setaffinity(0, before)
        os.kill(child, signal.SIGKILL)  # done or not: a child that has ended is still ours until the next line
        os.waitpid(child, 0)
    return summarize(durations_ns[WARM_UP_COUNT:])


def ringing_us(bell: Bell) -> float:
    """Microseconds for one ring that nobody waits for: the median over bursts, heard outside the clock."""
    costs_us = []
    for _ in range(BURSTS):
        start_ns = time.perf_counter_ns()
        for _ in range(BURST):
            bell.ring()
        costs_us.append((time.perf_counter_ns() - start_ns) / BURST / 1000)
        for _ in range(BURST):
            bell.wait()
    return statistics.median(costs_us)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure wake-ups between two processes.")
    parser.add_argument("--count", type=int, default=COUNT, help="round trips per figure")
    count: int = parser.parse_args().count
    if not sys.platform.startswith("linux"):
        raise SystemExit("eventfd and CPU affinity are Linux's: nothing to compare here.")

    signal.alarm(LIMIT_S)
    columns = placements()
    print(f"round trip in µs, p50 / p99 of {count}; ringing in µs, nobody waiting\n")
    print(f"{'':24}" + "".join(f"{column.name:>18}" for column in columns) + f"{'ringing':>10}")
    for name, make in BELLS.items():
        with make() as there, make() as back:
            trips = [ping_pong(there, back, count, column) for column in columns]
            cells = "".join(f"{trip.p50_us:>10.1f} /{trip.p99_us:>6.1f}" for trip in trips)
            print(f"{name:24}{cells}{ringing_us(there):>10.2f}", flush=True)


if __name__ == "__main__":
    main()

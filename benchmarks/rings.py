"""The round trip of one empty batch: a command through the ring, the real worker loop with a model that does nothing, and
the completion back. What every request pays on top of HTTP and of its model.

    python benchmarks/rings.py
"""

import select
import socket
import statistics
import subprocess
import sys
import time

from ringserve.backends.contract import Batch, LoadedModel
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.budget import lane_shape
from ringserve.server.channel import Channel, channel_pair
from ringserve.server.control import LinkLane, StopWorker, ToWorker, WorkerMessage
from ringserve.server.worker import Worker
from ringserve.shm.lane import create_lane
from ringserve.shm.link import FrontLink, create_link
from ringserve.shm.ring import Command

SIGNATURE = Signature((TensorSpec("x", "float32", (1,)),), (TensorSpec("y", "float32", (1,)),))
WARM_UP = 500
ANSWER_S_MAX = 10.0


class NoModel:
    """Declares one number in and one out, and computes nothing."""

    def load(self, model: LoadedModel) -> Signature:
        return SIGNATURE

    def execute(self, batch: Batch) -> None:
        pass

    def describe(self) -> object:
        return None

    def close(self) -> None:
        pass


def _work(control_fd: int) -> None:
    channel = Channel(socket.socket(fileno=control_fd), ToWorker)
    Worker(channel, NoModel(), SIGNATURE, 1 << 20).serve_forever()


def _trips_ns(link: FrontLink, count: int) -> list[int]:
    poller = select.poll()
    poller.register(link.listener.fd, select.POLLIN)
    trips = []
    for sequence in range(count + WARM_UP):
        start = time.perf_counter_ns()
        assert link.commands.try_push(Command(sequence, slab=0, first=0, rows=1, out_at=0, out_bytes=0))
        link.bell.ring()
        if not poller.poll(ANSWER_S_MAX * 1000):
            raise SystemExit("The worker did not answer an empty batch.")
        assert link.listener.collect() == 1
        assert link.completions.take().sequence == sequence
        trips.append(time.perf_counter_ns() - start)
    return trips[WARM_UP:]


def round_trip_us(count: int = 20_000) -> tuple[float, float]:
    """Median and 99th percentile of `count` round trips, in µs."""
    ours, theirs = channel_pair()
    worker = subprocess.Popen([sys.executable, __file__, str(theirs.fileno())], pass_fds=(theirs.fileno(),))
    theirs.close()
    channel, shape = Channel(ours, WorkerMessage), lane_shape(SIGNATURE, 1, 1)
    try:
        segment, fds = create_lane(shape), create_link()
        channel.send(LinkLane(shape, SIGNATURE), [segment.fd, *fds.worker])
        link = FrontLink(fds.front)
        trips = _trips_ns(link, count)
        channel.send(StopWorker())
        worker.wait(ANSWER_S_MAX)
        link.close()
        segment.close()
    finally:
        worker.kill()
        worker.wait()
        channel.close()
    percentiles = statistics.quantiles(trips, n=100)
    return percentiles[49] / 1e3, percentiles[98] / 1e3


if __name__ == "__main__":
    if len(sys.argv) > 1:
        _work(int(sys.argv[1]))
    else:
        print("one empty batch through the rings and back: p50 {:.1f} us, p99 {:.1f} us".format(*round_trip_us()))

"""How much one version has to do, for whoever decides how many workers it should have, and where its slabs are."""

import time
from collections.abc import Iterable
from typing import NamedTuple

from ringserve.server.control import Load
from ringserve.server.drain_rate import DrainRate
from ringserve.server.inflight import LinkState
from ringserve.server.slab_queue import SlabQueue


def load_of(queue: SlabQueue, links: Iterable[LinkState], waiting: int, done: DrainRate) -> Load:
    """In one front end. A batch that a worker has in its ring and has not begun with waits as well, and what a worker is at now
    counts as work."""
    now_ns = time.monotonic_ns()
    oldest_ns, busy_ns = queue.oldest_ns, done.busy_ns
    for state in links:
        if not state.outstanding:
            continue
        busy_ns += max(0, now_ns - state.since_ns)
        for batch in state.outstanding:
            if not state.has_begun(batch):
                waiting += batch.count
                oldest_ns = min(oldest_ns or now_ns, batch.fill.oldest_ns)
    return Load(waiting, oldest_ns, done.total, busy_ns)


class SlabUse(NamedTuple):
    """How many slabs are where. Those `held` are filled from, or emptied to, the network."""

    free: int
    waiting: int
    executing: int
    held: int


def slab_use(queue: SlabQueue, links: Iterable[LinkState]) -> SlabUse:
    free, total = queue.counts()
    executing = len({id(batch.fill) for state in links for batch in state.outstanding})
    waiting = queue.lined_up()
    return SlabUse(free, waiting, executing, max(0, total - free - executing - waiting))

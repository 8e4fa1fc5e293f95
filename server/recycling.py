"""When a worker is replaced by a fresh one: `recycle:` of model-config.yaml. The pool does it, beside the old one.

A worker counts its requests itself and says when they are enough. Its age and its memory are looked at here, every few seconds.
"""

import asyncio
import time
from collections.abc import Callable, Iterable

from ringserve.server.pool import WorkerPool
from ringserve.server.process import rss_bytes
from ringserve.server.repository.sections import Recycle

LOOK_S = 2.0
# A process that needed more than it may from the start is given this long: a fresh one will hardly do better.
HEAVY_S_MIN = 30.0


def why_worn(rules: Recycle, age_s: float, rss_bytes: int, rss_ready_bytes: int) -> str:
    """Why a worker of this age and size should be replaced, which had the second size when it was ready; empty where it need not
    be."""
    if 0 < rules.max_age_s <= age_s:
        return f"it has run for {age_s:.0f} s, recycle.max_age is {rules.max_age_s:.0f} s"
    has_grown = rss_ready_bytes <= rules.max_rss_bytes or age_s >= HEAVY_S_MIN
    if 0 < rules.max_rss_bytes < rss_bytes and has_grown:
        return f"it takes {rss_bytes >> 20} MiB of memory, recycle.max_rss is {rules.max_rss_bytes >> 20} MiB"
    return ""


class Recycler:
    """`pools` are those that serve."""

    def __init__(self, pools: Callable[[], Iterable[WorkerPool]]) -> None:
        self._pools = pools

    async def look(self) -> None:
        """Once over all workers that are replaced some day."""
        pools = [pool for pool in self._pools() if _rules(pool) != Recycle()]
        pids = [slot.child.pid for pool in pools if _rules(pool).max_rss_bytes for slot in pool.slots if slot.child]
        sizes = await asyncio.to_thread(lambda: {pid: rss_bytes(pid) for pid in pids}) if pids else {}
        now_s = time.monotonic()
        for pool in pools:
            for slot in pool.slots:
                if slot.ready and slot.child is not None and not slot.worn:
                    size = sizes.get(slot.child.pid, 0)
                    slot.worn = why_worn(_rules(pool), now_s - slot.ready_s, size, slot.rss_ready_bytes)
            pool.replace_worn()


def _rules(pool: WorkerPool) -> Recycle:
    return pool.version.unpacked.config.sections.recycle

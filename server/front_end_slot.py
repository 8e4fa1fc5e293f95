"""One wanted front end as the fleet sees it, and what the fleet asks of the rest of the supervisor."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from ringserve.server.control import Routes, SequenceSaid
from ringserve.server.lifecycle import State
from ringserve.server.messages import Message
from ringserve.server.process import Child
from ringserve.server.registry import ModelVersion
from ringserve.server.trace_messages import Trace
from ringserve.server.worker_slot import WorkerSlot
from ringserve.shm.layout import LaneShape
from ringserve.shm.segment import Segment


@dataclass(eq=False, slots=True)
class FrontEndSlot:
    """One wanted front end and the process that fills it. `attached` holds (version key, worker id), `shared` the versions of
    whose queue page it knows, `counted` those of whose counters."""

    index: int
    child: Child
    lanes: dict[int, tuple[Segment, LaneShape]] = field(default_factory=dict)
    attached: set[tuple[int, str]] = field(default_factory=set)
    shared: set[int] = field(default_factory=set)
    counted: set[int] = field(default_factory=set)
    pulses_missed: int = 0
    started_s: float = field(default_factory=time.monotonic)

    @property
    def ready(self) -> bool:
        return self.child.state is State.READY


Send = Callable[[Message, Sequence[int]], None]


@dataclass(frozen=True, slots=True)
class FleetHooks:
    """What the fleet asks of the rest of the supervisor. `routes` is what can be asked for now, of no epoch yet;
    `ready_workers` lists who must be linked to a fresh front end; `on_stuck(version key, worker id)`; `on_sequences(front end,
    words)` is what one says of sequences, `on_gone(front end)` that it knows nothing any more; `equip(send, epoch)` tells a fresh one
    what else it must know before it serves; `on_traces(traces, missed)` is what was traced of requests."""

    routes: Callable[[], Routes]
    ready_workers: Callable[[], Iterable[tuple[ModelVersion, WorkerSlot]]]
    on_stuck: Callable[[int, str], None]
    on_sequences: Callable[[int, Sequence[SequenceSaid]], None] = lambda front_end, words: None
    on_gone: Callable[[int], None] = lambda front_end: None
    equip: Callable[[Send, int], None] = lambda send, epoch: None
    on_traces: Callable[[Sequence[Trace], int], None] = lambda traces, missed: None

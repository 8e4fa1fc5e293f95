"""What supervisor and front ends say to each other about traces (contract section 3.9)."""

import msgspec

from ringserve.server.messages import Message


class SetTraces(Message, frozen=True):
    """Trace one of so many requests of each model, 0 of none; `others` is for models that are not named. Answered with `Applied`."""

    epoch: int
    others: int
    models: dict[str, int]


class Trace(msgspec.Struct, frozen=True, array_like=True):
    """One request of a version. Times are CLOCK_MONOTONIC in nanoseconds: when it came and was queued, when a worker took it up, the
    model began and ended, when that was heard, and when it was over. Those from the third to the last but one are 0 where no worker
    executed it."""

    model: str
    version: str
    request_id: str
    times_ns: tuple[int, int, int, int, int, int, int]


class Traced(Message, frozen=True):
    """Requests that are over. `missed`: of so many the traces were lost, for there were too many."""

    traces: tuple[Trace, ...]
    missed: int = 0

"""Which rows of a batch that raised are the ones that make it raise.

    all rows ─┬─▶ first half ─┬─▶ ...             a group that succeeds is done, and one that raises is halved,
              └─▶ second half └─▶ ...             until its single row has failed alone

The larger groups run first: most rows are saved by the fewest calls. Pure: running a group is the caller's.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence

from ringserve.backends.contract import ContractBroken
from ringserve.protocol.errors import RingServeError

# Further calls for each time the batch can be halved: two find one offender, four find two or three.
CALLS_PER_HALVING_MAX = 4

Attempt = Callable[[Sequence[int]], RingServeError | None]


def isolate(
    rows: Sequence[int], failure: RingServeError, attempt: Attempt, may_go_on: Callable[[], bool]
) -> tuple[dict[int, RingServeError], int]:
    """Which of `rows`, which together failed with `failure`, fail, and with what, and how many calls told. When the calls are
    used up, or `may_go_on` forbids more, rows nobody has tried apart fail with the error of their group."""
    failed: dict[int, RingServeError] = {}
    calls, calls_max = 0, CALLS_PER_HALVING_MAX * math.ceil(math.log2(len(rows)))
    groups: deque[tuple[Sequence[int], RingServeError]] = deque()

    def note(group: Sequence[int], error: RingServeError) -> None:
        if len(group) == 1 or isinstance(error, ContractBroken):
            failed.update(dict.fromkeys(group, error))
        else:
            middle = (len(group) + 1) // 2
            groups.extend(((group[:middle], error), (group[middle:], error)))

    note(rows, failure)
    while groups:
        group, inherited = groups.popleft()
        if calls == calls_max or not may_go_on():
            failed.update(dict.fromkeys(group, inherited))
            continue
        calls += 1
        error = attempt(group)
        if error is not None:
            note(group, error)
    return failed, calls

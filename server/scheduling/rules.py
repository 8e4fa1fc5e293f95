"""How the requests of a version are put together and in which order, as its configuration says it in Triton's words: what the supervisor
read from it, and front ends go by. Only data; queue.py and server/sequences/ act on it.
"""

import msgspec

NS_OF_US = 1000

# The kinds of a control tensor: what it tells the model of a request.
START, END, READY, CORRID = "START", "END", "READY", "CORRID"
CONTROL_KINDS = (START, END, READY, CORRID)
# Longer ones are no limit that anybody could wait for, and no sum of them leaves 63 bits.
TIME_US_MAX = 10**15


class QueuePolicy(msgspec.Struct, frozen=True, array_like=True):
    """Of one priority level. `queue_size_max` requests of the level may wait (0: as many as come). One that has waited for `timeout_us`
    (0: no limit) is refused, or, with `delays`, served after all others of its level. With `overridable`, a request may say a timeout
    of its own, which counts when it is smaller, or when there is none."""

    queue_size_max: int = 0
    timeout_us: int = 0
    delays: bool = False
    overridable: bool = False

    def patience_us(self, asked_us: int) -> int:
        """How long a request may wait that says `asked_us` (0: nothing); 0 is for ever.

        With `overridable` and no default Triton ignores what the request says, since nothing is smaller than 0. Here it counts."""
        if not self.overridable or asked_us <= 0:
            return self.timeout_us
        return min(asked_us, self.timeout_us) if self.timeout_us else min(asked_us, TIME_US_MAX)


class Control(msgspec.Struct, frozen=True, array_like=True):
    """An input that the server adds to every request of a sequence: `kind` is one of `CONTROL_KINDS`, `datatype` the protocol's word.
    `false` and `true` are the values of the first three kinds; CORRID has the sequence's id."""

    name: str
    kind: str
    datatype: str
    false: bool | int | float = 0
    true: bool | int | float = 1


class SequenceScheduling(msgspec.Struct, frozen=True, array_like=True):
    """Which requests belong together is said by their `sequence_id`; one that has been silent for `idle_us_max` has ended.

    A worker has at most `places` sequences at once: as many as a batch has slots (direct), or `max_candidate_sequences` (oldest).
    `queue_delay_us_max`: how long the oldest request may wait for others to join its batch, which those of `utilization_min` of the slots
    need not (direct), nor a batch of one of `preferred_batch_sizes` (oldest)."""

    oldest: bool
    places: int
    idle_us_max: int = 1_000_000
    controls: tuple[Control, ...] = ()
    queue_delay_us_max: int = 0
    utilization_min: float = 0.0
    preferred_batch_sizes: tuple[int, ...] = ()


class Scheduling(msgspec.Struct, frozen=True, array_like=True):
    """`batches`: requests of several clients may be executed together; without it each is executed alone. `batch_size_max` counts items: the
    first dimension of a request's tensors, 1 where they have no batch dimension. `preferred_batch_sizes` are ascending, () stands for the greatest
    batch. `queue_delay_us_max`: how long the oldest request may wait for a preferred size.

    Level 1 comes before level 2 and so on; `priority_levels` 0 is one level. `policies` are those of levels that have one of their own.
    Requests whose inputs differ in shape are not put together, except in their `ragged_inputs`. With `sequences`, requests belong
    together, and of the rest only the policy counts."""

    batch_size_max: int = 1
    batches: bool = False
    preferred_batch_sizes: tuple[int, ...] = ()
    queue_delay_us_max: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 0
    default_policy: QueuePolicy = QueuePolicy()
    policies: dict[int, QueuePolicy] = {}
    ragged_inputs: tuple[str, ...] = ()
    sequences: SequenceScheduling | None = None

    def level_of(self, priority: int) -> int:
        """The level of a request that says `priority`; 0 and what is not a level stand for the default one. 0 where there are none."""
        if 1 <= priority <= self.priority_levels:
            return priority
        return self.default_priority_level if self.priority_levels else 0

    def policy_of(self, level: int) -> QueuePolicy:
        """That of a level of `level_of`."""
        return self.policies.get(level, self.default_policy)

    @property
    def ordinary(self) -> bool:
        """Whether the server's usual queue does all this asks for: what waits leaves as soon as a worker is idle."""
        preferred = not self.preferred_batch_sizes or self.preferred_batch_sizes == (self.batch_size_max,)
        waits = self.batches and preferred and not self.queue_delay_us_max
        levels = self.priority_levels <= 1 and not self.policies and self.default_policy == QueuePolicy()
        return waits and levels and not self.preserve_ordering and self.sequences is None

    @property
    def strict(self) -> bool:
        """Whether a request that comes later may be the next one: nothing is given to a worker before that is idle."""
        return self.priority_levels > 1 or bool(self.policies) or self.default_policy != QueuePolicy()

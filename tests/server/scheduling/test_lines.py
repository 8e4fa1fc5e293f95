"""Which requests leave together, in which order, and whose time is over."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.server.batching import WaitUntil
from ringserve.server.scheduling.lines import SWEEP_MIN, Entry, Leave, Lines
from ringserve.server.scheduling.rules import NS_OF_US, QueuePolicy, Scheduling
from tests.server.scheduling.reference import Reference, Request

T0 = 10**12
ITEMS_MAX = 8


class Waiter(Entry):
    """An entry with a name."""

    __slots__ = ("name",)

    def __init__(
        self, name: Any, items: int = 1, key: str = "", level: int = 0, arrived_ns: int = T0, expires_ns: int = 0
    ) -> None:
        super().__init__(arrived_ns, level, expires_ns)
        self.name, self.items, self.key = name, items, key


def lines(*waiters: Waiter, **rules: Any) -> Lines:
    made = Lines(Scheduling(ITEMS_MAX, **{"batches": True, **rules}), ITEMS_MAX)
    for each in waiters:
        made.add(each)
    return made


def named(entries: list[Entry]) -> list[Any]:
    return [each.name for each in entries if isinstance(each, Waiter)]


def chosen(of: Lines, now_ns: int = T0, *, ahead: bool = False) -> list[Any] | int | None:
    """The names of those that leave, the time to ask again, or None."""
    found = of.choose(now_ns, ahead=ahead)
    if isinstance(found, Leave):
        return named(found.entries)
    return found.at_ns if isinstance(found, WaitUntil) else None


def test_what_waits_leaves_at_once_when_nothing_else_is_asked_for() -> None:
    assert chosen(lines(Waiter("a"), Waiter("b", 3))) == ["a", "b"]
    assert chosen(lines()) is None


def test_a_request_is_never_parted_and_nobody_overtakes_it() -> None:
    assert chosen(lines(Waiter("a", 5), Waiter("b", 4), Waiter("c", 1))) == ["a"]


def test_a_batch_may_be_exactly_full() -> None:
    assert chosen(lines(Waiter("a", 5), Waiter("b", 3), Waiter("c"))) == ["a", "b"]


def test_one_that_would_overshoot_every_preferred_size_sends_those_before_it_off() -> None:
    """As real Triton 2.51 was seen to do."""
    assert chosen(lines(Waiter("a", 3), Waiter("b", 3), preferred_batch_sizes=(4,))) == ["a"]
    patient = lines(Waiter("a", 3), Waiter("b", 3), preferred_batch_sizes=(4,), queue_delay_us_max=1)
    assert chosen(patient) == ["a"]
    assert chosen(patient, T0 + 1000) == ["a", "b"]
    assert chosen(lines(Waiter("a", 6), Waiter("b"), preferred_batch_sizes=(4,))) == ["a", "b"]


def test_a_request_of_other_shapes_ends_the_batch() -> None:
    assert chosen(lines(Waiter("a"), Waiter("b", key="wide"), Waiter("c"))) == ["a"]


def test_without_dynamic_batching_each_leaves_alone() -> None:
    assert chosen(lines(Waiter("a"), Waiter("b"), batches=False)) == ["a"]
    assert chosen(lines(Waiter("a"), batches=False), ahead=True) == ["a"]


def test_the_greatest_preferred_size_that_is_met_leaves() -> None:
    waiters = [Waiter(name) for name in "abcde"]
    assert chosen(lines(*waiters, preferred_batch_sizes=(2, 4))) == ["a", "b", "c", "d"]


def test_a_preferred_size_is_waited_for_as_long_as_the_oldest_may_wait() -> None:
    made = lines(Waiter("a"), Waiter("b", arrived_ns=T0 + 50), preferred_batch_sizes=(4,), queue_delay_us_max=1)
    assert chosen(made, T0 + 999) == T0 + 1000
    assert chosen(made, T0 + 1000) == ["a", "b"]
    made.add(Waiter("c", 2, arrived_ns=T0 + 60))
    assert chosen(made, T0 + 60) == ["a", "b", "c"]


def test_after_the_delay_everything_leaves_whatever_its_size() -> None:
    waiters = [Waiter(name) for name in "abcde"]
    made = lines(*waiters, preferred_batch_sizes=(2, 4), queue_delay_us_max=1)
    assert chosen(made, T0 + 999) == ["a", "b", "c", "d"]
    assert chosen(made, T0 + 1000) == ["a", "b", "c", "d", "e"]


def test_a_higher_level_goes_first_and_order_counts_within_a_level() -> None:
    order = [Waiter("low", level=2), Waiter("high", level=1), Waiter("low 2", level=2), Waiter("high 2", level=1)]
    made = lines(*order, priority_levels=2, default_priority_level=2)
    assert chosen(made) == ["high", "high 2", "low", "low 2"]


def test_a_busy_worker_is_given_only_what_cannot_get_better() -> None:
    made = lines(Waiter("a"), preferred_batch_sizes=(2,))
    assert chosen(made, ahead=True) is None
    made.add(Waiter("b"))
    assert chosen(made, ahead=True) == ["a", "b"]


def test_who_waits_too_long_is_refused() -> None:
    early, late = Waiter("early", expires_ns=T0 + 10), Waiter("late", expires_ns=T0 + 20)
    made = lines(late, early, Waiter("for ever"))
    assert made.expires_ns == T0 + 10
    assert made.expire(T0 + 9) == []
    assert named(made.expire(T0 + 10)) == ["early"]
    assert made.expires_ns == T0 + 20
    assert named(made.expire(T0 + 30)) == ["late"]
    assert (made.expires_ns, len(made), chosen(made)) == (0, 1, ["for ever"])


def test_who_waits_too_long_is_served_behind_its_level_where_the_policy_says_so() -> None:
    rules = {"priority_levels": 2, "default_priority_level": 1, "default_policy": QueuePolicy(delays=True)}
    waiters = [Waiter("over", level=1, expires_ns=T0 + 1), Waiter("in time", level=1), Waiter("low", level=2)]
    made = lines(*waiters, **rules)
    assert made.expire(T0 + 1) == []
    assert chosen(made) == ["in time", "over", "low"]
    made.remove(waiters[0])
    assert chosen(made) == ["in time", "low"]


def test_only_levels_that_somebody_waits_in_take_memory() -> None:
    made = lines(Waiter("a", level=2**62), Waiter("b", level=3), priority_levels=2**63, default_priority_level=1)
    assert chosen(made) == ["b", "a"]
    for each in list(made):
        made.remove(each)
    assert made._lines == {}
    assert chosen(made) is None


def test_each_level_is_full_by_its_own_policy() -> None:
    rules = {"default_policy": QueuePolicy(queue_size_max=1), "policies": {2: QueuePolicy()}}
    made = lines(Waiter("a", level=1), Waiter("b", level=2), priority_levels=2, default_priority_level=1, **rules)
    assert [made.is_full(level) for level in (1, 2)] == [True, False]


def test_times_of_those_who_left_are_thrown_away() -> None:
    made = lines()
    for number in range(3 * SWEEP_MIN):
        each = Waiter(number, expires_ns=T0 + number + 1)
        made.add(each)
        made.remove(each)
    assert len(made._times) <= SWEEP_MIN
    assert made.expires_ns == 0


@pytest.mark.parametrize(
    ("policy", "asked_us", "expected_us"),
    [
        (QueuePolicy(), 5, 0),
        (QueuePolicy(timeout_us=9), 5, 9),
        (QueuePolicy(timeout_us=9, overridable=True), 5, 5),
        (QueuePolicy(timeout_us=9, overridable=True), 50, 9),
        (QueuePolicy(timeout_us=9, overridable=True), 0, 9),
        (QueuePolicy(timeout_us=9, overridable=True), -1, 9),
        (QueuePolicy(overridable=True), 5, 5),
        (QueuePolicy(overridable=True), 2**64, 10**15),
    ],
)
def test_a_timeout_of_the_request_counts_where_it_may_be_said(
    policy: QueuePolicy, asked_us: int, expected_us: int
) -> None:
    assert policy.patience_us(asked_us) == expected_us


@pytest.mark.parametrize(("priority", "level"), [(0, 2), (1, 1), (3, 3), (4, 2), (2**64, 2), (-1, 2)])
def test_a_priority_that_is_no_level_stands_for_the_default_one(priority: int, level: int) -> None:
    assert Scheduling(priority_levels=3, default_priority_level=2).level_of(priority) == level
    assert Scheduling().level_of(priority) == 0


policies = st.builds(QueuePolicy, st.sampled_from([0, 0, 3]), st.sampled_from([0, 0, 2]), st.booleans(), st.booleans())


@st.composite
def rule_sets(draw: st.DrawFn) -> Scheduling:
    levels = draw(st.sampled_from([0, 0, 1, 3]))
    return Scheduling(
        batch_size_max=ITEMS_MAX,
        batches=draw(st.sampled_from([True, True, True, False])),
        preferred_batch_sizes=tuple(sorted(draw(st.sets(st.integers(2, ITEMS_MAX), max_size=2)))),
        queue_delay_us_max=draw(st.sampled_from([0, 1, 3])),
        priority_levels=levels,
        default_priority_level=draw(st.integers(1, levels)) if levels else 0,
        default_policy=draw(policies),
        policies=draw(st.dictionaries(st.integers(1, levels), policies)) if levels else {},
    )


Step = tuple[str, int, int, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "leave", "leave ahead", "forsake"]),
        st.integers(0, 4),  # the priority, or who is forsaken
        st.sampled_from([1, 1, 1, 2, 2, 3, ITEMS_MAX]),
        st.sampled_from([0, 0, 0, 1]),  # the key
        st.sampled_from([0, 0, 0, 500, 1000, 3000]),  # how much time passes, ns
    ),
    min_size=8,
    max_size=60,
)


@given(rule_sets(), steps)
def test_whatever_comes_the_lines_do_what_a_straightforward_list_does(rules: Scheduling, steps: list[Step]) -> None:
    made, reference, now_ns = Lines(rules, ITEMS_MAX), Reference(rules, ITEMS_MAX), T0
    entries: dict[int, Waiter] = {}
    for number, (action, which, items, key, passes_ns) in enumerate(steps):
        now_ns += passes_ns
        assert named(made.expire(now_ns)) == reference.expire(now_ns)
        level = rules.level_of(which)
        assert made.is_full(level) == reference.is_full(level)
        if action == "add" and not made.is_full(level):
            patience_us = rules.policy_of(level).patience_us(items % 3)
            expires_ns = now_ns + patience_us * NS_OF_US if patience_us else 0
            entries[number] = Waiter(number, items, str(key), level, now_ns, expires_ns)
            made.add(entries[number])
            reference.waiting.append(Request(number, level, items, str(key), now_ns, expires_ns))
        elif action == "forsake" and reference.waiting:
            gone = reference.waiting.pop(which % len(reference.waiting))
            made.remove(entries[gone.number])
        elif action.startswith("leave"):
            found = chosen(made, now_ns, ahead="ahead" in action)
            assert found == reference.choose(now_ns, ahead="ahead" in action)
            for each in found if isinstance(found, list) else ():
                made.remove(entries[each])
                reference.waiting = [request for request in reference.waiting if request.number != each]
        assert len(made) == len(reference.waiting)

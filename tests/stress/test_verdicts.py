"""The judge of the stress test: what it lets pass, and what it does not."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
with (
    pytest.MonkeyPatch.context() as path_patch
):  # the stress test is run from the root; nothing else may import from there
    path_patch.syspath_prepend(ROOT)
    from tests.stress import stress
    from tests.stress.chaos import Slabs, parse_slabs
    from tests.stress.plans import MODELS, ORDINARY, Kind, Plan, Planner
    from tests.stress.verdicts import (
        Suspect,
        Tally,
        Word,
        is_beginning,
        is_innocent,
        judge,
        merge,
        rss_growth,
        shortcomings,
        unexcused,
    )

PLAN = Plan(Kind.HASH, "p0-1", b"body", (b"p0-1 hash", b" ", b"body"))
RAISE = Plan(Kind.RAISE, "p0-2", b"raise ")
TYPED = Plan(Kind.TYPED, "p0-3", b"", (b"[5, 12]",))
CUT = Suspect("a cut", since_s=10.0, until_s=30.0, worker=False, front_end=True)


def error(status: int, message: str = "no") -> bytes:
    return json.dumps({"code": status, "type": "SomeException", "message": message}).encode()


def word(plan: Plan, status: int, body: bytes) -> Word:
    return judge(plan, status, body)[0]


def test_only_the_own_answer_is_right() -> None:
    assert word(PLAN, 200, b"p0-1 hash body") is Word.RIGHT
    for other in (b"", b"p0-1 hash bod", b"p0-1 hash bodyx", b"p0-2 hash body", b"p0-1 hash bodY"):
        assert word(PLAN, 200, other) is Word.WRONG


def test_a_typed_answer_is_compared_as_numbers() -> None:
    assert word(TYPED, 200, b"[5.0, 12.0]") is Word.RIGHT
    for other in (b"[5, 13]", b"[6, 12]", b"[5]", b"five"):
        assert word(TYPED, 200, other) is Word.WRONG


def test_a_full_queue_is_an_honest_answer_when_it_says_so_in_the_agreed_shape() -> None:
    assert word(PLAN, 503, error(503)) is Word.REFUSED
    assert word(PLAN, 503, b"busy") is Word.WRONG
    assert word(PLAN, 503, error(500)) is Word.WRONG


def test_a_deadline_that_was_not_set_cannot_be_over() -> None:
    assert word(PLAN, 504, error(504)) is Word.WRONG
    assert word(replace(PLAN, deadline_ms=5), 504, error(504)) is Word.REFUSED


def test_a_request_at_fault_is_not_answered_as_if_it_were_not() -> None:
    assert word(RAISE, 503, error(503)) is Word.REFUSED
    assert word(RAISE, 200, b"") is Word.WRONG
    assert word(Plan(Kind.OVERSIZED, "p0-4", b""), 200, b"") is Word.WRONG
    assert word(PLAN, 413, error(413)) is Word.WRONG


def test_a_lost_worker_is_suspect_and_excused_by_a_kill_of_a_worker_alone() -> None:
    assert word(PLAN, 500, error(500)) is Word.SUSPECT
    lost = Suspect("lost", since_s=10.0, until_s=11.0, worker=True, front_end=False)
    assert unexcused([lost], [10.5], []) == []
    assert unexcused([lost], [], [10.5]) == ["lost, and nothing had been killed"]


def test_a_cut_connection_is_excused_by_a_kill_of_a_front_end_shortly_before() -> None:
    assert unexcused([CUT], [], [29.0]) == []
    assert unexcused([CUT], [29.0], []) != []
    assert unexcused([CUT], [], [20.0]) != [], "its victims heard of that one long ago"
    assert unexcused([CUT], [], [31.0]) != []
    assert unexcused([replace_since(CUT, 29.6)], [], [29.0]) != [], "the connection is younger than the kill"


def replace_since(suspect: Suspect, since_s: float) -> Suspect:
    return Suspect(suspect.what, since_s, suspect.until_s, suspect.worker, suspect.front_end)


def test_a_cut_answer_must_have_been_the_own_one_so_far() -> None:
    assert is_beginning(PLAN, b"p0-1 ha")
    assert not is_beginning(PLAN, b"p0-2 ha")


def test_who_fails_for_another_row_is_counted() -> None:
    assert is_innocent(PLAN, 503, error(503, "Prediction failed"))
    assert not is_innocent(PLAN, 503, error(503, "The queue is full"))
    assert not is_innocent(RAISE, 503, error(503, "Prediction failed"))


def tally(right: int = 0, refused: int = 0, innocent: int = 0, kind: Kind = Kind.FAULTY) -> Tally:
    counted = Tally(innocent=innocent)
    counted.count(kind, Word.RIGHT, right)
    counted.count(kind, Word.REFUSED, refused)
    return counted


def test_a_server_that_refuses_nearly_everything_falls_short() -> None:
    assert shortcomings(tally(right=90, refused=10)) == []
    assert shortcomings(tally(right=10, refused=90)) != []


def test_some_innocent_rows_are_within_the_bounds_of_isolation_and_many_are_not() -> None:
    assert shortcomings(tally(right=1000, innocent=10)) == []
    assert shortcomings(tally(right=1000, innocent=100)) != []


def test_tallies_are_added_up() -> None:
    one, two = tally(right=1), tally(right=2, refused=3)
    two.violate("something")
    whole = merge([one, two])
    assert whole.counts == {"faulty": {"right": 3, "refused": 3}}
    assert (whole.violation_count, whole.violations) == (1, ["something"])


def test_growth_is_measured_after_the_first_tenth() -> None:
    assert rss_growth([1] * 10 + [100] * 90) == 0.0
    assert rss_growth([100] * 60 + [110] * 40) == pytest.approx(0.1)
    assert rss_growth([]) == 0.0


def test_what_a_front_end_says_about_its_slabs_is_read_from_the_log() -> None:
    line = 'INFO ringserve.frontend dispatcher Model "hash" version 1.0: free slabs {} of 6, waiting {}, held {}\n'
    slabs = parse_slabs(line.format(6, 0, 0) + line.format(5, 1, 2))
    assert slabs == [Slabs('Model "hash" version 1.0', 6, 6, 0, 0), Slabs('Model "hash" version 1.0', 5, 6, 1, 2)]
    assert [each.quiet for each in slabs] == [True, False]


def test_the_same_seed_draws_the_same_requests_and_another_client_draws_others() -> None:
    def numbers_and_bodies(name: str) -> list[tuple[str, bytes]]:
        planner = Planner(name, seed=7)
        return [(plan.number.partition("-")[2], bytes(plan.body)) for _ in range(50) for plan in planner.next()]

    assert numbers_and_bodies("one") == numbers_and_bodies("one")
    assert numbers_and_bodies("one") != numbers_and_bodies("two")


def test_every_kind_is_drawn_sooner_or_later_and_small_bodies_most() -> None:
    planner = Planner("one", seed=1)
    plans = [plan for _ in range(4000) for plan in planner.next()]
    assert {plan.kind for plan in plans} >= set(Kind) - {Kind.HANG}
    sizes = sorted(len(plan.body) for plan in plans if plan.kind is Kind.HASH)
    assert sizes[0] == 0
    assert sizes[len(sizes) // 2] < 1024
    assert sizes[-1] > 1 << 20
    assert all(plan.answer for plan in plans if plan.kind in ORDINARY)


def test_kinds_can_be_chosen() -> None:
    planner = Planner("one", seed=1, kinds={Kind.TYPED})
    assert {plan.kind for _ in range(50) for plan in planner.next()} == {Kind.TYPED}
    assert stress.options_from(["--kinds", "typed,hash"]).kinds == ["typed", "hash"]


def test_the_summary_shows_what_was_wrong() -> None:
    counted = tally(right=9, refused=1)
    counted.violate("an answer of another client")
    outcome = stress.Outcome(stress.Options(), counted, seconds=2.0, worker_kills=3, violations=["a slab is not free"])
    text = stress.render(outcome)
    assert "VIOLATION: an answer of another client" in text
    assert "VIOLATION: a slab is not free" in text
    assert text.endswith("2 violations")
    assert set(MODELS) == set(Kind)

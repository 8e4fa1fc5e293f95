"""The table of a version's sequences: who has which, for how long, and what front ends are told of it."""

import pytest

from ringserve.server.control import GrantSequence, RefuseSequence, RevokeSequence, SequenceEnded, SequenceTold
from ringserve.server.sequences.table import (
    ENDED,
    TOO_LONG,
    UNKNOWN,
    WORKER_DIED,
    WORKER_LEAVES,
    Asking,
    Limits,
    SequenceTable,
)

KEY, TOKEN, IDLE_NS, LIFE_NS = 7, 3, 100, 1000
WORKERS = ("w1", "w2")


def table_of(
    sequences_max: int = 4, workers: tuple[str, ...] = WORKERS, life_ns: int = 0, workers_min: int = 2
) -> SequenceTable:
    table = SequenceTable(KEY, Limits(sequences_max, IDLE_NS, life_ns))
    table.workers_min = workers_min
    for worker_id in workers:
        table.worker_ready(worker_id)
    return table


def table_with_places(places: int, *workers: str) -> SequenceTable:
    table = SequenceTable(KEY, Limits(1 << 30, IDLE_NS, places=places, slotted=True))
    for worker_id in workers:
        table.worker_ready(worker_id)
    return table


def said(table: SequenceTable) -> list[tuple[int, SequenceTold]]:
    words, table.outbox = table.outbox, []
    return words


def ask(table: SequenceTable, sequence_id: str, front_end: int = 0, now_ns: int = 1) -> SequenceTold:
    """The answer, which comes at once."""
    table.ask(Asking(front_end, KEY, sequence_id, TOKEN), WORKERS, now_ns)
    ((to, word),) = said(table)
    assert to == front_end
    return word


def granted(table: SequenceTable, sequence_id: str, front_end: int = 0, now_ns: int = 1) -> GrantSequence:
    word = ask(table, sequence_id, front_end, now_ns)
    assert isinstance(word, GrantSequence)
    return word


def test_a_sequence_goes_to_the_worker_with_the_fewest() -> None:
    table = table_of()
    assert [granted(table, each).worker_id for each in "abcd"] == ["w1", "w2", "w1", "w2"]
    table.release(0, 1, TOKEN)
    table.release(0, 3, TOKEN)
    assert [granted(table, each).worker_id for each in "ef"] == ["w1", "w1"]


def test_all_front_ends_are_told_of_the_same_worker() -> None:
    table = table_of()
    first, second = granted(table, "a", 0), granted(table, "a", 1)
    assert first == second == GrantSequence(KEY, "a", TOKEN, 1, "w1", lives_in=KEY)


def test_no_more_sequences_live_than_may() -> None:
    table = table_of(2)
    granted(table, "a"), granted(table, "b")
    refused = RefuseSequence(KEY, "c", TOKEN, "2 sequences live, maxNumSequence is 2")
    assert ask(table, "c") == refused
    table.release(0, 1, TOKEN)
    assert granted(table, "c").number == 3


def test_one_that_must_not_begin_is_unknown_unless_it_lives() -> None:
    table = table_of()
    goes_on = Asking(1, KEY, "a", TOKEN, begins=False)
    table.ask(goes_on, WORKERS, 1)
    assert said(table) == [(1, RefuseSequence(KEY, "a", TOKEN, UNKNOWN, unknown=True))]
    granted(table, "a", 0)
    table.ask(goes_on, WORKERS, 1)
    assert said(table) == [(1, GrantSequence(KEY, "a", TOKEN, 1, "w1", lives_in=KEY))]


def test_each_has_a_place_of_its_own_on_its_worker_and_others_wait_in_order() -> None:
    table = table_with_places(2, *WORKERS)
    assert [(each.worker_id, each.slot) for each in (granted(table, name) for name in "abcd")] == [
        ("w1", 0),
        ("w2", 0),
        ("w1", 1),
        ("w2", 1),
    ]
    assert [granted(table, name).worker_id for name in "ef"] == ["", ""]
    table.release(0, 1, TOKEN)
    assert said(table) == [(0, GrantSequence(KEY, "e", TOKEN, 5, "w1", lives_in=KEY, slot=0))]
    table.release(0, 4, TOKEN)
    assert said(table) == [(0, GrantSequence(KEY, "f", TOKEN, 6, "w2", lives_in=KEY, slot=1))]


@pytest.mark.parametrize(("sequences", "workers_min", "each"), [(5, 2, 3), (4, 2, 2), (1, 4, 1), (6, 1, 6), (3, 0, 3)])
def test_each_sequence_that_is_let_in_has_a_place_on_some_worker(sequences: int, workers_min: int, each: int) -> None:
    table = table_of(sequences, workers_min=workers_min)
    assert table.per_worker_max == each
    assert each * max(1, workers_min) >= sequences


def test_a_sequence_waits_for_a_worker_and_counts_meanwhile() -> None:
    table = table_of(2, workers=())
    assert granted(table, "a", 0) == GrantSequence(KEY, "a", TOKEN, 1, "", lives_in=KEY)
    assert granted(table, "a", 1).worker_id == ""
    granted(table, "b", 0)
    assert isinstance(ask(table, "c"), RefuseSequence)
    table.worker_ready("w1")
    placed = [
        (front_end, word.worker_id, word.number) for front_end, word in said(table) if isinstance(word, GrantSequence)
    ]
    assert placed == [(0, "w1", 1), (1, "w1", 1)]
    table.worker_ready("w2")
    ((front_end, word),) = said(table)
    assert (front_end, word) == (0, GrantSequence(KEY, "b", TOKEN, 2, "w2", lives_in=KEY))


def test_a_sequence_that_waits_has_the_place_of_one_that_ends() -> None:
    table = table_of(3, workers=("w1",), workers_min=3)
    granted(table, "a"), granted(table, "b")
    table.release(0, 1, TOKEN)
    assert said(table) == [(0, GrantSequence(KEY, "b", TOKEN, 2, "w1", lives_in=KEY))]


def test_it_lives_as_long_as_one_front_end_holds_it() -> None:
    table = table_of()
    granted(table, "a", 0), granted(table, "a", 1)
    table.release(0, 1, TOKEN)
    assert "a" in table
    assert granted(table, "a", 0).number == 1
    table.release(0, 1, TOKEN)
    table.release(1, 1, TOKEN)
    assert "a" not in table
    assert granted(table, "a", 0).number == 2


def test_what_is_said_of_a_number_never_means_the_next_sequence_of_that_id() -> None:
    table = table_of()
    granted(table, "a", 0)
    table.release(0, 1, TOKEN)
    granted(table, "a", 0)
    table.release(0, 1, TOKEN)
    table.left(0, 1)
    assert "a" in table


def test_a_release_counts_for_the_question_that_it_follows() -> None:
    table = table_of()
    granted(table, "a", 0)
    table.ask(Asking(0, KEY, "a", TOKEN + 1), WORKERS, 1)
    table.release(0, 1, TOKEN)
    assert "a" in table
    table.release(0, 1, TOKEN + 1)
    assert "a" not in table


def test_an_end_is_known_everywhere_before_it_is_confirmed() -> None:
    table = table_of()
    granted(table, "a", 0), granted(table, "a", 1)
    table.end(0, KEY, 5, 1)
    assert said(table) == [(1, RevokeSequence(KEY, 1, ENDED))]
    table.ask(Asking(0, KEY, "a", TOKEN), WORKERS, 1)
    assert (said(table), table.again) == ([], [])
    table.left(1, 1)
    assert said(table) == [(0, SequenceEnded(KEY, 5))]
    assert table.again == [Asking(0, KEY, "a", TOKEN)]
    assert granted(table, "a").number == 2


def test_an_end_that_two_front_ends_see_is_confirmed_to_both() -> None:
    table = table_of()
    granted(table, "a", 0), granted(table, "a", 1)
    table.end(0, KEY, 5, 1)
    table.end(1, KEY, 6, 1)
    assert said(table) == [(1, RevokeSequence(KEY, 1, ENDED)), (0, SequenceEnded(KEY, 5)), (1, SequenceEnded(KEY, 6))]
    table.end(1, KEY, 7, 1)
    assert said(table) == [(1, SequenceEnded(KEY, 7))]


def test_a_worker_may_end_its_sequences_by_their_ids_and_no_others() -> None:
    table = table_of()
    granted(table, "a", 0), granted(table, "b", 0)
    table.end(1, KEY, 5, 0, "a", "w2")
    assert said(table) == [(1, SequenceEnded(KEY, 5))]
    table.end(1, KEY, 6, 0, "a", "w1")
    assert said(table) == [(0, RevokeSequence(KEY, 1, ENDED))]
    table.left(0, 1)
    assert said(table) == [(1, SequenceEnded(KEY, 6))]
    assert "b" in table


def test_a_worker_that_dies_takes_its_sequences_with_it() -> None:
    table = table_of()
    granted(table, "a", 0), granted(table, "b", 0), granted(table, "c", 1)
    table.worker_gone("w1")
    assert [each.sequence_id for each in table] == ["b"]
    assert said(table) == [(0, RevokeSequence(KEY, 1, WORKER_DIED)), (1, RevokeSequence(KEY, 3, WORKER_DIED))]
    assert granted(table, "a").worker_id == "w2"


def test_who_waits_for_the_end_of_a_sequence_need_not_wait_for_a_dead_worker() -> None:
    table = table_of()
    granted(table, "a", 0), granted(table, "a", 1)
    table.end(0, KEY, 5, 1)
    table.ask(Asking(0, KEY, "a", TOKEN), WORKERS, 1)
    said(table)
    table.worker_gone("w1")
    assert said(table) == [(1, RevokeSequence(KEY, 1, WORKER_DIED)), (0, SequenceEnded(KEY, 5))]
    assert table.again == [Asking(0, KEY, "a", TOKEN)]


def test_a_worker_that_leaves_keeps_what_it_has_and_gets_no_more() -> None:
    table = table_of()
    granted(table, "a")
    table.worker_leaving("w1")
    assert [granted(table, each).worker_id for each in "bc"] == ["w2", "w2"]
    assert granted(table, "a", 1).worker_id == "w1"
    table.evict("w1")
    assert said(table) == [(0, RevokeSequence(KEY, 1, WORKER_LEAVES)), (1, RevokeSequence(KEY, 1, WORKER_LEAVES))]
    table.left(0, 1)
    assert table.count_on("w1") == 1
    table.left(1, 1)
    assert table.count_on("w1") == 0


def test_a_sequence_ends_when_its_time_is_over() -> None:
    table = table_of(life_ns=LIFE_NS)
    granted(table, "a", now_ns=1), granted(table, "b", now_ns=11)
    assert table.due_ns == LIFE_NS + 1
    table.look(LIFE_NS)
    assert said(table) == []
    table.look(LIFE_NS + 1)
    assert said(table) == [(0, RevokeSequence(KEY, 1, TOO_LONG))]
    assert table.due_ns == LIFE_NS + 11
    table.left(0, 1)
    assert "a" not in table


def test_the_sequences_of_a_front_end_that_dies_wait_for_their_clients() -> None:
    table = table_of()
    granted(table, "a", 0), granted(table, "b", 0), granted(table, "b", 1)
    assert table.due_ns == 0
    table.front_end_gone(0, now_ns=10)
    assert table.due_ns == 10 + IDLE_NS
    assert granted(table, "a", 1).number == 1
    assert table.due_ns == 0
    table.front_end_gone(1, now_ns=20)
    table.look(19 + IDLE_NS)
    assert len(table) == 2
    table.look(20 + IDLE_NS)
    assert (len(table), table.due_ns) == (0, 0)


def test_a_front_end_that_dies_keeps_nobody_waiting() -> None:
    table = table_of()
    granted(table, "a", 0), granted(table, "a", 1)
    table.end(0, KEY, 5, 1)
    table.ask(Asking(1, KEY, "a", TOKEN), WORKERS, 1)
    said(table)
    table.front_end_gone(1, now_ns=10)
    assert said(table) == [(0, SequenceEnded(KEY, 5))]
    assert (len(table), table.again) == (0, [])


def test_a_front_end_without_a_link_to_the_worker_is_refused() -> None:
    table = table_of()
    granted(table, "a", 0)
    table.ask(Asking(1, KEY, "a", TOKEN), ("w2",), 1)
    ((_, word),) = said(table)
    assert isinstance(word, RefuseSequence)
    table.ask(Asking(1, KEY, "b", TOKEN), ("w2",), 1)
    ((_, word),) = said(table)
    assert isinstance(word, GrantSequence) and word.worker_id == "w2"

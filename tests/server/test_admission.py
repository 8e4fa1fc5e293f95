"""The places of a queue: exactly as many as its size, however many front ends hand them out at once."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.server import admission
from ringserve.server.admission import Admission, QueuePage
from ringserve.shm.segment import Segment
from ringserve.shm.shm_errors import LayoutMismatch

NewFrontEnds = Callable[[int, int], tuple[QueuePage, list[Admission]]]


@pytest.fixture
def front_ends() -> Iterator[NewFrontEnds]:
    """So many of them, in this process, with so many places among them; and the page as the supervisor sees it."""
    pages: list[QueuePage] = []

    def made(count: int, size: int) -> tuple[QueuePage, list[Admission]]:
        page = QueuePage(count)
        pages.append(page)
        members = [Admission(size) for _ in range(count)]
        for number, member in enumerate(members):
            share(page, member, number)
        return page, members

    yield made
    for page in pages:
        page.close()


def share(page: QueuePage, member: Admission, own: int) -> None:
    segment = Segment.attach(os.dup(page.fd))
    member.share(segment.view, own)
    segment.close()


@given(st.lists(st.sampled_from(["try", "enter", "leave"]), max_size=40), st.integers(1, 5))
def test_alone_it_lets_in_as_many_as_its_size(steps: list[str], size: int) -> None:
    alone, inside = Admission(size), 0
    for step in steps:
        if step == "try":
            assert alone.try_enter() == (inside < size)
            inside += inside < size
        elif step == "enter":
            alone.enter(2)
            inside += 2
        elif inside:
            alone.leave()
            inside -= 1
        assert alone.waiting == alone.total == inside


@given(st.lists(st.tuples(st.sampled_from(["try", "enter", "leave"]), st.integers(0, 2)), max_size=40))
def test_several_let_in_as_many_as_one_would(steps: list[tuple[str, int]]) -> None:
    size, page = 4, QueuePage(3)
    members, inside = [Admission(size) for _ in range(3)], [0, 0, 0]
    for number, member in enumerate(members):
        share(page, member, number)
    for step, number in steps:
        if step == "try":
            free = sum(inside) < size
            assert members[number].try_enter() == free
            inside[number] += free
        elif step == "enter":
            members[number].enter(3)
            inside[number] += 3
        elif inside[number]:
            members[number].leave()
            inside[number] -= 1
        assert [member.waiting for member in members] == inside
        assert {member.total for member in members} == {page.total} == {sum(inside)}
    page.close()


@pytest.mark.parametrize("at_fence", [1, 2])
def test_of_two_that_meet_at_the_last_place_one_gets_it(
    front_ends: NewFrontEnds, monkeypatch: pytest.MonkeyPatch, at_fence: int
) -> None:
    """The other comes between a claim and the look at the counts, or between a withdrawal and the second look."""
    page, (left, right) = front_ends(2, 3)
    left.enter(1)
    right.enter(1)
    fences, outcomes = 0, []

    def fence() -> None:
        nonlocal fences
        fences += 1
        if fences == at_fence:
            outcomes.append(right.try_enter())

    if at_fence == 2:  # make the first look of the left one a full house
        right.enter(1)
    monkeypatch.setattr(admission, "_release", fence)
    monkeypatch.setattr(admission, "_acquire", lambda: None)
    outcomes.append(left.try_enter())
    assert sum(outcomes) + (at_fence == 2) == 1
    assert page.total == 3


def test_a_place_that_comes_free_at_the_second_look_is_taken(
    front_ends: NewFrontEnds, monkeypatch: pytest.MonkeyPatch
) -> None:
    page, (left, right) = front_ends(2, 1)
    right.enter(1)
    fences = 0

    def fence() -> None:
        nonlocal fences
        fences += 1
        if fences == 2:
            right.leave()

    monkeypatch.setattr(admission, "_release", fence)
    monkeypatch.setattr(admission, "_acquire", lambda: None)
    assert left.try_enter()
    assert page.total == left.waiting == 1


def test_what_waited_in_a_front_end_that_died_leaves_its_places_to_the_others(front_ends: NewFrontEnds) -> None:
    page, (left, right) = front_ends(2, 2)
    left.enter(2)
    assert not right.try_enter()
    page.clear(0)
    assert right.try_enter()
    successor = Admission(2)
    share(page, successor, 0)
    assert successor.try_enter()
    assert not successor.try_enter()
    assert page.total == 2


def test_what_waited_before_the_page_came_counts_from_then_on(front_ends: NewFrontEnds) -> None:
    page, _ = front_ends(2, 3)
    early = Admission(3)
    early.enter(2)
    share(page, early, 1)
    assert page.total == early.total == 2
    early.leave(2)
    early.unshare()
    assert early.try_enter()
    assert page.total == 0


def test_a_segment_that_is_no_queue_page_is_refused() -> None:
    segment = Segment.create(192)
    with pytest.raises(LayoutMismatch):
        Admission(1).share(segment.view, 0)
    segment.close()


ROUNDS = 300
SIZE = 5
# On the board: word 0 says which round it is (odd: enter, even: leave), and every front end answers in a line of its own.
CHILD = """
import os, sys
from ringserve.server.admission import Admission
from ringserve.shm.segment import Segment
own, rounds, size, page_fd, board_fd = map(int, sys.argv[1:])
page, board = Segment.attach(page_fd), Segment.attach(board_fd).view.cast("Q")
admission = Admission(size)
admission.share(page.view, own)
for number in range(1, 2 * rounds + 1):
    while board[0] < number:
        os.sched_yield()
    if number % 2:
        inside = 0
        while admission.try_enter():
            inside += 1
    else:
        admission.leave(inside)
    board[8 * (1 + own)] = number << 8 | inside
"""


@pytest.mark.process
@pytest.mark.parametrize("count", [2, 3])
def test_processes_that_rush_for_the_places_take_exactly_as_many_as_there_are(count: int) -> None:
    page, board = QueuePage(count), Segment.create(64 * (1 + count))
    words, fds = board.view.cast("Q"), (page.fd, board.fd)
    command = [sys.executable, "-P", "-c", CHILD]
    children = [
        subprocess.Popen([*command, *map(str, (own, ROUNDS, SIZE, *fds))], pass_fds=fds) for own in range(count)
    ]
    end = time.monotonic() + 60
    for number in range(1, 2 * ROUNDS + 1):
        words[0] = number
        answers: list[int] = []
        while len(answers) < count:
            answers = [word for word in words[8::8].tolist() if word >> 8 == number]
            assert time.monotonic() < end
            assert not any(child.poll() for child in children)
            os.sched_yield()
        assert sum(answer & 0xFF for answer in answers) == SIZE
        assert page.total == (SIZE if number % 2 else 0)
    assert [child.wait(10) for child in children] == [0] * count
    del words
    board.close()
    page.close()

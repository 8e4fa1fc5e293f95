"""Job tickets: as many requests as workers, until they are answered, and nobody waits."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from ringserve.protocol.errors import NoTicket, WorkerLost
from ringserve.server.admission import QueuePage
from ringserve.server.tickets import TicketDispatcher
from ringserve.shm.segment import Segment

if TYPE_CHECKING:
    from tests.server.conftest import Stage

Play = Callable[..., None]
OutcomeOf = Callable[..., Any]


@pytest.fixture
def perform(play: Play) -> Callable[..., None]:
    """As `play`, with a dispatcher that has tickets."""
    return lambda scenario, **options: play(scenario, make=TicketDispatcher, **options)


def test_a_request_is_let_in_when_there_is_a_worker_for_it(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        with pytest.raises(NoTicket, match=r"^m has 0 workers and 0 requests, useJobTicket is true$"):
            stage.submit()
        stage.attach(), stage.attach()
        asked = [stage.submit(), stage.submit()]
        with pytest.raises(NoTicket, match=r"^m has 2 workers and 2 requests"):
            stage.submit()
        await stage.work()
        assert [outcome_of(each) for each in asked] == [b"answer to x"] * 2
        assert stage.dispatcher.waiting == 0

    perform(scenario)


def test_a_ticket_is_kept_until_the_answer(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        asked = stage.submit()
        await stage.settle()
        worker.start()
        with pytest.raises(NoTicket):
            stage.submit()
        with pytest.raises(NoTicket):
            stage.dispatcher.refuse()
        worker.finish()
        await stage.settle()
        assert outcome_of(asked) == b"answer to x"
        stage.submit()
        await stage.work()

    perform(scenario)


def test_a_ticket_is_kept_by_a_request_whose_client_left_while_the_worker_has_it(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        worker = stage.attach()
        asked = stage.submit()
        await stage.settle()
        worker.start()
        asked.cancel()
        with pytest.raises(NoTicket):
            stage.submit()
        worker.finish()
        await stage.settle()
        assert stage.dispatcher.waiting == 0
        stage.submit()
        await stage.work()

    perform(scenario)


def test_tickets_come_and_go_with_workers(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage") -> None:
        first, second, third = stage.attach(), stage.attach(), stage.attach()
        stage.dispatcher.detach(third.worker_id, lambda: stage.kill(third))
        assert stage.dispatcher.admission.capacity == 2
        asked = [stage.submit() for _ in range(2)]  # a batch each
        await stage.settle()
        for worker in (first, second):
            worker.start()
        stage.kill(first)
        assert stage.dispatcher.admission.capacity == 1
        with pytest.raises(NoTicket):
            stage.submit()
        await stage.work()
        assert [type(outcome_of(each)) for each in asked] == [WorkerLost, bytes]
        assert stage.dispatcher.waiting == 0
        stage.submit()
        with pytest.raises(NoTicket):
            stage.submit()
        await stage.work()

    perform(scenario, rows=1)


def test_a_request_that_its_worker_never_began_with_keeps_its_ticket(perform: Play, outcome_of: OutcomeOf) -> None:
    """It moves to the next worker; whose client left has none to keep."""

    async def scenario(stage: "Stage") -> None:
        first = stage.attach()
        second = stage.attach()
        stays, leaves = stage.submit(b"a"), stage.submit(b"b")
        await stage.settle()
        assert [len(worker.given()) for worker in (first, second)] == [1, 0]
        leaves.cancel()
        stage.kill(first)
        assert stage.dispatcher.waiting == 1
        await stage.work()
        assert outcome_of(stays) == b"answer to a"
        assert (stage.dispatcher.waiting, stage.free()) == (0, 4)

    perform(scenario)


def test_tickets_are_counted_over_all_front_ends(perform: Play) -> None:
    async def scenario(stage: "Stage") -> None:
        page = QueuePage(2)
        seen = Segment.attach(os.dup(page.fd))
        stage.dispatcher.admission.share(seen.view, 0)
        stage.attach(), stage.attach()
        page.say(1, 1)  # the other one has one of the two
        stage.submit()
        with pytest.raises(NoTicket, match="2 workers and 2 requests"):
            stage.submit()
        page.say(1, 0)
        stage.submit()
        await stage.work()
        assert page.total == 0
        stage.dispatcher.admission.unshare()
        seen.close()
        page.close()

    perform(scenario)


def test_load_is_told_when_there_is_no_ticket_left(perform: Play) -> None:
    """For whoever decides how many workers there should be: before that, nobody would wait."""

    async def scenario(stage: "Stage") -> None:
        stage.attach(), stage.attach()
        stage.submit()
        await stage.settle()
        assert stage.dispatcher.load.waiting == 0
        stage.submit()
        assert stage.dispatcher.load.waiting > 0
        await stage.work()

    perform(scenario, rows=1)

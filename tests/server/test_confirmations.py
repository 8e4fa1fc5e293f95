"""Who waits for a word of a front end: it comes, the front end goes, or it takes too long."""

import asyncio

from ringserve.server.confirmations import Confirmations
from ringserve.server.control import Applied, FrontEndReady, Queues


def test_whoever_waits_is_given_what_comes_with_the_word() -> None:
    async def scenario() -> None:
        confirmations = Confirmations()
        first, second = (confirmations.expect((Queues, 0, token), 10.0) for token in (1, 2))
        confirmations.came((Queues, 0, 2), "two")
        confirmations.came((Queues, 0, 1), "one")
        confirmations.came((Queues, 0, 3), "nobody's")
        assert (await first, await second) == ("one", "two")
        assert (Queues, 0, 1) not in confirmations

    asyncio.run(scenario())


def test_what_does_not_come_in_time_is_none_and_waited_for_no_more() -> None:
    async def scenario() -> None:
        confirmations = Confirmations()
        waiting = confirmations.expect((Applied, 0, 1), 0.0)
        assert (Applied, 0, 1) in confirmations
        assert await waiting is None
        assert (Applied, 0, 1) not in confirmations

    asyncio.run(scenario())


def test_nobody_waits_for_a_front_end_that_is_gone_nor_takes_it_for_ready() -> None:
    async def scenario() -> None:
        confirmations = Confirmations()
        applied, ready, other = (
            confirmations.expect(word, 10.0) for word in ((Applied, 0, 1), (FrontEndReady, 0), (Applied, 1, 1))
        )
        confirmations.front_end_gone(0)
        assert await applied is True
        assert await ready is None
        confirmations.came((Applied, 1, 1))
        assert await other is True

    asyncio.run(scenario())

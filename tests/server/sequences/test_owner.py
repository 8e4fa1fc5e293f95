"""The supervisor's side of all versions' sequences: time, workers and versions that are to go, and who is asked for what."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from types import SimpleNamespace
from typing import Any

import pytest

from ringserve.server.control import (
    AskSequence,
    EndSequence,
    GrantSequence,
    RefuseSequence,
    ReleaseSequence,
    RevokeSequence,
    SequenceEnded,
    SequenceLeft,
    SequenceRules,
    SequencesTold,
    SequenceTold,
)
from ringserve.server.repository.modes import SequenceBatching
from ringserve.server.scheduling.rules import Scheduling, SequenceScheduling
from ringserve.server.sequences.owner import WAITING_MAX, Sequences, context_variables, sequence_rules
from ringserve.server.sequences.table import ENDED, TOO_LONG, UNKNOWN, WORKER_LEAVES
from ringserve.server.settings import Settings

S_MAX = 10.0


def version(key: int, **config: int) -> Any:
    wanted = {"idle_ms_max": 60_000, "sequences_max": 4, **config}
    sequences = SequenceBatching(**wanted) if config.get("idle_ms_max", 1) else None
    return SimpleNamespace(
        key=key, min_workers=1, unpacked=SimpleNamespace(config=SimpleNamespace(sequences=sequences, scheduling=None))
    )


class FrontEnds:
    """Linked with every worker; writes down what they are told."""

    def __init__(self) -> None:
        self.told: list[tuple[int, SequenceTold]] = []
        self.workers = {"w1", "w2"}
        self.on_told = asyncio.Event()

    def tell(self, front_end: int, message: SequencesTold) -> None:
        self.told += [(front_end, word) for word in message.words]
        self.on_told.set()

    def reachable(self, front_end: int, key: int) -> Collection[str]:
        return self.workers

    def take(self) -> list[tuple[int, SequenceTold]]:
        told, self.told = self.told, []
        return told

    async def next(self) -> list[tuple[int, SequenceTold]]:
        self.on_told.clear()
        if not self.told:
            await asyncio.wait_for(self.on_told.wait(), S_MAX)
        return self.take()


def play(scenario: Callable[[FrontEnds, Sequences], Awaitable[None]]) -> None:
    async def main() -> None:
        front_ends = FrontEnds()
        sequences = Sequences(lambda: front_ends)
        await scenario(front_ends, sequences)
        sequences.stop()

    asyncio.run(main())


def test_a_question_is_answered_in_one_message() -> None:
    async def scenario(front_ends: FrontEnds, sequences: Sequences) -> None:
        one = version(1)
        sequences.add(one)
        sequences.worker_ready(one, "w1")
        sequences.heard(0, (AskSequence(1, "a", 5), AskSequence(1, "b", 6)))
        assert front_ends.take() == [
            (0, GrantSequence(1, "a", 5, 1, "w1", 1)),
            (0, GrantSequence(1, "b", 6, 2, "w1", 1)),
        ]

    play(scenario)


def test_nothing_is_said_of_versions_without_sequences() -> None:
    async def scenario(front_ends: FrontEnds, sequences: Sequences) -> None:
        plain = version(1, idle_ms_max=0)
        sequences.add(plain)
        sequences.worker_ready(plain, "w1")
        sequences.heard(0, (AskSequence(1, "a", 5), ReleaseSequence(1, 1, 5), EndSequence(1, 1), SequenceLeft(1, 1)))
        sequences.worker_gone(plain, "w1")
        await sequences.vacated(plain, "w1", S_MAX)
        await sequences.run_out(plain, S_MAX)
        sequences.remove(plain)
        assert front_ends.take() == []

    play(scenario)


def test_a_sequence_whose_time_is_over_is_ended_without_anybody_asking() -> None:
    async def scenario(front_ends: FrontEnds, sequences: Sequences) -> None:
        one = version(1, life_ms_max=20)
        sequences.add(one)
        sequences.worker_ready(one, "w1")
        sequences.heard(0, (AskSequence(1, "a", 5),))
        front_ends.take()
        assert await front_ends.next() == [(0, RevokeSequence(1, 1, TOO_LONG))]

    play(scenario)


def test_who_asks_for_an_id_that_is_just_ending_gets_the_next_sequence_of_it() -> None:
    async def scenario(front_ends: FrontEnds, sequences: Sequences) -> None:
        one = version(1)
        sequences.add(one)
        sequences.worker_ready(one, "w1")
        sequences.heard(0, (AskSequence(1, "a", 5),))
        sequences.heard(1, (AskSequence(1, "a", 6),))
        front_ends.take()
        sequences.heard(0, (EndSequence(1, 9, 1), AskSequence(1, "a", 7)))
        assert front_ends.take() == [(1, RevokeSequence(1, 1, ENDED))]
        sequences.heard(1, (SequenceLeft(1, 1),))
        assert front_ends.take() == [(0, SequenceEnded(1, 9)), (0, GrantSequence(1, "a", 7, 2, "w1", 1))]

    play(scenario)


def test_a_worker_is_vacated_when_its_sequences_have_ended() -> None:
    async def scenario(front_ends: FrontEnds, sequences: Sequences) -> None:
        one = version(1)
        sequences.add(one)
        sequences.worker_ready(one, "w1")
        sequences.heard(0, (AskSequence(1, "a", 5),))
        leaving = asyncio.ensure_future(sequences.vacated(one, "w1", S_MAX))
        await asyncio.sleep(0)
        sequences.worker_ready(one, "w2")
        sequences.heard(0, (AskSequence(1, "b", 6),))
        assert front_ends.take()[-1] == (0, GrantSequence(1, "b", 6, 2, "w2", 1))
        assert not leaving.done()
        sequences.heard(0, (ReleaseSequence(1, 1, 5),))
        await asyncio.wait_for(leaving, S_MAX)

    play(scenario)


def test_a_worker_that_is_not_vacated_in_time_loses_its_sequences() -> None:
    async def scenario(front_ends: FrontEnds, sequences: Sequences) -> None:
        one = version(1)
        sequences.add(one)
        sequences.worker_ready(one, "w1")
        sequences.heard(0, (AskSequence(1, "a", 5),))
        front_ends.take()
        leaving = asyncio.ensure_future(sequences.vacated(one, "w1", 0.01))
        assert await front_ends.next() == [(0, RevokeSequence(1, 1, WORKER_LEAVES))]
        sequences.heard(0, (SequenceLeft(1, 1),))
        await asyncio.wait_for(leaving, S_MAX)

    play(scenario)


@pytest.mark.parametrize("how", ["dies", "stops"])
def test_nobody_waits_for_a_worker_that_dies_or_a_server_that_stops(how: str) -> None:
    async def scenario(front_ends: FrontEnds, sequences: Sequences) -> None:
        one = version(1)
        sequences.add(one)
        sequences.worker_ready(one, "w1")
        sequences.heard(0, (AskSequence(1, "a", 5),))
        leaving = asyncio.ensure_future(sequences.vacated(one, "w1", 1000))
        await asyncio.sleep(0)
        if how == "dies":
            sequences.worker_gone(one, "w1")
        else:
            sequences.stop()
        await asyncio.wait_for(leaving, S_MAX)

    play(scenario)


def test_the_sequences_of_a_version_go_on_there_when_another_has_taken_its_place() -> None:
    async def scenario(front_ends: FrontEnds, sequences: Sequences) -> None:
        old, new = version(1), version(2)
        sequences.add(old)
        sequences.worker_ready(old, "w1")
        sequences.heard(0, (AskSequence(1, "a", 5),))
        sequences.add(new)
        sequences.worker_ready(new, "w2")
        sequences.follows(new, old)
        leaving = asyncio.ensure_future(sequences.run_out(old, S_MAX))
        front_ends.take()
        sequences.heard(1, (AskSequence(2, "a", 6), AskSequence(2, "b", 7)))
        assert front_ends.take() == [
            (1, GrantSequence(2, "a", 6, 1, "w1", lives_in=1)),
            (1, GrantSequence(2, "b", 7, 1, "w2", lives_in=2)),
        ]
        sequences.heard(0, (ReleaseSequence(1, 1, 5),))
        await asyncio.sleep(0)
        assert not leaving.done()
        sequences.heard(1, (ReleaseSequence(1, 1, 6),))
        await asyncio.wait_for(leaving, S_MAX)
        sequences.remove(old)
        sequences.heard(1, (AskSequence(2, "a", 8),))
        assert front_ends.take() == [(1, GrantSequence(2, "a", 8, 2, "w2", lives_in=2))]

    play(scenario)


def test_a_version_that_nothing_follows_leaves_at_once() -> None:
    async def scenario(front_ends: FrontEnds, sequences: Sequences) -> None:
        one = version(1)
        sequences.add(one)
        sequences.worker_ready(one, "w1")
        sequences.heard(0, (AskSequence(1, "a", 5),))
        await asyncio.wait_for(sequences.run_out(one, 1000), S_MAX)

    play(scenario)


def test_the_number_of_workers_that_is_wanted_now_says_how_many_sequences_one_has() -> None:
    async def scenario(front_ends: FrontEnds, sequences: Sequences) -> None:
        one = version(1, sequences_max=4)
        one.min_workers = 2
        sequences.add(one)
        sequences.worker_ready(one, "w1")
        sequences.heard(0, tuple(AskSequence(1, name, 5) for name in "abc"))
        assert [word.worker_id for _, word in front_ends.take() if isinstance(word, GrantSequence)] == ["w1", "w1", ""]
        one.min_workers = 1
        sequences.heard(0, (AskSequence(1, "d", 5),))
        (placed,) = front_ends.take()
        assert isinstance(placed[1], GrantSequence) and placed[1].worker_id == "w1"
        sequences.heard(0, (AskSequence(1, "e", 5),))
        assert isinstance(front_ends.take()[0][1], RefuseSequence)

    play(scenario)


def test_handlers_and_front_ends_have_the_same_names_for_headers() -> None:
    settings = Settings(ts_header_key_sequence_id="X-Id", ts_header_key_sequence_end="x-END")
    rules = sequence_rules(version(1), settings)
    assert rules is not None
    assert (rules.id_header, rules.start_header, rules.end_header) == ("x-id", "ts_request_sequence_start", "x-end")
    assert context_variables(settings) == {
        "TS_REQUEST_SEQUENCE_ID": "X-Id",
        "TS_REQUEST_SEQUENCE_START": "ts_request_sequence_start",
        "TS_REQUEST_SEQUENCE_END": "x-END",
    }
    assert sequence_rules(version(1, idle_ms_max=0), settings) is None


def test_sequences_in_tritons_words_have_places_on_each_worker_and_no_other_limit() -> None:
    async def scenario(front_ends: FrontEnds, sequences: Sequences) -> None:
        rules = SequenceScheduling(oldest=True, places=1, idle_us_max=1500)
        told = SimpleNamespace(sequences=None, scheduling=Scheduling(4, batches=True, sequences=rules))
        one: Any = SimpleNamespace(key=1, min_workers=1, unpacked=SimpleNamespace(config=told))
        assert sequence_rules(one, Settings()) == SequenceRules(2, WAITING_MAX)
        sequences.add(one)
        sequences.worker_ready(one, "w1")
        sequences.heard(0, (AskSequence(1, "a", 5), AskSequence(1, "b", 6), AskSequence(1, "c", 7, begins=False)))
        assert front_ends.take() == [
            (0, GrantSequence(1, "a", 5, 1, "w1", 1)),
            (0, GrantSequence(1, "b", 6, 2, "", 1)),
            (0, RefuseSequence(1, "c", 7, UNKNOWN, unknown=True)),
        ]

    play(scenario)

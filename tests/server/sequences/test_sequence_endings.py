"""How sequences end in one front end: by silence, with their worker, or because the supervisor says so."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ringserve.protocol.errors import DeadlineExceeded, NoWorker, WorkerLost
from ringserve.protocol.request import InferRequest
from ringserve.server.control import (
    AskSequence,
    GrantSequence,
    RefuseSequence,
    ReleaseSequence,
    RevokeSequence,
    SequenceEnded,
    SequenceLeft,
    SequencesSaid,
    SequencesTold,
)
from ringserve.server.dispatch import Dispatcher
from ringserve.server.landing import GrowingLanding
from ringserve.server.sequences.dispatcher import pass_on
from tests.server.sequences.supervising import IDLE_S, KEY, WAITING_MAX, Supervisor, of

if TYPE_CHECKING:
    from tests.server.conftest import Stage

Play = Callable[..., None]
OutcomeOf = Callable[..., Any]


def test_a_silent_sequence_is_released(perform: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        stage.attach()
        for name in "ab":
            stage.submit(b"x", of(name))
        await supervisor.grant("a", "b")
        await stage.work()
        await stage.pass_s(IDLE_S - 0.5)
        stage.submit(b"x", of("a"))
        await stage.work()
        await stage.pass_s(0.6)
        assert supervisor.take() == [ReleaseSequence(KEY, 2, supervisor.tokens["b"])]
        await stage.pass_s(IDLE_S)
        assert supervisor.take() == [ReleaseSequence(KEY, 1, supervisor.tokens["a"])]
        stage.submit(b"x", of("a"))
        await stage.settle()
        assert isinstance(supervisor.heard[0], AskSequence)

    perform(scenario)


def test_a_sequence_is_not_silent_while_its_worker_computes(perform: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        stage.submit(b"x", of("a"))
        await supervisor.grant("a")
        worker.start()
        await stage.pass_s(3 * IDLE_S)
        assert supervisor.take() == []
        worker.finish()
        await stage.settle()
        await stage.pass_s(IDLE_S + 0.1)
        assert supervisor.take() == [ReleaseSequence(KEY, 1, supervisor.tokens["a"])]

    perform(scenario)


def test_a_sequence_whose_clients_left_before_it_began_is_released_at_once(perform: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        stage.attach()
        stage.submit(b"x", of("a")).cancel()
        await supervisor.grant("a")
        assert supervisor.take() == [ReleaseSequence(KEY, 1, supervisor.tokens["a"])]

    perform(scenario)


def test_a_grant_for_an_earlier_question_is_none(perform: Play) -> None:
    """The hold that it tells of has been released already."""

    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        stage.submit(b"x", of("a")).cancel()
        await supervisor.grant("a")
        earlier = supervisor.tokens["a"]
        stage.submit(b"y", of("a"))
        await stage.settle()
        assert supervisor.tokens["a"] > earlier
        await supervisor.say(GrantSequence(KEY, "a", earlier, 1, "1", KEY))
        await stage.work()
        assert worker.batches == []
        await supervisor.grant("a")
        await stage.work()
        assert worker.batches == [[b"y"]]

    perform(scenario)


def test_whoever_waits_in_a_sequence_that_is_refused_or_revoked_is_told(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        refused = [stage.submit(b"x", of("a")) for _ in range(2)]
        running = stage.submit(b"x", of("b"))
        await supervisor.grant("b")
        worker.start()
        waiting = stage.submit(b"y", of("b"))
        await supervisor.say(
            RefuseSequence(KEY, "a", supervisor.tokens["a"], "too many"), RevokeSequence(KEY, 1, "over")
        )
        assert supervisor.take() == [SequenceLeft(KEY, 1)]
        assert [str(outcome_of(each)) for each in (*refused, waiting)] == [
            *["m: sequence 'a': too many."] * 2,
            "m: sequence 'b': over.",
        ]
        worker.finish()
        await stage.settle()
        assert outcome_of(running) == b"answer to x"
        assert stage.dispatcher.waiting == 0

    perform(scenario)


def test_a_revocation_of_what_is_not_held_is_confirmed_as_well(perform: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        await supervisor.say(RevokeSequence(KEY, 99, "over"))
        assert supervisor.take() == [SequenceLeft(KEY, 99)]

    perform(scenario)


def test_a_worker_that_dies_answers_for_its_sequences(perform: Play, outcome_of: OutcomeOf) -> None:
    """Who was executed, who was sent, and who waited; those of other workers notice nothing."""

    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        first, second = stage.attach(), stage.attach()
        executed, waits, elsewhere = (stage.submit(b"x", of(name)) for name in "aab")
        await supervisor.grant("a", worker_id="1")
        await supervisor.grant("b", worker_id="2")
        first.start()
        stage.kill(first)
        await stage.work()
        assert isinstance(outcome_of(executed), WorkerLost)
        assert str(outcome_of(waits)).endswith("The sequence of this request has ended with it.")
        assert outcome_of(elsewhere) == b"answer to x"
        assert second.batches == [[b"x"]]
        stage.submit(b"y", of("a"))
        await stage.settle()
        assert [type(word) for word in supervisor.heard].count(AskSequence) == 3

    perform(scenario)


def test_what_a_dead_worker_never_began_with_goes_to_no_other(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        first, second = stage.attach(), stage.attach()
        sent = stage.submit(b"x", of("a"))
        await supervisor.grant("a", worker_id="1")
        assert first.given()
        stage.kill(first)
        await stage.work()
        assert (type(outcome_of(sent)), second.batches) == (WorkerLost, [])
        assert stage.free() == 4

    perform(scenario)


def test_what_came_before_the_lane_is_encoded_when_it_opens(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        asked = [stage.submit(b"%d" % number, of("a")) for number in range(WAITING_MAX)]
        asked[1].cancel()
        stage.open_lane()
        stage.attach()
        await supervisor.grant("a")
        await stage.work()
        assert [outcome_of(asked[0]), outcome_of(asked[2])] == [b"answer to 0", b"answer to 2"]

    perform(scenario, opened=False)


def test_bodies_larger_than_a_slab_and_many_at_once_find_their_way(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        stage.attach()
        bodies = [name * 3000 for name in (b"a", b"b", b"c")] + [b"d" * 20_000]
        asked = [stage.submit(body, of(chr(body[0]))) for body in bodies]
        await supervisor.grant("a", "b", "c", "d")
        await stage.work()
        assert [outcome_of(each) for each in asked] == [b"answer to " + body for body in bodies]

    perform(scenario)


def test_a_long_body_lands_outside_of_slabs(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        stage.attach()
        body = b"x" * 100_000
        landing = stage.dispatcher.land(InferRequest("id", "", of("a"), b""), len(body), 1 << 20)
        assert isinstance(landing, GrowingLanding)
        asked = stage.commit(landing, body)
        await supervisor.grant("a")
        await stage.work()
        assert outcome_of(asked) == b"answer to " + body

    perform(scenario)


def test_deadlines_hold_in_a_sequence(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        running = stage.submit(b"x", of("a"))
        await supervisor.grant("a")
        worker.start()
        late = stage.submit(b"y", of("a"), timeout_ms=500)
        await stage.pass_s(0.6)
        assert isinstance(outcome_of(late), DeadlineExceeded)
        await stage.work()
        assert outcome_of(running) == b"answer to x"
        assert worker.batches == [[b"x"]]

    perform(scenario)


def test_without_workers_everybody_is_told_and_the_sequence_given_back(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        asked = stage.submit(b"x", of("a"))
        await supervisor.grant("a", worker_id="")
        stage.dispatcher.set_serviceable(False)
        await stage.settle()
        assert isinstance(outcome_of(asked), NoWorker)
        assert supervisor.take() == [ReleaseSequence(KEY, 1, supervisor.tokens["a"])]

    perform(scenario)


def test_words_for_a_version_that_has_left_are_answered_for_it() -> None:
    said: list[SequencesSaid] = []
    words = (
        GrantSequence(KEY, "a", 4, 2, "1", KEY),
        RevokeSequence(KEY, 3, "over"),
        RefuseSequence(KEY, "b", 5, "no"),
        SequenceEnded(KEY, 1),
    )
    nobody: dict[int, Dispatcher] = {}
    pass_on(SequencesTold(words), nobody, said.append)
    assert [word for each in said for word in each.words] == [ReleaseSequence(KEY, 2, 4), SequenceLeft(KEY, 3)]

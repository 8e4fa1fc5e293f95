"""Sequences in one front end: which request leaves when, and what is said to the supervisor."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import pytest

from ringserve.backends.contract import Reply
from ringserve.protocol.errors import BadRequest, DeadlineExceeded, QueueFull, SequenceRejected
from ringserve.server.control import (
    AskSequence,
    EndSequence,
    GrantSequence,
    ReleaseSequence,
    SequenceEnded,
    SequenceSaid,
    SequencesTold,
)
from ringserve.server.sequences.dispatcher import END_S_MAX, SequenceDispatcher, pass_on
from tests.server.sequences.supervising import KEY, RULES, WAITING_MAX, Supervisor, of

if TYPE_CHECKING:
    from tests.server.conftest import Stage

Play = Callable[..., None]
OutcomeOf = Callable[..., Any]


def test_a_request_waits_until_the_worker_of_its_sequence_is_known(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        first, second = stage.attach(), stage.attach()
        answer = stage.submit(b"a", of("s"))
        await stage.work()
        assert [type(word) for word in supervisor.heard] == [AskSequence]
        assert (stage.dispatcher.waiting, first.batches, second.batches) == (1, [], [])
        await supervisor.grant("s", worker_id="2")
        await stage.work()
        assert outcome_of(answer) == b"answer to a"
        assert (first.batches, second.batches) == ([], [[b"a"]])
        stage.submit(b"b", of("s"))
        await stage.work()
        assert [type(word) for word in supervisor.heard] == [AskSequence]
        assert second.batches == [[b"a"], [b"b"]]

    perform(scenario)


def test_a_batch_has_one_request_of_each_sequence_in_its_order(perform: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        for body in (b"a1", b"a2", b"a3", b"b1", b"c1", b"c2"):
            stage.submit(body, of(chr(body[0])))
        await supervisor.grant("a", "b", "c")
        await stage.work()
        # The first grant comes alone, and the others while its request is executed; then they take turns.
        assert worker.batches == [[b"a1"], [b"b1", b"c1", b"a2"], [b"c2", b"a3"]]

    perform(scenario)


def test_a_batch_is_no_larger_than_it_may_be(perform: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        for name in "abcde":
            stage.submit(name.encode(), of(name))
        await stage.settle()
        words = [GrantSequence(KEY, name, supervisor.tokens[name], at, "1", KEY) for at, name in enumerate("abcde", 1)]
        await supervisor.say(*words)
        await stage.work()
        assert worker.batches == [[b"a", b"b"], [b"c", b"d"], [b"e"]]

    perform(scenario, rows=2)


def test_filling_waits_for_the_other_sequences(perform: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        stage.submit(b"a", of("a"))
        await supervisor.grant("a")
        await stage.pass_s(0.05)
        stage.submit(b"b", of("b"))
        await supervisor.grant("b")
        await stage.pass_s(0.04)
        assert not worker.given()
        await stage.pass_s(0.02)
        await stage.work()
        assert worker.batches == [[b"a", b"b"]]

    perform(scenario, fill_ns=100_000_000)


def test_a_request_of_no_sequence_begins_one(perform: Play) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        worker = stage.attach()
        stage.submit(b"a", {"x-other": "y"})
        stage.submit(b"b", of(""))
        await stage.settle()
        ids = list(supervisor.tokens)
        assert len(set(ids)) == 2
        await supervisor.grant(*ids)
        await stage.work()
        assert [(said["x-id"], said["x-start"]) for said in worker.headers] == [(each, "true") for each in ids]

    perform(scenario)


@pytest.mark.parametrize("sequence_id", ["i" * 513, "a\nb", "a\udc80"])
def test_an_id_that_cannot_be_told_is_refused(perform: Play, sequence_id: str) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        with pytest.raises(BadRequest, match=r"^Header x-id: expected at most 512 printable characters, got "):
            stage.submit(b"a", of(sequence_id))
        assert (stage.dispatcher.waiting, supervisor.heard) == (0, [])

    perform(scenario)


def test_a_sequence_has_a_queue_of_its_own_beside_the_one_of_all(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        stage.attach()
        asked = [stage.submit(b"a", of("a")) for _ in range(WAITING_MAX)]
        with pytest.raises(
            SequenceRejected, match=r"sequence 'a': 3 requests of it wait, maxSequenceJobQueueSize is 3"
        ):
            stage.submit(b"a", of("a"))
        asked += [stage.submit(b"b", of("b")), stage.submit(b"c", of("c"))]
        with pytest.raises(QueueFull):
            stage.submit(b"d", of("d"))
        await supervisor.grant("a", "b", "c")
        await stage.work()
        assert {outcome_of(each) for each in asked} == {b"answer to a", b"answer to b", b"answer to c"}
        assert stage.dispatcher.waiting == 0

    perform(scenario, capacity=5)


def test_nothing_waits_behind_the_last_request(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        stage.attach()
        last = stage.submit(b"last", of("a", end="TRUE"))
        with pytest.raises(SequenceRejected, match="its last request has come already"):
            stage.submit(b"late", of("a"))
        await supervisor.grant("a")
        await stage.work()
        assert outcome_of(last) == b"answer to last"
        assert supervisor.take() == [EndSequence(KEY, 1, 1)]
        stage.submit(b"next", of("a"))
        await stage.settle()
        assert isinstance(supervisor.heard[0], AskSequence)

    perform(scenario)


def test_a_last_request_whose_client_leaves_ends_nothing(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        stage.attach()
        first, last = stage.submit(b"first", of("a")), stage.submit(b"last", of("a", end="true"))
        last.cancel()
        other = stage.submit(b"other", of("a"))
        await supervisor.grant("a")
        await stage.work()
        assert (outcome_of(first), outcome_of(other)) == (b"answer to first", b"answer to other")
        assert supervisor.take() == []

    perform(scenario)


def test_the_answer_of_a_last_request_waits_until_the_others_know(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        stage.attach()
        last = stage.submit(b"last", of("a", end="true"))
        await supervisor.grant("a")
        await stage.work()
        assert not last.done()
        ((end),) = supervisor.take()
        assert isinstance(end, EndSequence)
        await supervisor.say(SequenceEnded(KEY, end.token))
        assert outcome_of(last) == b"answer to last"

    perform(scenario, front_ends=2)


def test_the_answer_of_a_last_request_does_not_wait_for_ever(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        stage.attach()
        last = stage.submit(b"last", of("a", end="true"))
        await supervisor.grant("a")
        await stage.work()
        await stage.pass_s(END_S_MAX - 0.01)
        assert not last.done()
        await stage.pass_s(0.02)
        assert outcome_of(last) == b"answer to last"

    perform(scenario, front_ends=2)


def test_a_response_may_end_its_own_sequence_and_others_of_its_worker(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        first, second = stage.attach(), stage.attach()
        first.reply = lambda body: Reply(b"done", headers={"X-End": "b; a ;c;unknown"} if body == b"a" else {})
        for name, worker_id in (("b", "1"), ("c", "2"), ("a", "1")):
            asked = stage.submit(name.encode(), of(name))
            await supervisor.grant(name, worker_id=worker_id)
            await stage.work()
        assert outcome_of(asked) == b"done"
        assert second.batches == [[b"c"]]
        ended = [
            (word.number, word.sequence_id, word.worker_id)
            for word in supervisor.take()
            if isinstance(word, EndSequence)
        ]
        assert ended == [(1, "", ""), (3, "", ""), (0, "unknown", "1")]

    perform(scenario)


def test_an_answer_that_ends_nothing_waits_for_nobody(perform: Play, outcome_of: OutcomeOf) -> None:
    """The sequence that it names is another worker's."""

    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        first, _ = stage.attach(), stage.attach()
        first.reply = lambda body: Reply(b"done", headers={"x-end": "b"})
        stage.submit(b"b", of("b"))
        await supervisor.grant("b", worker_id="2")
        asked = stage.submit(b"a", of("a"))
        await supervisor.grant("a", worker_id="1")
        await stage.work()
        assert outcome_of(asked) == b"done"
        assert supervisor.take() == []

    perform(scenario, front_ends=2)


def test_requests_of_a_sequence_that_the_version_before_has_go_there(
    perform: Play, new_stage: Callable[..., "Stage"], outcome_of: OutcomeOf
) -> None:
    """With their deadlines; and later ones at once, until it has ended there."""

    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        stage.attach()
        before = new_stage(
            make=lambda label, policy, limits: SequenceDispatcher(KEY - 1, label, policy, limits, RULES), rows=1
        )
        elder = cast(SequenceDispatcher, before.dispatcher)
        said: list[SequenceSaid] = []
        elder.tell = lambda words: said.extend(words.words)
        both = {KEY: stage.dispatcher, KEY - 1: elder}
        try:
            worker = before.attach()
            asked = [stage.submit(b"1", of("a")), stage.submit(b"2", of("a"), timeout_ms=500)]
            await stage.settle()
            token = supervisor.tokens["a"]
            grant = GrantSequence(KEY, "a", token, 4, worker.worker_id, KEY - 1)
            pass_on(SequencesTold((grant,)), both, supervisor.hear)
            await stage.settle()
            assert (stage.dispatcher.waiting, elder.waiting) == (0, 1)
            worker.start()
            await stage.pass_s(0.6)
            assert isinstance(outcome_of(asked[1]), DeadlineExceeded)
            asked.append(stage.submit(b"3", of("a", end="true")))
            other = stage.submit(b"other", of("b"))
            await supervisor.grant("b")
            await before.work()
            await stage.work()
            assert worker.batches == [[b"1"], [b"3"]]
            assert [outcome_of(each) for each in (asked[0], asked[2])] == [b"answer to 1", b"answer to 3"]
            assert outcome_of(other) == b"answer to other"
            assert [type(word) for word in said] == [EndSequence]
            stage.submit(b"next", of("a"))
            await stage.settle()
            assert supervisor.tokens["a"] > token
        finally:
            before.clear()

    perform(scenario)


def test_a_sequence_of_a_version_that_has_gone_is_given_back(perform: Play, outcome_of: OutcomeOf) -> None:
    async def scenario(stage: "Stage", supervisor: Supervisor) -> None:
        asked = stage.submit(b"x", of("a"))
        await stage.settle()
        token = supervisor.tokens["a"]
        await supervisor.say(GrantSequence(KEY, "a", token, 4, "9", KEY - 1))
        assert isinstance(outcome_of(asked), SequenceRejected)
        assert supervisor.take() == [ReleaseSequence(KEY - 1, 4, token)]
        assert stage.dispatcher.waiting == 0

    perform(scenario)

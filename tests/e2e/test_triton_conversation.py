"""A conversation with Triton 2.51, recorded, and held with our server on the very same model repository: probes, documents, tensors of
every datatype in every form, faults, classification, sequences, generation, streams, regions, the repository, settings and statistics,
over REST and gRPC. Step for step the same, but for what is listed with its reason."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.triton.accepted import ACCEPTED, OURS
from tests.e2e.triton.replay import held, read, ready_ports, server_of
from tests.e2e.triton.talk import Talk
from tests.e2e.triton.verdicts import Verdict

RECORDED = Path(__file__).parent / "recorded" / "triton-2.51.jsonl.gz"
STEPS_MIN = 2000
SAME_SHARE_MIN = 0.92  # word for word, as far as words are the server's
RIGHT_SHARE_MIN = 0.97  # the same status and tensors, or the difference is what the contract asks for

Judged = tuple[str, Verdict, str]


@pytest.fixture(scope="module")
def conversation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Judged]]:
    server = server_of(tmp_path_factory.mktemp("triton"))
    with server:
        talk = Talk(*ready_ports(server))
        judged = [(chapter, verdict, why) for chapter, _, verdict, why in held(read(RECORDED), talk)]
        talk.close()
    assert server.remains() == []
    yield judged


def accepted(chapter: str, why: str) -> bool:
    return any(each.covers(chapter, why) for each in ACCEPTED)


def test_every_answer_is_tritons_or_differs_for_a_listed_reason(conversation: list[Judged]) -> None:
    other = [
        f"{chapter}: {why}"
        for chapter, verdict, why in conversation
        if verdict is Verdict.OTHER and not accepted(chapter, why)
    ]
    assert other == [], "\n".join(other)


def test_every_listed_difference_is_still_one(conversation: list[Judged]) -> None:
    seen = [(chapter, why) for chapter, verdict, why in conversation if verdict in (Verdict.OTHER, Verdict.WORDS)]
    unused = [each.looks.pattern for each in ACCEPTED if not any(each.covers(*one) for one in seen)]
    assert unused == []


def test_nearly_all_of_it_is_the_same_word_for_word(conversation: list[Judged]) -> None:
    assert len(conversation) >= STEPS_MIN
    same = sum(verdict is Verdict.SAME for _, verdict, _ in conversation)
    assert same >= SAME_SHARE_MIN * len(conversation), f"{same} of {len(conversation)}"


def test_what_any_server_of_the_protocol_must_do_is_done(conversation: list[Judged]) -> None:
    """A refusal in other words is right; our own decisions count against us."""
    ours = [each for each in ACCEPTED if each.reason.startswith(OURS)]
    wrong = [
        why
        for chapter, verdict, why in conversation
        if verdict is Verdict.OTHER and (not accepted(chapter, why) or any(each.covers(chapter, why) for each in ours))
    ]
    assert len(wrong) <= (1 - RIGHT_SHARE_MIN) * len(conversation), "\n".join(wrong)


def test_nothing_that_ends_a_triton_harms_our_server(conversation: list[Judged]) -> None:
    ended = [why for _, verdict, why in conversation if verdict is Verdict.DIED]
    assert ended
    assert not any(ended)

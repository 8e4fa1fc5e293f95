"""A supervisor that says of sequences what a test wants, beside a dispatcher of sequences."""

from typing import TYPE_CHECKING, cast

from ringserve.server.control import (
    AskSequence,
    GrantSequence,
    SequenceRules,
    SequenceSaid,
    SequencesSaid,
    SequencesTold,
    SequenceTold,
)
from ringserve.server.sequences.dispatcher import SequenceDispatcher, pass_on

if TYPE_CHECKING:
    from tests.server.conftest import Stage

KEY, IDLE_S, WAITING_MAX = 7, 2.0, 3
RULES = SequenceRules(int(IDLE_S * 1000), WAITING_MAX, "x-id", "x-start", "x-end")


class Supervisor:
    """Writes down what it is told, and says what the test wants."""

    def __init__(self, stage: "Stage") -> None:
        self.stage = stage
        self.dispatcher = cast(SequenceDispatcher, stage.dispatcher)
        self.heard: list[SequenceSaid] = []
        self.tokens: dict[str, int] = {}
        self._numbers = 0
        self.dispatcher.tell = self.hear

    def hear(self, said: SequencesSaid) -> None:
        self.heard += said.words
        self.tokens |= {word.sequence_id: word.token for word in said.words if isinstance(word, AskSequence)}

    async def say(self, *words: SequenceTold) -> None:
        pass_on(SequencesTold(words), {KEY: self.dispatcher}, self.hear)
        await self.stage.settle()

    async def grant(self, *sequence_ids: str, worker_id: str = "1") -> None:
        await self.stage.settle()
        for sequence_id in sequence_ids:
            self._numbers += 1
            token = self.tokens[sequence_id]
            await self.say(GrantSequence(KEY, sequence_id, token, self._numbers, worker_id, KEY))

    def take(self) -> list[SequenceSaid]:
        """What has come since the last time, but for questions."""
        heard, self.heard = self.heard, []
        return [word for word in heard if not isinstance(word, AskSequence)]


def of(sequence_id: str, **headers: str) -> dict[str, str]:
    return {"x-id": sequence_id, **{f"x-{name}": value for name, value in headers.items()}}

"""Scenarios with a dispatcher of sequences."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from ringserve.server.sequences.dispatcher import SequenceDispatcher
from tests.server.sequences.supervising import KEY, RULES, Supervisor

if TYPE_CHECKING:
    from tests.server.conftest import Stage

Play = Callable[..., None]


@pytest.fixture
def perform(play: Play) -> Callable[..., None]:
    """As `play`, with a dispatcher of sequences; the scenario has a supervisor as well."""

    def run(scenario: Callable[["Stage", Supervisor], Any], **options: Any) -> None:
        async def prepared(stage: "Stage") -> None:
            await scenario(stage, Supervisor(stage))

        def make(label: str, policy: Any, limits: Any) -> SequenceDispatcher:
            return SequenceDispatcher(KEY, label, policy, limits, RULES)

        play(prepared, make=make, **options)

    return run

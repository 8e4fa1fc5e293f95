"""Scenarios with a dispatcher of sequences."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from ringserve.protocol.tensor import Signature
from ringserve.server.control import SequenceRules
from ringserve.server.scheduling.rules import SequenceScheduling
from ringserve.server.sequences.dispatcher import SequenceDispatcher
from ringserve.server.sequences.tensor_dispatcher import TensorSequenceDispatcher
from tests.server.sequences.supervising import KEY, RULES, Supervisor
from tests.server.sequences.telling import IDLE_MS, PLAIN

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


@pytest.fixture
def perform_told(play: Play) -> Callable[..., None]:
    """A scenario with a dispatcher of sequences, a supervisor, and the rules that are given."""

    def run(scenario: Any, signature: Signature = PLAIN, *, front_ends: int = 1, rows: int = 4, **rules: Any) -> None:
        scheduling = SequenceScheduling(**{"oldest": True, "places": 4, **rules})

        async def prepared(stage: "Stage") -> None:
            await scenario(stage, Supervisor(stage))

        def make(label: str, policy: Any, limits: Any) -> TensorSequenceDispatcher:
            of_all = SequenceRules(IDLE_MS, 1 << 30)
            return TensorSequenceDispatcher(KEY, label, "m", policy, limits, of_all, scheduling)

        play(prepared, make=make, signature=signature, rows=rows, front_ends=front_ends)

    return run

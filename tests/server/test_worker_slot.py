"""What a worker finds in its environment."""

import re

import pytest

from ringserve.server.placement import Place
from ringserve.server.worker_slot import THREAD_VARIABLES, environment


@pytest.mark.parametrize(
    ("pattern", "hidden"),
    [
        (None, set()),
        ("MY_SECRET", {"MY_SECRET"}),
        (".*SECRET.*|AWS_.+", {"MY_SECRET", "NO_SECRET_KEY", "AWS_KEY"}),
        ("SECRET", set()),
    ],
)
def test_names_that_match_as_a_whole_are_hidden(
    monkeypatch: pytest.MonkeyPatch, pattern: str | None, hidden: set[str]
) -> None:
    names = {"MY_SECRET", "NO_SECRET_KEY", "AWS_KEY", "PLAIN"}
    for name in names:
        monkeypatch.setenv(name, "x")
    found = environment(Place("cpu"), 1, re.compile(pattern) if pattern else None)
    assert names - found.keys() == hidden


def test_what_the_server_itself_says_to_a_worker_cannot_be_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert set(THREAD_VARIABLES) <= environment(Place("cpu"), 1, re.compile(".*")).keys()

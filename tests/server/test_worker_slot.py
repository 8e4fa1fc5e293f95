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


@pytest.mark.parametrize(("given", "found"), [(None, "1"), ("0", "0")])
def test_no_library_of_a_worker_reports_to_its_maker_unless_asked(
    monkeypatch: pytest.MonkeyPatch, given: str | None, found: str
) -> None:
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    if given is not None:
        monkeypatch.setenv("ORT_DISABLE_TELEMETRY", given)
    assert environment(Place("cpu"), 1)["ORT_DISABLE_TELEMETRY"] == found


def test_a_worker_has_the_same_names_of_headers_as_the_front_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TS_REQUEST_SEQUENCE_ID", "x-of-the-environment")
    more = {"TS_REQUEST_SEQUENCE_ID": "x-of-the-configuration"}
    assert environment(Place("cpu"), 1, re.compile(".*"), more)["TS_REQUEST_SEQUENCE_ID"] == "x-of-the-configuration"

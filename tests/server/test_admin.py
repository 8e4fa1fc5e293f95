"""What `ringserve status` is told, and how it shows it."""

from collections import Counter
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import pytest

from ringserve.server.admin import describe_server, state_of
from ringserve.server.management import Management
from ringserve.server.registry import Registry
from ringserve.server.snapshots.restoring import Lost
from ringserve.tools.cli.status import describe


@pytest.mark.parametrize(
    ("ready", "wanted", "hopeless", "state"),
    [
        (2, 2, False, "ready"),
        (3, 2, False, "ready"),
        (2, 2, True, "ready"),
        (1, 2, False, "degraded"),
        (1, 2, True, "degraded"),
        (0, 2, False, "loading"),
        (0, 2, True, "failed"),
        (0, 0, False, "idle"),
        (0, 0, True, "idle"),
        (1, 0, False, "ready"),
    ],
)
def test_a_version_has_one_word_for_its_state(ready: int, wanted: int, hopeless: bool, state: str) -> None:
    assert state_of(ready, wanted, hopeless=hopeless) == state


def version(model: str, **changes: Any) -> dict[str, Any]:
    described = {"model": model, "version": "1.0", "default": True, "state": "ready", "workersReady": 1}
    return {**described, "minWorkers": 1, "maxWorkers": 1, "devices": ["cpu"], "source": f"{model}.mar", **changes}


def test_the_table_has_a_line_a_version() -> None:
    served = {
        "models": [
            version("a"),
            version("longer", default=False, workersReady=2, minWorkers=1, maxWorkers=4, devices=["cuda:0", "cuda:1"]),
            version("none", workersReady=0, minWorkers=0, maxWorkers=0, state="idle", devices=[]),
        ],
        "repository": [],
    }
    assert describe(served) == [
        "MODEL   VERSION  STATE  WORKERS  DEVICES        SOURCE",
        "a       1.0 *    ready  1/1      cpu            a.mar",
        "longer  1.0      ready  2/1-4    cuda:0,cuda:1  longer.mar",
        "none    1.0 *    idle   0/0      -              none.mar",
    ]


def test_what_is_not_well_follows_with_its_reason() -> None:
    file = {"model": None, "version": None, "state": "refused", "since": "2026-01-01T00:00:00Z"}
    served = {
        "models": [version("a", state="failed", workersReady=0, reason="OSError: no weights\n  Traceback")],
        "repository": [
            {**file, "file": "x.mar", "reason": "expected a zip archive"},
            {**file, "file": "y.mar", "state": "incomplete", "reason": "", "since": None},
        ],
    }
    assert describe(served)[2:] == [
        "Failing:",
        "  a 1.0: OSError: no weights",
        "Not served:",
        "  x.mar: refused: expected a zip archive (since 2026-01-01T00:00:00Z)",
        "  y.mar: incomplete",
    ]


def test_nothing_that_a_terminal_obeys_is_printed() -> None:
    served = {"models": [version("a\x1b[2J")], "repository": [{"file": "\x9b.mar", "state": "refused", "reason": "\r"}]}
    assert all(line.isprintable() for line in describe(served))


def test_no_models_are_said_in_words() -> None:
    assert describe({"models": [], "repository": []}) == ["No models are registered."]


class Files:
    """A repository with one file of each kind."""

    accepted = 0
    refused: ClassVar[Counter[str]] = Counter()

    def report(self) -> list[dict[str, Any]]:
        return [{"file": f"{state}.mar", "state": state, "reason": ""} for state in ("served", "refused", "loading")]


def test_of_the_repository_the_files_that_are_not_served_are_told() -> None:
    registry = Registry()
    rest = {"registry": registry, "lost": Lost(registry), "recorder": SimpleNamespace(trouble="")}
    nothing = SimpleNamespace(repository=None, **rest)
    assert describe_server(cast(Management, nothing)) == {"models": [], "repository": []}
    watched = SimpleNamespace(repository=Files(), **rest)
    told = describe_server(cast(Management, watched))
    assert [each["file"] for each in told["repository"]] == ["refused.mar", "loading.mar"]

"""The short version of the stress test, and what it says about models that are wrong on purpose."""

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
with (
    pytest.MonkeyPatch.context() as path_patch
):  # the stress test is run from the root; nothing else may import from there
    path_patch.syspath_prepend(ROOT)
    from tests.stress import stress
    from tests.stress.plans import Kind
    from tests.stress.stress import Options
    from tests.stress.verdicts import Word

pytestmark = pytest.mark.e2e


def test_a_server_under_everything_at_once_answers_each_request_once_and_honestly(tmp_path: Path) -> None:
    options = Options(seconds=6, workers=2, seed=1, clients=12, kill_every_s=1.0)
    outcome = stress.run(options, tmp_path)
    assert outcome.violation_count == 0, stress.render(outcome)
    assert outcome.worker_kills > 0
    assert outcome.tally.requests > 500


@pytest.mark.parametrize("sabotage", ["swap", "damage"])
def test_a_model_that_answers_wrong_is_caught(tmp_path: Path, sabotage: str) -> None:
    kinds = [Kind.HASH.value, Kind.TYPED.value]
    options = Options(
        seconds=2,
        workers=1,
        front_ends=1,
        seed=1,
        processes=1,
        kinds=kinds,
        sabotage=sabotage,
        kill_every_s=1e6,
        requests_min=500,
    )
    outcome = stress.run(options, tmp_path)
    counts = outcome.tally.counts[Kind.HASH.value]
    assert outcome.violation_count >= counts[Word.WRONG] > 0
    assert Word.WRONG not in outcome.tally.counts[Kind.TYPED.value]
    assert outcome.violations == []

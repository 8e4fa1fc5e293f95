"""What probes are told: a table of states of the server and the answers of each probe."""

import pytest

from ringserve.protocol.errors import ModelNotFound, VersionNotFound
from ringserve.server.control import ModelRoute, VersionRoute
from ringserve.server.health import Health


def version(name: str, ready: int, wanted: int, *, model: str = "m", settled: bool = True) -> VersionRoute:
    return VersionRoute(
        key=1,
        model=model,
        version=name,
        serviceable=True,
        batch_size=1,
        batch_wait_ms=0,
        fill=False,
        queue_size=1,
        response_timeout_s=1,
        min_workers=wanted,
        ready_workers=ready,
        settled=settled,
    )


def health(*versions: VersionRoute, default: str = "1.0", started: bool = True, draining: bool = False) -> Health:
    models: dict[str, ModelRoute] = {}
    for each in versions:
        models.setdefault(each.model, ModelRoute(default, {})).versions[each.version] = each
    return Health(models, started, draining)


def test_a_process_that_answers_lives_whatever_its_models_do() -> None:
    verdict = health(version("1.0", 0, 2), started=False, draining=True).live()
    assert (verdict.status, verdict.body) == (200, {"status": "live"})


def test_a_server_without_models_is_ready() -> None:
    verdict = health().ready()
    assert (verdict.status, verdict.body) == (200, {"status": "ready"})


@pytest.mark.parametrize(
    ("versions", "lacking"),
    [
        ([version("1.0", 1, 2)], {}),
        ([version("1.0", 0, 2)], {"m": {"1.0": "0 of 2 workers"}}),
        ([version("1.0", 1, 1), version("2.0", 0, 1)], {"m": {"2.0": "0 of 1 workers"}}),
        ([version("1.0", 0, 0)], {}),
        (
            [version("1.0", 0, 1), version("1.0", 0, 3, model="n"), version("1.0", 1, 1, model="o")],
            {"m": {"1.0": "0 of 1 workers"}, "n": {"1.0": "0 of 3 workers"}},
        ),
    ],
    ids=["one of two", "none of two", "a version that is not the default", "none wanted", "two of three models"],
)
def test_ready_needs_a_worker_of_every_version_that_shall_have_some(
    versions: list[VersionRoute], lacking: dict[str, dict[str, str]]
) -> None:
    verdict = health(*versions).ready()
    if lacking:
        assert (verdict.status, verdict.body) == (503, {"status": "not ready", "models": lacking})
    else:
        assert (verdict.status, verdict.body) == (200, {"status": "ready"})


def test_a_server_that_goes_down_is_not_ready_and_says_why() -> None:
    verdict = health(version("1.0", 1, 1), draining=True).ready("m")
    assert (verdict.status, verdict.body) == (
        503,
        {"status": "not ready", "reason": "The server is shutting down."},
    )


def test_started_is_said_for_good() -> None:
    loading = version("1.0", 0, 1, settled=False)
    verdict = health(loading, started=False).start()
    assert (verdict.status, verdict.body) == (
        503,
        {"status": "not started", "models": {"m": {"1.0": "0 of 1 workers"}}},
    )
    later = health(loading, started=True).start()
    assert (later.status, later.body) == (200, {"status": "started"}), "what came later is not what it waited for"


def test_one_model_has_started_when_its_workers_have_loaded_or_failed() -> None:
    here = health(version("1.0", 0, 1), version("2.0", 0, 1, settled=False), started=False)
    assert here.start("m", "1.0").status == 200
    assert here.start("m", "2.0").body == {"status": "not started", "models": {"m": {"2.0": "0 of 1 workers"}}}
    assert here.start("m").status == 503


def test_another_models_trouble_is_not_ones_own() -> None:
    here = health(version("1.0", 1, 1), version("1.0", 0, 1, model="n"))
    assert here.ready("m").status == 200
    assert here.ready("n").status == 503
    assert here.ready("m", "1.0").status == 200


def test_a_model_without_workers_is_not_ready_when_asked_for_by_name() -> None:
    here = health(version("1.0", 0, 0), version("2.0", 1, 1))
    assert here.ready().status == 200
    assert here.ready("m").body == {"status": "not ready", "models": {"m": {"1.0": "0 of 0 workers"}}}
    assert here.ready("m", "1.0").status == 503
    assert here.ready("m", "2.0").status == 200


def test_kserve_asks_for_a_loaded_worker_of_the_default_version() -> None:
    here = health(version("1.0", 1, 2), version("2.0", 0, 1), default="2.0")
    assert here.kserve("m") == {"name": "m", "ready": False}
    assert health(version("1.0", 1, 2)).kserve("m") == {"name": "m", "ready": True}
    assert health(version("1.0", 1, 2), draining=True).kserve("m") == {"name": "m", "ready": False}


@pytest.mark.parametrize("probe", [Health.live, Health.start, Health.ready])
@pytest.mark.parametrize("draining", [False, True])
def test_who_is_not_there_is_not_found(probe: object, draining: bool) -> None:
    assert callable(probe)
    here = health(version("1.0", 1, 1), draining=draining)
    with pytest.raises(ModelNotFound, match=r"^Model not found: n$"):
        probe(here, "n")
    with pytest.raises(VersionNotFound, match=r"^Model version: 9\.9 does not exist for model: m$"):
        probe(here, "m", "9.9")

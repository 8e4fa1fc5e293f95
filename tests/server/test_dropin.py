"""Files come, change and go: what is served follows, and nothing that fails changes it."""

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from ringserve.protocol.errors import InvalidModel, OutOfResources, RingServeError, WorkerStartFailed
from ringserve.server.dropin import GOES_ON
from ringserve.server.registry import ModelVersion
from ringserve.server.repository.deployments import RETRY_S, RETRY_S_MAX
from tests.server.dropin_place import Place, Play, run


@pytest.fixture
def play(tmp_path: Path) -> Play:
    return lambda scene: run(tmp_path / "repository", scene)


def test_what_is_dropped_is_served_what_is_replaced_is_switched_what_is_removed_is_gone(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar("a.mar", "first")
        await place.look()
        assert place.deployer.served() == {"first": ["1.0"]}
        assert place.rows() == [("a.mar", "first", "1.0", "served", "")]
        [old] = place.deployer.registry
        place.mar("a.mar", "first 1.0")
        await place.look()
        [new] = place.deployer.registry
        assert new is not old
        (place.root / "a.mar").unlink()
        await place.look()
        assert place.deployer.served() == {}
        assert place.rows() == []
        assert place.deployer.did == ["load a.mar: first", "load a.mar: first 1.0", "unload first 1.0"]
        assert (place.dropin.accepted, place.dropin.refused.total()) == (2, 0)

    play(scene)


def test_a_thousand_files_at_once_are_told_of_in_few_steps(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told is made anew for all files: done for each of them, 3,000 broken ones held the event loop for 39 s."""

    async def scene(place: Place) -> None:
        for number in range(300):
            place.mar(f"m{number}.mar", f"m{number}")
            place.deployer.fails[f"m{number}.mar"] = InvalidModel("broken")
        refreshes = 0
        refresh = place.dropin._refresh

        def counted() -> None:
            nonlocal refreshes
            refreshes += 1
            refresh()

        monkeypatch.setattr(place.dropin, "_refresh", counted)
        await place.look()
        assert len(place.rows()) == 300
        assert refreshes < 20

    play(scene)


def test_a_file_that_is_away_for_a_moment_is_not_unloaded(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar("a.mar", "m")
        await place.look()
        (place.root / "a.mar").unlink()
        place.now_s += 10
        assert await place.dropin.look() is not None, "another look is due soon"
        await place.dropin.done()
        place.mar("a.mar", "m 2.0")
        await place.look()
        assert place.deployer.did == ["load a.mar: m", "load a.mar: m 2.0"]

    play(scene)


def test_a_file_whose_manifest_has_another_version_moves_the_default(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar("a.mar", "m 2.0")
        await place.look()
        for version in ("10.0", "1.0"):
            place.mar("a.mar", f"m {version}")
            await place.look()
            assert place.deployer.served() == {"m": [version]}
            assert place.rows() == [("a.mar", "m", version, "served", "")]

    play(scene)


def test_flat_files_of_one_model_serve_side_by_side_and_the_highest_is_the_default(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar("a.mar", "m 9.0")
        place.mar("b.mar", "m 10.0")
        place.mar("c.mar", "m 1.0")
        await place.look()
        assert place.deployer.served() == {"m": ["10.0", "1.0", "9.0"]}
        (place.root / "b.mar").unlink()
        await place.look()
        assert place.deployer.served() == {"m": ["9.0", "1.0"]}

    play(scene)


def test_two_files_that_claim_one_version_are_told_apart_and_the_first_goes_on(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar("a.mar", "m")
        await place.look()
        place.mar("b.mar", "m")
        await place.look()
        sentence = "Model version 1.0 is already registered for model m"
        assert place.rows() == [("a.mar", "m", "1.0", "served", ""), ("b.mar", "b", None, "refused", sentence)]
        (place.root / "a.mar").unlink()
        await place.look()
        assert place.rows() == [("b.mar", "m", "1.0", "served", "")], "its place is free now"

    play(scene)


# ---- what is broken


def test_a_broken_replacement_leaves_what_is_served_and_is_told_once(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(place: Place) -> None:
        place.mar("a.mar", "m")
        await place.look()
        before = list(place.deployer.registry)
        place.deployer.fails["a.mar"] = InvalidModel("Archive a.mar: expected a model, got none")
        place.mar("a.mar", "broken")
        for _ in range(3):
            await place.look(10_000)
        assert list(place.deployer.registry) == before
        assert place.rows() == [
            ("a.mar", "m", "1.0", "refused", f"Archive a.mar: expected a model, got none. {GOES_ON}")
        ]
        assert place.deployer.did == ["load a.mar: m", "load a.mar: broken"], "tried once"
        assert place.dropin.refused == {"invalid_model": 1}
        place.deployer.fails.clear()
        place.mar("a.mar", "m 3.0")
        await place.look()
        assert place.rows() == [("a.mar", "m", "3.0", "served", "")]

    with caplog.at_level(logging.ERROR, logger="ringserve.repository"):
        play(scene)
    assert [each.message for each in caplog.records] == [
        "Failed to load model: a.mar: Archive a.mar: expected a model, got none"
    ]


@pytest.mark.parametrize("error", [WorkerStartFailed("no"), OutOfResources("no")])
def test_what_does_not_load_is_tried_again_after_growing_pauses(play: Play, error: RingServeError) -> None:
    async def scene(place: Place) -> None:
        place.deployer.fails["a.mar"] = error
        place.mar("a.mar", "m")
        due_s = await place.look()
        assert place.rows() == [("a.mar", "a", None, "retrying", "no")]
        pauses = []
        for _ in range(7):
            place.now_s += 0.001
            due_s = await place.dropin.look()
            assert due_s is not None
            pauses.append(round(due_s))
            place.now_s += due_s
            await place.dropin.look()
            await place.dropin.done()
        assert pauses == [60, 120, 240, 480, 900, 900, 900]
        assert (RETRY_S, RETRY_S_MAX) == (60, 900)
        assert len(place.deployer.did) == 8
        place.mar("a.mar", "m 2.0")
        await place.look(0)
        assert place.deployer.did[-1] == "load a.mar: m 2.0", "a new file is tried at once"
        place.deployer.fails.clear()
        await place.look(RETRY_S)
        assert place.rows() == [("a.mar", "m", "2.0", "served", "")]

    play(scene)


def test_what_nobody_expected_is_a_failure_like_any_other(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.deployer.fails["a.mar"] = ValueError("odd")  # type: ignore[assignment]
        place.mar("a.mar", "m")
        place.mar("b.mar", "n")
        await place.look()
        assert place.deployer.served() == {"n": ["1.0"]}
        assert place.rows()[0][3:] == ("retrying", "The server failed to deploy it: ValueError('odd')")

    play(scene)


def test_a_file_that_is_still_copied_is_not_touched(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar(".whole", "m")
        data = (place.root / ".whole").read_bytes()
        for size in (1, 30, len(data) - 1):
            (place.root / "a.mar").write_bytes(data[:size])
            await place.look()
            assert place.deployer.did == []
            assert place.state("a.mar") == "incomplete"
        (place.root / "a.mar").write_bytes(data)
        await place.look()
        assert place.state("a.mar") == "served"

    play(scene)


def test_a_cut_off_replacement_is_reported_beside_what_is_served(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar("a.mar", "m")
        await place.look()
        data = (place.root / "a.mar").read_bytes()
        (place.root / "a.mar").write_bytes(data[:-5])
        for _ in range(3):
            await place.look()
        [(file, model, version, state, reason)] = place.rows()
        assert (file, model, version, state) == ("a.mar", "m", "1.0", "incomplete")
        assert reason.startswith(f"expected a whole archive, got {len(data) - 5} bytes")
        assert reason.endswith(GOES_ON)
        assert place.deployer.served() == {"m": ["1.0"]}
        assert place.dropin.refused == {"incomplete": 1}

    play(scene)


def test_what_can_never_be_a_model_is_reported_and_what_was_there_goes_on(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar("a.mar", "m")
        await place.look()
        (place.root / "a.mar").unlink()
        os.mkfifo(place.root / "a.mar")
        (place.root / "b.zip").touch()
        await place.look()
        assert place.rows() == [
            ("a.mar", "m", "1.0", "refused", f"expected a regular file, got a named pipe. {GOES_ON}"),
            ("b.zip", "b", None, "refused", "expected an archive's name to end in .mar or .tar.gz or .tgz"),
        ]
        assert place.deployer.served() == {"m": ["1.0"]}

    play(scene)


def test_a_repository_that_is_away_unloads_nothing(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar("a.mar", "m")
        await place.look()
        away = place.root.with_name("away")
        place.root.rename(away)
        await place.look()
        place.root.mkdir()  # as an unmounted one is
        await place.look()
        reason = "the folder has been replaced by an empty one, as when it is unmounted."
        assert place.rows()[0] == (".", None, None, "refused", f"{reason} {GOES_ON}")
        place.root.rmdir()
        away.rename(place.root)
        await place.look()
        assert place.rows() == [("a.mar", "m", "1.0", "served", "")]
        assert place.deployer.did == ["load a.mar: m"]

    play(scene)


# ---- many at once


def test_a_slow_load_holds_up_nobody_else(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.deployer.holds["slow.mar"] = asyncio.Event()
        place.mar("slow.mar", "slow")
        place.now_s += 10
        await place.dropin.look()
        place.mar("quick.mar", "quick")
        await place.dropin.look()
        while "quick" not in place.deployer.served():
            await asyncio.sleep(0)
        assert place.state("slow.mar") == "loading"
        place.deployer.holds["slow.mar"].set()
        await place.dropin.done()
        assert place.deployer.served() == {"quick": ["1.0"], "slow": ["1.0"]}

    play(scene)


@pytest.mark.parametrize("then", ["replaced", "removed"])
def test_of_a_file_that_changes_while_it_is_loaded_the_newest_wins(play: Play, then: str) -> None:
    async def scene(place: Place) -> None:
        place.mar("a.mar", "m 1.0")
        await place.look()
        place.deployer.holds["a.mar"] = asyncio.Event()
        place.mar("a.mar", "m 2.0")
        await place.dropin.look()
        while place.deployer.did[-1] != "load a.mar: m 2.0":
            await asyncio.sleep(0)
        if then == "replaced":
            place.mar("a.mar", "m 3.0")
        else:
            (place.root / "a.mar").unlink()
        for _ in range(2):
            place.now_s += 10
            await place.dropin.look()
        while place.deployer.did[-1] == "load a.mar: m 2.0":
            await asyncio.sleep(0)
        place.deployer.holds.clear()
        await place.look()
        assert place.deployer.served() == ({"m": ["3.0"]} if then == "replaced" else {})
        assert place.dropin.refused.total() == 0, "nobody failed"

    play(scene)


def test_at_the_start_everything_is_there_at_once_even_what_was_written_this_moment(play: Play) -> None:
    async def scene(place: Place) -> None:
        beside = []
        deploy = place.deployer.deploy

        async def noted(*arguments: Any, **options: Any) -> ModelVersion:
            beside.append(options["beside"])
            return await deploy(*arguments, **options)

        place.deployer.deploy = noted  # type: ignore[method-assign]
        place.mar("a.mar", "a")
        place.mar("m/1.0/m.mar", "m")
        place.mar("m/2.0/m.mar", "m")
        place.text("m/config.yaml", "version_policy: all")
        await place.dropin.start()
        assert place.deployer.served() == {"a": ["1.0"], "m": ["2.0", "1.0"]}
        assert all(each.at_startup for each in place.deployer.asked)
        assert beside == [False] * 3
        place.not_ready = {"a": "", "m": "its worker ended"}
        assert [row[3:] for row in place.rows()] == [("loading", ""), *[("retrying", "its worker ended")] * 2]

    play(scene)


def test_a_file_that_is_replaced_during_the_start_takes_the_place_of_what_it_was(play: Play) -> None:
    async def scene(place: Place) -> None:
        place.mar("a.mar", "m 1.0")
        place.mar("late.mar", "other")
        os.utime(place.root / "late.mar")
        deploy = place.deployer.deploy

        async def replaced(*arguments: Any, **options: Any) -> ModelVersion:
            version = await deploy(*arguments, **options)
            if version.version == "1.0" and version.name == "m":
                place.mar("a.mar", "m 2.0")
            options_of.append((version.version, options["beside"]))
            return version

        options_of: list[tuple[str, bool]] = []
        place.deployer.deploy = replaced  # type: ignore[method-assign]
        await place.dropin.start()
        assert place.deployer.served() == {"m": ["2.0"], "other": ["1.0"]}
        assert ("2.0", True) in options_of

    play(scene)


def test_a_look_that_fails_is_followed_by_another(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(place: Place) -> None:
        await place.dropin.start()
        looked = asyncio.Event()
        real = place.dropin.look

        async def fail() -> None:
            monkeypatch.setattr(place.dropin, "look", again)
            raise MemoryError("for a moment")

        async def again() -> float | None:
            looked.set()
            return await real()

        monkeypatch.setattr("ringserve.server.dropin.REPAIR_S", 0.0)
        monkeypatch.setattr(place.dropin, "look", fail)
        await asyncio.wait_for(looked.wait(), 10)

    play(scene)


def test_work_that_breaks_is_told_and_not_begun_again_at_once(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    async def scene(place: Place) -> None:
        async def broken(name: str) -> None:
            raise MemoryError("for a moment")

        place.mar("a.mar", "m")
        await place.dropin.look()
        place.dropin._settle_default = broken  # type: ignore[method-assign]
        await place.dropin.done()
        assert not place.dropin._watcher._event.is_set()
        assert "what is to be done for a.mar could not be done" in caplog.text

    play(scene)


def test_a_row_keeps_its_time_while_it_says_the_same(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scene(place: Place) -> None:
        times = iter(f"2026-01-01T00:00:0{number}Z" for number in range(10))
        monkeypatch.setattr("ringserve.server.dropin.time.strftime", lambda *_: next(times))
        place.mar("a.mar", "m")
        await place.look()
        [first], [second] = place.dropin.report(), place.dropin.report()
        assert first == second
        place.not_ready["m"] = "gone"
        assert place.dropin.report()[0]["since"] > first["since"]

    play(scene)

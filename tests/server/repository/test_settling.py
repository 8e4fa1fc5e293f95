"""When a file is taken and when it counts as gone, by a clock of the test's own."""

from dataclasses import replace
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile

import pytest

from ringserve.server.repository.scan import Entry, Snapshot
from ringserve.server.repository.settling import (
    FOLDER_SETTLE_S,
    GONE_S,
    LATE_LOOK_S,
    LATE_S,
    LOOK_S,
    PROBLEM_S,
    SETTLE_S,
    Look,
    Settling,
    why_not_whole,
)

WALL_S = 1_000_000.0
FRESH_NS = int(WALL_S * 1e9)
OLD_NS = 1


def entry(fingerprint: str = "a", *, changed_ns: int = FRESH_NS, is_folder: bool = False, slot: str = "m.mar") -> Entry:
    return Entry(slot, slot.split("/")[0], Path(slot), slot, is_folder, fingerprint=fingerprint, changed_ns=changed_ns)


def snapshot(*entries: Entry, uncertain: frozenset[str] = frozenset(), identity: tuple[int, int] = (1, 1)) -> Snapshot:
    return Snapshot({each.slot: each for each in entries}, uncertain=uncertain, identity=identity)


class Looks:
    """Looks at snapshots; the wall clock stands still unless told otherwise."""

    def __init__(self, incomplete: str | None = None) -> None:
        self.incomplete = incomplete
        self.settling = Settling(lambda path: self.incomplete)

    def at(self, now_s: float, seen: Snapshot, wall_s: float = WALL_S) -> Look:
        return self.settling.judge(seen, now_s, wall_s)


def test_a_file_that_nobody_wrote_to_lately_is_taken_at_the_first_look() -> None:
    look = Looks().at(0, snapshot(entry(changed_ns=OLD_NS)))
    assert set(look.there) == {"m.mar"}
    assert look.again_s is None


def test_a_fresh_file_is_taken_when_two_looks_find_it_the_same() -> None:
    looks = Looks()
    first = looks.at(0, snapshot(entry()))
    assert first.unfinished["m.mar"].reason == "it is still changing"
    assert first.again_s == LOOK_S
    assert set(looks.at(SETTLE_S - 0.1, snapshot(entry())).there) == set()
    assert set(looks.at(SETTLE_S, snapshot(entry())).there) == {"m.mar"}


def test_a_file_that_grows_is_never_taken() -> None:
    looks = Looks()
    for number in range(100):
        look = looks.at(number * 0.4, snapshot(entry(str(number))))
        assert look.there == {}
        assert look.unfinished["m.mar"].late == (number * 0.4 >= LATE_S)
    assert set(looks.at(1000, snapshot(entry("99"))).there) == {"m.mar"}


def test_a_file_from_the_future_is_judged_by_looks_alone() -> None:
    looks = Looks()
    future = entry(changed_ns=FRESH_NS + 10**12)
    assert looks.at(0, snapshot(future)).there == {}
    assert set(looks.at(SETTLE_S, snapshot(future)).there) == {"m.mar"}


def test_a_folder_settles_for_longer_than_a_file() -> None:
    looks = Looks()
    assert looks.at(0, snapshot(entry(is_folder=True))).there == {}
    assert looks.at(SETTLE_S, snapshot(entry(is_folder=True))).there == {}
    assert set(looks.at(FOLDER_SETTLE_S, snapshot(entry(is_folder=True))).there) == {"m.mar"}


def test_a_file_without_its_end_waits_and_is_looked_at_less_often_in_time() -> None:
    looks = Looks("no end yet")
    old = snapshot(entry(changed_ns=OLD_NS))
    first = looks.at(0, old)
    assert (first.unfinished["m.mar"].reason, first.unfinished["m.mar"].late, first.again_s) == (
        "no end yet",
        False,
        LOOK_S,
    )
    later = looks.at(LATE_S, old)
    assert (later.unfinished["m.mar"].late, later.again_s) == (True, LATE_LOOK_S)
    looks.incomplete = None
    assert set(looks.at(LATE_S + 1, old).there) == {"m.mar"}


def test_what_has_been_taken_is_not_judged_again_until_it_changes() -> None:
    looks = Looks()
    looks.at(0, snapshot(entry(changed_ns=OLD_NS)))
    looks.incomplete = "must not be asked"
    assert set(looks.at(1, snapshot(entry(changed_ns=OLD_NS))).there) == {"m.mar"}
    changed = looks.at(2, snapshot(entry("b", changed_ns=OLD_NS)))
    assert changed.there == {}
    assert not changed.unfinished["m.mar"].late, "its time begins anew"


def test_what_disappears_is_gone_when_it_stays_away() -> None:
    looks = Looks()
    looks.at(0, snapshot(entry(changed_ns=OLD_NS)))
    first = looks.at(10, snapshot())
    assert first.leaving == {"m.mar"}
    assert first.again_s == LOOK_S
    assert looks.at(10 + GONE_S - 0.1, snapshot()).leaving == {"m.mar"}
    assert looks.at(10 + GONE_S, snapshot()).leaving == set()


def test_what_comes_back_in_time_was_never_gone() -> None:
    looks = Looks()
    present = snapshot(entry(changed_ns=OLD_NS))
    looks.at(0, present)
    looks.at(10, snapshot())
    assert set(looks.at(10.5, present).there) == {"m.mar"}
    assert looks.at(20, snapshot()).leaving == {"m.mar"}, "its time begins anew"


def test_what_is_missing_where_nobody_could_look_stays() -> None:
    looks = Looks()
    looks.at(0, snapshot(entry(slot="m/1.0", changed_ns=OLD_NS)))
    blind = snapshot(uncertain=frozenset({"m"}))
    for now_s in (10, 100, 1000):
        look = looks.at(now_s, blind)
        assert look.leaving == {"m/1.0"}
        assert look.again_s is None, "time alone tells nothing more of it"


def test_a_folder_that_cannot_be_read_tells_nothing() -> None:
    looks = Looks()
    looks.at(0, snapshot(entry(changed_ns=OLD_NS)))
    look = looks.at(1, Snapshot(unreadable="the folder cannot be read: gone"))
    assert look.unreadable == "the folder cannot be read: gone"
    assert set(looks.at(1000, snapshot(entry(changed_ns=OLD_NS))).there) == {"m.mar"}


def test_an_empty_folder_in_the_place_of_a_full_one_is_an_unmounted_one() -> None:
    looks = Looks()
    full = snapshot(entry(changed_ns=OLD_NS))
    looks.at(0, full)
    for now_s in (1, 100):
        look = looks.at(now_s, snapshot(identity=(2, 2)))
        assert look.unreadable == "the folder has been replaced by an empty one, as when it is unmounted"
    assert set(looks.at(101, full).there) == {"m.mar"}


def test_another_folder_with_models_in_it_counts() -> None:
    looks = Looks()
    looks.at(0, snapshot(entry(changed_ns=OLD_NS)))
    other = snapshot(entry(slot="n.mar", changed_ns=OLD_NS), identity=(2, 2))
    look = looks.at(1, other)
    assert set(look.there) == {"n.mar"}
    assert look.leaving == {"m.mar"}
    assert looks.at(1 + GONE_S, other).leaving == set()


def test_a_folder_that_was_emptied_is_empty() -> None:
    looks = Looks()
    looks.at(0, snapshot(entry(changed_ns=OLD_NS)))
    looks.at(1, snapshot())
    assert looks.at(1 + GONE_S, snapshot()).leaving == set()


def test_a_problem_is_told_when_it_lasts() -> None:
    looks = Looks()
    seen = replace(snapshot(), problems={"m/1.0": "empty"})
    assert looks.at(0, seen).problems == {}
    assert looks.at(0, seen).again_s == PROBLEM_S
    assert looks.at(PROBLEM_S, seen).problems == {"m/1.0": "empty"}
    looks.at(2, snapshot())
    assert looks.at(3, seen).problems == {}


def test_what_cannot_be_served_is_taken_with_its_problem_when_it_lasts() -> None:
    looks = Looks("never asked")
    broken = snapshot(replace(entry(changed_ns=OLD_NS), problem="a pipe"))
    assert looks.at(0, broken).there == {}
    assert looks.at(SETTLE_S, broken).there["m.mar"].problem == "a pipe"


# ---- the end of an archive


def zip_bytes(path: Path) -> bytes:
    inner = path.with_suffix(".inner")
    with ZipFile(inner, "w", ZIP_STORED) as bundle:
        bundle.writestr("data.pkl", b"x" * 1000)
    with ZipFile(path, "w", ZIP_STORED) as bundle:
        bundle.writestr("MAR-INF/MANIFEST.json", "{}")
        bundle.write(inner, "model.pt")
        bundle.writestr("handler.py", "pass" * 100)
    return path.read_bytes()


def test_a_whole_archive_is_whole_and_none_of_its_beginnings_is(tmp_path: Path) -> None:
    path = tmp_path / "m.mar"
    data = zip_bytes(path)
    assert why_not_whole(path) is None
    inner_end = data.index(b"PK\x05\x06") + 22  # of the archive that lies in it
    for size in (0, 1, 3, 4, 30, len(data) // 2, len(data) - 23, len(data) - 1):
        path.write_bytes(data[:size])
        reason = why_not_whole(path)
        if size < inner_end or size > inner_end + (1 << 16):
            assert (
                reason
                == f"expected a whole archive, got {size} bytes without the end of one: still being copied, or cut off"
            )


@pytest.mark.parametrize("content", [b"no archive", b"\x1f\x8b\x08 tar", b"\x00" * 100])
def test_what_is_no_archive_at_all_is_for_unpacking_to_refuse(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.mar"
    path.write_bytes(content)
    assert why_not_whole(path) is None


def test_a_file_that_vanishes_is_not_whole(tmp_path: Path) -> None:
    assert why_not_whole(tmp_path / "m.mar") == "cannot be read: No such file or directory"

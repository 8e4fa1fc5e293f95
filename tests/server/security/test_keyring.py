import asyncio
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from ringserve.protocol.errors import Internal, InvalidKey
from ringserve.server.control import Keys
from ringserve.server.security.key_file import KEY_FILE_NAME
from ringserve.server.security.keyring import (
    OVERLAP_S,
    Given,
    Handed,
    Keyring,
    given_keys,
    open_keyring,
    read_key,
    take_keys,
)
from ringserve.server.security.tokens import Gate, Plane
from ringserve.server.settings import ConfigError, Settings

LIFETIME_S = 60.0


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now_s


class Ring:
    """A keyring in a folder, with a clock that passes when told, and what it has handed out."""

    def __init__(
        self,
        folder: Path,
        given: Mapping[Plane, Given] | None = None,
        clock: Clock | None = None,
        handed: Handed | None = None,
    ) -> None:
        self.clock = clock or Clock()
        self.file = folder / KEY_FILE_NAME
        self.told: list[Keys] = []
        self.keyring = Keyring(given or {}, LIFETIME_S, self.file, self.clock)
        self.keyring.fill(handed)

    @property
    def written(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.file.read_text())
        return found

    def key(self, plane: Plane) -> str:
        return self.keyring.credentials[plane][0].key

    def opens(self, plane: Plane, key: str) -> bool:
        return Gate(self.keyring.credentials[plane]).admits(b"Bearer " + key.encode(), self.clock())

    async def hand_out(self) -> None:
        async def publish(keys: Keys) -> None:
            self.told.append(keys)

        await self.keyring.hand_out(publish)


def test_made_keys_are_eight_characters_and_in_the_file(tmp_path: Path) -> None:
    ring = Ring(tmp_path)
    assert {plane: entry["key"] for plane, entry in ring.written.items()} == {
        each.value: ring.key(each) for each in Plane
    }
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{8}", ring.key(plane)) for plane in Plane)
    assert len({ring.key(plane) for plane in Plane}) == len(Plane)
    assert "expiration time" not in ring.written["API"]


def test_every_start_makes_new_keys(tmp_path: Path) -> None:
    first, second = Ring(tmp_path), Ring(tmp_path)
    assert not {first.key(plane) for plane in Plane} & {second.key(plane) for plane in Plane}


def test_the_api_key_alone_never_ends(tmp_path: Path) -> None:
    ring = Ring(tmp_path)
    keys = {plane: ring.key(plane) for plane in Plane}
    ring.clock.now_s += LIFETIME_S - 1
    assert all(ring.opens(plane, key) for plane, key in keys.items())
    ring.clock.now_s += 1
    assert [plane for plane, key in keys.items() if ring.opens(plane, key)] == [Plane.API]


@pytest.mark.parametrize("plane", [Plane.INFERENCE, Plane.MANAGEMENT])
def test_a_renewed_key_is_the_only_one_at_once_and_the_others_stay(tmp_path: Path, plane: Plane) -> None:
    ring = Ring(tmp_path)
    before = {each: ring.key(each) for each in Plane}

    async def renew() -> None:
        await ring.hand_out()
        ring.clock.now_s += LIFETIME_S / 2
        await ring.keyring.renew(plane.value)

    asyncio.run(renew())
    assert not ring.opens(plane, before[plane])
    assert ring.opens(plane, ring.key(plane))
    assert [each for each in Plane if ring.key(each) != before[each]] == [plane]
    assert ring.written[plane.value]["key"] == ring.key(plane)
    assert len(ring.told) == 2
    ring.clock.now_s += LIFETIME_S - 1  # its time begins anew
    assert ring.opens(plane, ring.key(plane))


@pytest.mark.parametrize("kind", ["", "API", "Inference", "inference ", "x"])
def test_other_words_renew_nothing(tmp_path: Path, kind: str) -> None:
    ring = Ring(tmp_path)
    before = ring.file.read_text()
    with pytest.raises(InvalidKey, match=r"^Token Authentication failed"):
        asyncio.run(ring.keyring.renew(kind))
    assert ring.file.read_text() == before


def test_a_key_that_cannot_be_written_down_is_not_made(tmp_path: Path) -> None:
    ring = Ring(tmp_path)
    before = ring.key(Plane.INFERENCE)
    ring.file.unlink()
    ring.file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Internal, match=r"^The key stays as it is: .*symbolic link\.$"):
        asyncio.run(ring.keyring.renew("inference"))
    assert ring.opens(Plane.INFERENCE, before)


def test_renewals_at_the_same_time_leave_the_file_as_the_keys_are(tmp_path: Path) -> None:
    ring = Ring(tmp_path)

    async def renew() -> None:
        await asyncio.gather(*(ring.keyring.renew(kind) for kind in ("inference", "management") * 8))

    asyncio.run(renew())
    assert {plane: entry["key"] for plane, entry in ring.written.items()} == {
        each.value: ring.key(each) for each in Plane
    }


# ---- given keys


def test_keys_of_the_environment_are_taken_out_of_it() -> None:
    environ = {"RINGSERVE_INFERENCE_KEY": "12345678", "RINGSERVE_API_KEY": "", "PATH": "/bin", "TS_KEYSTORE_PASS": "x"}
    assert take_keys(environ) == {Plane.INFERENCE: "12345678"}
    assert environ == {"PATH": "/bin"}


def test_a_given_key_is_not_written_down_does_not_end_and_is_not_renewed(tmp_path: Path) -> None:
    ring = Ring(tmp_path, {Plane.INFERENCE: Given("RINGSERVE_INFERENCE_KEY", key="of-my-own")})
    assert set(ring.written) == {"management", "API"}
    ring.clock.now_s += 1e9
    assert ring.opens(Plane.INFERENCE, "of-my-own")
    with pytest.raises(InvalidKey, match=r"given by RINGSERVE_INFERENCE_KEY and changes there\.$"):
        asyncio.run(ring.keyring.renew("inference"))


def test_with_all_keys_given_there_is_no_file(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE_NAME).write_text("of the server before")
    Ring(tmp_path, {plane: Given("x", key=f"key-of-{plane}") for plane in Plane})
    assert os.listdir(tmp_path) == []


def test_what_the_log_is_told_holds_no_key(tmp_path: Path) -> None:
    ring = Ring(tmp_path, {Plane.INFERENCE: Given("RINGSERVE_INFERENCE_KEY", key="of-my-own")})
    said = ring.keyring.describe()
    assert said.startswith(
        "token authorization is on: the inference key is given by RINGSERVE_INFERENCE_KEY, the others are in "
    )
    assert not [plane for plane in Plane if ring.key(plane) in said]


def test_a_key_is_given_once(tmp_path: Path) -> None:
    settings = Settings(inference_key_file=tmp_path / "key")
    with pytest.raises(ConfigError, match=r"^inference_key_file: RINGSERVE_INFERENCE_KEY gives this key as well"):
        given_keys(settings, {Plane.INFERENCE: "12345678"})


@pytest.mark.parametrize(
    ("content", "problem"),
    [(None, "cannot be read: No such file"), ("short\n", "got 5"), ("two words\n", "without blanks"), ("", "got 0")],
)
def test_a_file_without_a_key_stops_the_start_by_name_and_is_not_quoted(
    tmp_path: Path, content: str | None, problem: str
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_text(content)
    settings = Settings(api_key_file=file)
    with pytest.raises(ConfigError) as raised:
        open_keyring(settings, {}, tmp_path)
    said = str(raised.value)
    assert said.startswith(f"Token Authorization setup unsuccessful: api_key_file: {file}")
    assert problem in said
    assert not content or content.strip() not in said


def test_a_key_file_that_cannot_be_written_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / KEY_FILE_NAME).mkdir()
    with pytest.raises(
        ConfigError, match=r"^Token Authorization setup unsuccessful: .* cannot be written: Is a directory$"
    ):
        open_keyring(Settings(), {}, tmp_path)


def test_without_tokens_nothing_is_made_or_read(tmp_path: Path) -> None:
    settings = Settings(disable_token_authorization=True, api_key_file=tmp_path / "none")
    assert open_keyring(settings, {}, tmp_path) is None
    assert os.listdir(tmp_path) == []


# ---- mounted secrets


def mounted(folder: Path, key: str) -> Path:
    """As Kubernetes mounts a secret: the file is a link through `..data`, which is swapped for a new one."""
    (folder / "..data").symlink_to(folder / "..1")
    (folder / "..1").mkdir()
    (folder / "..1" / "key").write_text(f"{key}\n")
    (folder / "key").symlink_to("..data/key")
    return folder / "key"


def remount(folder: Path, key: str) -> None:
    (folder / "..2").mkdir()
    (folder / "..2" / "key").write_text(f"{key}\n")
    (folder / "..data_tmp").symlink_to(folder / "..2")
    os.replace(folder / "..data_tmp", folder / "..data")


def test_a_secret_that_is_mounted_anew_opens_and_the_one_before_goes_on_for_a_while(tmp_path: Path) -> None:
    ring = Ring(tmp_path, {Plane.INFERENCE: Given("inference_key_file", file=mounted(tmp_path, "first-key"))})

    async def change() -> None:
        await ring.hand_out()
        await ring.keyring.look()
        assert len(ring.told) == 1
        remount(tmp_path, "second-key")
        await ring.keyring.look()
        assert (ring.opens(Plane.INFERENCE, "first-key"), ring.opens(Plane.INFERENCE, "second-key")) == (True, True)
        assert len(ring.told) == 2
        ring.clock.now_s += OVERLAP_S
        assert not ring.opens(Plane.INFERENCE, "first-key")  # whether somebody looks or not
        await ring.keyring.look()
        await ring.keyring.look()
        assert len(ring.told) == 3
        assert len(ring.keyring.credentials[Plane.INFERENCE]) == 1

    asyncio.run(change())
    assert ring.opens(Plane.INFERENCE, "second-key")


@pytest.mark.parametrize("content", ["", "short", None])
def test_a_file_that_holds_no_key_any_more_changes_nothing_and_is_told_once(
    tmp_path: Path, content: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "key"
    file.write_text("first-key")
    ring = Ring(tmp_path, {Plane.API: Given("api_key_file", file=file)})
    file.unlink()
    if content is not None:
        file.write_text(content)

    async def look() -> None:
        for _ in range(3):
            await ring.keyring.look()

    asyncio.run(look())
    assert ring.opens(Plane.API, "first-key")
    assert len([each for each in caplog.records if "stays as it is" in each.message]) == 1


def test_what_is_no_file_is_refused_and_leaves_no_descriptor_behind(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/proc/self/fd"))
    for path, kind in ((tmp_path, "Is a directory"), (tmp_path / "pipe", "expected a regular file, got a named pipe")):
        with pytest.raises(ValueError, match=kind):
            read_key(path)
    assert len(os.listdir("/proc/self/fd")) == before


# ---- from one instance to the next


def test_the_next_instance_goes_on_with_the_keys_that_were_made(tmp_path: Path) -> None:
    old = Ring(tmp_path)
    new = Ring(tmp_path, clock=old.clock, handed=old.keyring.handed_over)
    assert {plane: new.key(plane) for plane in Plane} == {plane: old.key(plane) for plane in Plane}
    assert new.written["inference"]["key"] == old.key(Plane.INFERENCE)
    old.clock.now_s += LIFETIME_S
    newest = Ring(tmp_path, clock=old.clock, handed=new.keyring.handed_over)
    assert [plane for plane in Plane if newest.key(plane) == old.key(plane)] == [Plane.API]


def test_a_key_of_the_environment_goes_on_without_being_written_down(tmp_path: Path) -> None:
    old = Ring(tmp_path, {Plane.INFERENCE: Given("RINGSERVE_INFERENCE_KEY", key="of-my-own")})
    new = open_keyring(Settings(), {}, tmp_path, old.keyring.handed_over)
    assert new is not None
    assert new.credentials[Plane.INFERENCE][0].key == "of-my-own"
    assert set(json.loads((tmp_path / KEY_FILE_NAME).read_text())) == {"management", "API"}


def test_what_another_key_replaces_opens_for_a_while(tmp_path: Path) -> None:
    old = Ring(tmp_path, {Plane.API: Given("api_key_file", file=mounted(tmp_path, "first-key"))})
    made = old.key(Plane.INFERENCE)
    given = {Plane.INFERENCE: Given("RINGSERVE_INFERENCE_KEY", key="of-my-own")}
    new = Ring(tmp_path, given, old.clock, old.keyring.handed_over)
    shown = (
        (Plane.INFERENCE, made),
        (Plane.INFERENCE, "of-my-own"),
        (Plane.API, "first-key"),
        (Plane.API, new.key(Plane.API)),
    )
    assert [new.opens(*each) for each in shown] == [True] * 4
    new.clock.now_s += OVERLAP_S
    assert [new.opens(*each) for each in shown] == [False, True, False, True]

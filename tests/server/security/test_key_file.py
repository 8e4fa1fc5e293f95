import json
import os
import stat
from pathlib import Path

import pytest

from ringserve.server.control import Credential
from ringserve.server.security.key_file import KeyFileError, key_file_text, remove_key_file, write_key_file
from ringserve.server.security.tokens import Plane

MADE = {
    Plane.INFERENCE: Credential("gNRuA7dS", 1708117944.801148),
    Plane.MANAGEMENT: Credential("B-E5KSRM", 1708117944.801167),
    Plane.API: Credential("yv9uQajP", float("inf")),
}
EXPECTED = """{
  "management": {
    "key": "B-E5KSRM",
    "expiration time": "2024-02-16T21:12:24.801167Z"
  },
  "inference": {
    "key": "gNRuA7dS",
    "expiration time": "2024-02-16T21:12:24.801148Z"
  },
  "API": {
    "key": "yv9uQajP"
  }
}"""


def test_the_file_is_what_torchserve_writes(tmp_path: Path) -> None:
    write_key_file(tmp_path / "key_file.json", MADE)
    assert (tmp_path / "key_file.json").read_text() == EXPECTED
    assert os.listdir(tmp_path) == ["key_file.json"]


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_only_its_owner_may_read_it_whatever_is_usual(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "key_file.json"
    path.write_text("{}")
    path.chmod(0o644)
    before = os.umask(umask)
    try:
        write_key_file(path, MADE)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_who_reads_the_old_file_does_not_find_the_new_keys_in_it(tmp_path: Path) -> None:
    """Somebody may have opened a file that everybody could read."""
    path = tmp_path / "key_file.json"
    path.write_text("old")
    with path.open() as opened:
        write_key_file(path, MADE)
        assert opened.read() == "old"


def test_a_link_is_neither_followed_nor_replaced(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.write_text("precious")
    (tmp_path / "key_file.json").symlink_to(target)
    with pytest.raises(KeyFileError, match=r"key_file.json: expected a file or none, got a symbolic link"):
        write_key_file(tmp_path / "key_file.json", MADE)
    assert target.read_text() == "precious"


def test_what_lies_in_the_way_is_said(tmp_path: Path) -> None:
    (tmp_path / "key_file.json").mkdir()
    with pytest.raises(KeyFileError, match=r"key_file.json cannot be written: Is a directory"):
        write_key_file(tmp_path / "key_file.json", MADE)
    with pytest.raises(KeyFileError, match=r"cannot be written: No such file or directory"):
        write_key_file(tmp_path / "nowhere" / "key_file.json", MADE)
    assert os.listdir(tmp_path) == ["key_file.json"]


@pytest.mark.parametrize("until_s", [1e30, -1e30, 0.0, 253402300800.0])
def test_a_key_may_hold_for_longer_than_calendars_go(until_s: float) -> None:
    text = json.loads(key_file_text({Plane.INFERENCE: Credential("12345678", until_s)}))
    assert text["inference"]["expiration time"].endswith("Z")


def test_removing_one_that_is_not_there_is_nothing(tmp_path: Path) -> None:
    write_key_file(tmp_path / "key_file.json", MADE)
    for _ in range(2):
        remove_key_file(tmp_path)
        assert os.listdir(tmp_path) == []

"""Unpacking real zip files, honest and hostile."""

import errno
import os
import stat
import struct
import tempfile
import warnings
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile, ZipInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.archive import extract
from ringserve.server.repository.archive_plan import ArchiveLimits
from ringserve.server.repository.archive_writing import Damaged, copy_exactly


def pack(path: Path, members: Sequence[tuple[str | ZipInfo, bytes]], method: int = ZIP_DEFLATED) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns about duplicate names, which are the point of some tests
        with ZipFile(path, "w", method) as bundle:
            for member, data in members:
                info = member if isinstance(member, ZipInfo) else ZipInfo("named below")
                if isinstance(member, str):
                    info.filename = member  # as it is: the constructor would cut it at a NUL
                bundle.writestr(info, data, method)
    return path


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: contents of files, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(archive: Path, into: Path, limits: ArchiveLimits | None = None) -> str:
    with pytest.raises(InvalidModel) as caught:
        extract(archive, into, limits or ArchiveLimits())
    assert not into.exists()
    return str(caught.value)


@pytest.mark.parametrize("method", [ZIP_DEFLATED, ZIP_STORED])
def test_an_archive_unpacks_to_its_files(tmp_path: Path, method: int) -> None:
    archive = pack(
        tmp_path / "m.mar", [("a.txt", b"a" * 3_000_000), ("s/t/b", b"b"), ("e/", b""), ("zero", b"")], method
    )
    extract(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == {
        "a.txt": b"a" * 3_000_000,
        "s": None,
        "s/t": None,
        "s/t/b": b"b",
        "e": None,
        "zero": b"",
    }


def test_files_are_private_and_lose_their_special_bits(tmp_path: Path) -> None:
    info = ZipInfo("bin/run")
    info.external_attr = (stat.S_IFREG | stat.S_ISUID | stat.S_ISGID | 0o777) << 16
    extract(pack(tmp_path / "m.mar", [(info, b"x")]), tmp_path / "out")
    assert stat.S_IMODE((tmp_path / "out/bin/run").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "out/bin").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o700


def test_an_empty_folder_that_exists_is_filled(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    extract(pack(tmp_path / "m.mar", [("a", b"1")]), tmp_path / "out")
    assert tree(tmp_path / "out") == {"a": b"1"}


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("kept")
    with pytest.raises(FileExistsError):
        extract(pack(tmp_path / "m.mar", [("a", b"1")]), tmp_path / "out")
    assert tree(tmp_path / "out") == {"mine": b"kept"}


@pytest.mark.parametrize("name", ["m.tar.gz", "m.tgz", "m.zip", "m", "mar"])
def test_a_zip_under_another_name_is_refused(tmp_path: Path, name: str) -> None:
    message = refused(pack(tmp_path / name, [("a", b"1")]), tmp_path / "out")
    assert message.startswith(
        f"Archive {name}: expected a zip under a name that ends in .mar, or a gzipped tar under another, got "
    )


def test_what_is_not_a_zip_is_refused_with_its_first_bytes(tmp_path: Path) -> None:
    archive = tmp_path / "m.mar"
    archive.write_bytes(b"\x1f\x8b\x08not a zip")
    message = refused(archive, tmp_path / "out")
    assert message == (
        "Archive m.mar: expected a zip archive, "
        "got 12 bytes that start with b'\\x1f\\x8b\\x08not a' (File is not a zip file)"
    )


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06"])
def test_an_empty_or_tiny_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.mar").write_bytes(content)
    assert "expected a zip archive" in refused(tmp_path / "m.mar", tmp_path / "out")


def test_a_missing_archive_and_a_folder_are_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "m.mar", tmp_path / "out") == "Archive m.mar: expected a regular file, got none"
    (tmp_path / "m.mar").mkdir()
    assert refused(tmp_path / "m.mar", tmp_path / "out").endswith("got something else")


@pytest.mark.parametrize("name", ["../evil", "/tmp/evil", "a/../../evil", "..\\evil"])
def test_one_escaping_member_keeps_all_others_unwritten(tmp_path: Path, name: str) -> None:
    archive = pack(tmp_path / "m.mar", [("good", b"1"), (name, b"2")])
    before = sorted(tmp_path.parent.rglob("*"))
    message = refused(archive, tmp_path / "out")
    assert message.startswith(f"Archive m.mar, member {name!r}: expected ")
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    info = ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "a symbolic link" in refused(pack(tmp_path / "m.mar", [(info, b"/etc")]), tmp_path / "out")


def test_duplicate_members_are_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "m.mar", [("a", b"1"), ("a", b"2")])
    assert "a second member of the same name" in refused(archive, tmp_path / "out")


def test_a_bomb_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    archive = pack(tmp_path / "m.mar", [("zeros", bytes(2_000_000))])
    assert archive.stat().st_size < 5_000
    assert "at most 100 times" in refused(archive, tmp_path / "out", ArchiveLimits(ratio_floor_bytes=1_000_000))


def test_a_directory_too_long_to_load_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "m.mar", [(f"{number:0100d}", b"") for number in range(10)])
    message = refused(archive, tmp_path / "out", ArchiveLimits(directory_bytes_max=1_000))
    assert message == "Archive m.mar: expected a directory of at most 1000 bytes, got 1460"


def test_the_bound_on_the_directory_is_none_on_the_data(tmp_path: Path) -> None:
    archive = pack(tmp_path / "m.mar", [("w.pt", bytes(100_000))], ZIP_STORED)
    extract(archive, tmp_path / "out", ArchiveLimits(directory_bytes_max=1_000))
    assert (tmp_path / "out/w.pt").stat().st_size == 100_000


def test_wrong_checksums_are_found_while_writing_and_undone(tmp_path: Path) -> None:
    archive = pack(tmp_path / "m.mar", [("first", b"fine"), ("sub/w.pt", b"weights!")], ZIP_STORED)
    archive.write_bytes(archive.read_bytes().replace(b"weights!", b"weighty!"))
    message = refused(archive, tmp_path / "out")
    assert message == "Archive m.mar, member 'sub/w.pt': expected intact data, got Bad CRC-32 for file 'sub/w.pt'"


def test_failure_empties_a_folder_that_was_there_before(tmp_path: Path) -> None:
    archive = pack(tmp_path / "m.mar", [("first", b"fine"), ("s/second", b"x"), ("w.pt", b"weights!")], ZIP_STORED)
    archive.write_bytes(archive.read_bytes().replace(b"weights!", b"weighty!"))
    (tmp_path / "out").mkdir()
    with pytest.raises(InvalidModel):
        extract(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == {}


def test_a_header_that_names_another_file_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "m.mar", [("safe.py", b"1")])
    archive.write_bytes(archive.read_bytes().replace(b"safe.py", b"evil.py", 1))  # the member's own header comes first
    assert "member 'safe.py': expected intact data" in refused(archive, tmp_path / "out")


@pytest.mark.parametrize("declared", [4, 12])
def test_a_member_that_is_not_as_long_as_declared_is_refused(tmp_path: Path, declared: int) -> None:
    archive = pack(tmp_path / "m.mar", [("a", b"8 bytes!")])
    data = bytearray(archive.read_bytes())
    entry = data.rindex(b"PK\x01\x02")
    struct.pack_into("<I", data, entry + 24, declared)  # the uncompressed size in the directory (APPNOTE 4.3.12)
    archive.write_bytes(data)
    assert "member 'a': expected intact data" in refused(archive, tmp_path / "out")


@pytest.mark.parametrize("error", [None, errno.EXDEV, errno.ENOSYS, "nothing is copied"])
def test_a_long_stored_member_is_copied_by_the_kernel_where_it_can(
    tmp_path: Path, error: int | str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = os.copy_file_range

    def copy(source: int, target: int, count: int, at: int, to: int) -> int:
        calls.append(count)
        if isinstance(error, int):
            raise OSError(error, os.strerror(error))
        # In pieces, the second of which fails.
        return real(source, target, min(count, 2_000_000), at, to) if error is None or len(calls) == 1 else 0

    monkeypatch.setattr(os, "copy_file_range", copy)
    data = os.urandom(3_000_000)
    archive = pack(tmp_path / "m.mar", [("short", b"s"), ("w.pt", data), ("after", b"a")], ZIP_STORED)
    extract(archive, tmp_path / "out")
    assert tree(tmp_path / "out") == {"short": b"s", "w.pt": data, "after": b"a"}
    assert calls == ([3_000_000] if isinstance(error, int) else [3_000_000, 1_000_000])


def test_a_long_stored_member_that_is_damaged_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "m.mar", [("w.pt", bytes(3_000_000))], ZIP_STORED)
    content = bytearray(archive.read_bytes())
    content[2_000_000] = 1
    archive.write_bytes(content)
    assert "member 'w.pt': expected intact data, got Bad CRC-32" in refused(archive, tmp_path / "out")


def test_a_full_disk_is_not_the_archives_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "copy_file_range", full)
    archive = pack(tmp_path / "m.mar", [("w.pt", bytes(3_000_000))], ZIP_STORED)
    with pytest.raises(OSError, match="No space left"):
        extract(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("source", [b"123", b"12345"])
def test_copying_holds_the_data_to_its_declared_length(source: bytes) -> None:
    output = BytesIO()
    with pytest.raises(Damaged, match="declared 4 bytes"):
        copy_exactly(BytesIO(source), output, 4)
    assert len(output.getvalue()) <= 4


HOSTILE_PARTS = st.sampled_from(["..", ".", "", "a", "A", "b", "/", "\\", "C:", "x\0y", "out", "MAR-INF", "é"])
NAMES = st.lists(HOSTILE_PARTS, min_size=1, max_size=5).map("/".join) | st.text(max_size=12).filter(
    lambda name: name.isprintable()
)


@settings(max_examples=150, deadline=None)
@given(st.lists(NAMES, max_size=5))
def test_no_list_of_names_writes_outside_the_folder(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        archive = pack(root / "m.mar", [(name, b"" if name.endswith("/") else b"x") for name in names])
        into = root / "box" / "out"
        into.parent.mkdir()
        try:
            extract(archive, into)
        except InvalidModel:
            assert not into.exists()
        else:
            files = {member for member, data in tree(into).items() if data is not None}
            assert files == {name for name in names if not name.endswith("/")}
        assert {path.name for path in root.iterdir()} == {"m.mar", "box"}
        assert {path.name for path in into.parent.iterdir()} <= {"out"}


INTACT = [("a.txt", b"some text " * 20), ("s/b", b"\x00\x01\x02" * 10), ("MAR-INF/MANIFEST.json", b"{}")]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_archive_is_refused_or_harmless(data: st.DataObject) -> None:
    """Whatever one flipped byte or a cut does, the answer is `InvalidModel` or files inside the folder."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        archive = pack(root / "m.mar", INTACT)
        content = bytearray(archive.read_bytes())
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        archive.write_bytes(content[: data.draw(st.integers(1, len(content)) | st.just(len(content)))])
        try:
            extract(archive, root / "out")
        except InvalidModel:
            assert not (root / "out").exists()
        assert {path.name for path in root.iterdir()} <= {"m.mar", "out"}

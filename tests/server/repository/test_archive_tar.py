"""Unpacking and reading gzipped tars, honest and hostile."""

import gzip
import io
import struct
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.archive import contents_of, extract
from ringserve.server.repository.archive_plan import ArchiveLimits
from ringserve.server.repository.archive_tar import HEADER_BYTES_MAX
from ringserve.server.repository.settling import why_not_whole

Entry = tuple[str | tarfile.TarInfo, bytes]
MANIFEST = ("m/MAR-INF/MANIFEST.json", b"{}")


def entry(name: str, kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def tar_bytes(members: Sequence[Entry], tar_format: int = tarfile.PAX_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tar_format) as bundle:
        for member, data in members:
            info = entry(member) if isinstance(member, str) else member
            if info.isreg():
                info.size = len(data)
            bundle.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def pack(path: Path, members: Sequence[Entry], tar_format: int = tarfile.PAX_FORMAT) -> Path:
    path.write_bytes(gzip.compress(tar_bytes(members, tar_format), 1))
    return path


def tree(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: contents of files, None for folders."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refused(archive: Path, limits: ArchiveLimits | None = None) -> str:
    """Why, which unpacking and reading in place agree about."""
    into = archive.with_name("out")
    with pytest.raises(InvalidModel) as caught:
        extract(archive, into, limits or ArchiveLimits())
    assert not into.exists()
    with pytest.raises(InvalidModel, match=r".") as read:
        contents_of(archive, limits or ArchiveLimits())
    assert str(read.value) == str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["m.tar.gz", "m.tgz", "m.TGZ", "m.model", "m"])
@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_what_lies_below_the_one_folder_is_the_model(tmp_path: Path, name: str, tar_format: int) -> None:
    members: list[Entry] = [
        (entry("m", tarfile.DIRTYPE), b""),
        MANIFEST,
        ("m/a.txt", b"a" * 3_000_000),
        ("m/m/b", b"b"),
        (entry("m/e", tarfile.DIRTYPE), b""),
        (f"m/{'d' * 60}/{'l' * 90}", b""),
    ]
    extract(pack(tmp_path / name, members, tar_format), tmp_path / "out")
    assert tree(tmp_path / "out") == {
        "MAR-INF": None,
        "MAR-INF/MANIFEST.json": b"{}",
        "a.txt": b"a" * 3_000_000,
        "m": None,
        "m/b": b"b",
        "e": None,
        "d" * 60: None,
        f"{'d' * 60}/{'l' * 90}": b"",
    }
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "out").rglob("*") if path.is_file()} == {0o600}


@pytest.mark.parametrize(
    ("names", "files"),
    [
        (["./m/MAR-INF/MANIFEST.json", "./m/a"], {"MAR-INF/MANIFEST.json", "a"}),
        (["./MAR-INF/MANIFEST.json", "./a", "./s/b"], {"MAR-INF/MANIFEST.json", "a", "s/b"}),
        (["MAR-INF/MANIFEST.json", "s/b"], {"MAR-INF/MANIFEST.json", "s/b"}),
        (["m/MAR-INF/MANIFEST.json", "beside"], {"MAR-INF/MANIFEST.json", "beside"}),
        (["model.pth", "code/inference.py"], {"model.pth", "inference.py"}),
        (["m/m", "m/n/m"], {"m", "n/m"}),
        (["a", "b"], {"a", "b"}),
    ],
)
def test_the_one_folder_is_found_however_it_was_packed(tmp_path: Path, names: list[str], files: set[str]) -> None:
    archive = pack(tmp_path / "m.tar.gz", [(entry(".", tarfile.DIRTYPE), b""), *((name, b"x") for name in names)])
    extract(archive, tmp_path / "out")
    assert {path for path, data in tree(tmp_path / "out").items() if data is not None} == files
    assert {path for path, member in contents_of(archive).members.items() if not member.is_folder} == files


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([("m/a", b""), ("n/b", b"")], "everything under one folder, or MAR-INF at the root"),
        ([("m/a", b""), ("a", b"")], "member 'a': expected every name once"),
        ([("m/A", b""), ("a", b"")], "member 'a': expected every name once"),
        ([("m/a", b""), ("m/a", b"")], "every name once"),
        ([("m/a", b""), ("M/b", b"")], "one spelling of 'm'"),
        ([("m/a", b""), ("m/a/b", b"")], "a name to be a file or a folder"),
        ([("/etc/passwd", b"")], "an absolute path"),
        ([("m/../../x", b"")], "a '..' component"),
        ([("./../x", b"")], "a '..' component"),
        ([("m/a\\b", b"")], "a backslash"),
        ([("m/a\nb", b"")], "a control character"),
        ([("m/\udcff", b"")], "a name in UTF-8"),
        ([(entry("m/l", tarfile.SYMTYPE, linkname="/etc/passwd"), b"")], "a symbolic link"),
        ([(entry("m/l", tarfile.LNKTYPE, linkname="m/a"), b"")], "a hard link"),
        ([(entry("m/l", tarfile.CHRTYPE), b"")], "a character device"),
        ([(entry("m/l", tarfile.BLKTYPE), b"")], "a block device"),
        ([(entry("m/l", tarfile.FIFOTYPE), b"")], "a named pipe"),
        ([(entry("m/l", b"D"), b"")], "an entry of type b'D'"),
        ([(entry("m/s", pax_headers={"GNU.sparse.size": "9" * 12, "GNU.sparse.map": "0,1"}), b"x")], "a sparse file"),
    ],
)
def test_what_may_not_be_written_is_refused_and_undone(tmp_path: Path, members: list[Entry], reason: str) -> None:
    # A link on the way to a file has been refused before anything goes through it.
    message = refused(pack(tmp_path / "m.tar.gz", [MANIFEST, *members] if "one folder" in reason else members))
    assert reason in message
    if "one folder" not in reason:
        assert reason in refused(pack(tmp_path / "m.tar.gz", [("m/first", b"written"), *members]))


@pytest.mark.parametrize(
    ("limits", "members", "reason"),
    [
        (ArchiveLimits(members_max=2), [("m/a", b""), ("m/b", b""), ("m/c", b"")], "at most 2 members, got more"),
        (ArchiveLimits(unpacked_bytes_max=5_000), [("m/a", b"12" * 3_000)], "at most 5000 bytes unpacked"),
        (ArchiveLimits(ratio_floor_bytes=5_000, ratio_max=3), [("m/a", bytes(90_000))], "at most 3 times its"),
        (ArchiveLimits(depth_max=2), [("m/s/a", b"")], "at most 2 nested names, got 3"),
    ],
)
def test_limits_hold(tmp_path: Path, limits: ArchiveLimits, members: list[Entry], reason: str) -> None:
    assert reason in refused(pack(tmp_path / "m.tar.gz", members), limits)


def test_a_gzip_bomb_is_refused_before_it_has_unfolded(tmp_path: Path) -> None:
    """Zeros behind the end of the tar are not members, and are read for the checksum only."""
    archive = tmp_path / "m.tar.gz"
    archive.write_bytes(gzip.compress(tar_bytes([MANIFEST]) + bytes(100 << 20), 9))
    assert "at most 100 times its" in refused(archive)
    assert why_not_whole(archive) is None


def test_headers_that_are_longer_than_any_name_are_refused(tmp_path: Path) -> None:
    for field, size in (("comment", HEADER_BYTES_MAX), ("path", 400)):
        value = "9" * size if field == "path" else "x" * size
        info = entry("m/a", pax_headers={field: value})
        assert "expected" in refused(pack(tmp_path / "m.tar.gz", [(info, b"")]))


def raw_header(name: bytes, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header with a size that no writer would write: 8 bytes of two's complement, as GNU tar extends the field."""
    block = bytearray(tarfile.TarInfo(name.decode()).tobuf(tarfile.USTAR_FORMAT))
    block[124:136] = b"\xff" * 4 + struct.pack(">q", size) if size < 0 else b"%011o\0" % size
    block[156:157] = kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
@pytest.mark.parametrize("size", [-512, -1, -(2**62), 7 * 2**30])
def test_sizes_that_lie_are_refused(tmp_path: Path, kind: bytes, size: int) -> None:
    archive = tmp_path / "m.tar.gz"
    archive.write_bytes(gzip.compress(raw_header(b"m/a", size, kind) + bytes(1024)))
    refused(archive)


def test_a_chain_of_headers_that_only_announce_another_ends(tmp_path: Path) -> None:
    archive = tmp_path / "m.tar.gz"
    long_name = raw_header(b"m/a", 512, tarfile.GNUTYPE_LONGNAME) + b"x" * 511 + b"\0"
    archive.write_bytes(gzip.compress(long_name * 5_000))
    refused(archive)


def broken_header(data: bytes) -> bytes:
    return data[:1536] + b"\1" * 512 + data[2048:]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda tar: gzip.compress(tar)[:-1], "end-of-stream marker"),
        (lambda tar: gzip.compress(tar)[:40], "end-of-stream marker"),
        (lambda tar: gzip.compress(tar)[:-8] + bytes(8), "CRC check failed"),
        (lambda tar: gzip.compress(tar) + b"more", "Not a gzipped file"),
        (lambda tar: gzip.compress(broken_header(tar)), "a header that is none"),
        (lambda tar: gzip.compress(tar[:700]), "of the declared 600 bytes"),
        (lambda tar: gzip.compress(tar[:300]), "truncated header"),
        (lambda _: gzip.compress(b"no tar at all" * 99), "expected a gzipped tar archive"),
        (lambda _: b"\x1f\x8b no gzip", "expected a gzipped tar archive"),
    ],
)
def test_damage_is_named_and_undone(tmp_path: Path, damage: Callable[[bytes], bytes], reason: str) -> None:
    tar = tar_bytes([("m/first", b"f" * 600), ("m/second", b"s" * 600)])
    (tmp_path / "m.tar.gz").write_bytes(damage(tar))
    assert reason in refused(tmp_path / "m.tar.gz")


def test_what_is_no_gzip_is_refused_with_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "m.tar.gz").write_bytes(tar_bytes([MANIFEST]))
    assert refused(tmp_path / "m.tar.gz") == (
        "Archive m.tar.gz: expected a zip under a name that ends in .mar, or a gzipped tar under another, "
        "got 10240 bytes that start with b'm/MAR-IN'"
    )


def test_contents_are_read_where_they_lie(tmp_path: Path) -> None:
    members: list[Entry] = [MANIFEST, ("m/s/big", b"b" * 3_000_000), ("m/c.yaml", b"batchSize: 3")]
    contents = contents_of(pack(tmp_path / "m.tar.gz", members))
    assert contents.read("c.yaml", 100) == b"batchSize: 3"
    assert contents.read("./s/big", 2_500_000) == b"b" * 2_500_000
    assert [contents.has(name) for name in ("s", "s/big", "MAR-INF", ".", "m", "gone")] == [*[True] * 4, False, False]
    assert [contents.has_file(name) for name in ("s", "s/big", "./c.yaml")] == [False, True, True]
    with pytest.raises(FileNotFoundError):
        contents.read("gone", 1)
    with pytest.raises(FileNotFoundError):
        contents.read("s", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["m.tar.gz"]


def test_a_gzip_is_whole_when_its_end_is_there(tmp_path: Path) -> None:
    whole = pack(tmp_path / "m.tar.gz", [MANIFEST, ("m/a", bytes(range(256)) * 64)]).read_bytes()
    assert why_not_whole(tmp_path / "m.tar.gz") is None
    for size in (*range(2, len(whole), 37), len(whole) - 1):
        (tmp_path / f"cut{size}.tgz").write_bytes(whole[:size])
        reason = why_not_whole(tmp_path / f"cut{size}.tgz")
        assert reason is not None
        assert reason.startswith(f"expected a whole archive, got {size} bytes without the end of one"), reason
    (tmp_path / "m.tar.gz").write_bytes(whole[:-8] + bytes(8))
    assert "that are damaged (CRC check failed" in str(why_not_whole(tmp_path / "m.tar.gz"))


PARTS = st.sampled_from(["..", ".", "", "a", "A", "b", "m", "/", "\\", "C:", "out", "MAR-INF", "é"])
NAMES = st.lists(PARTS, min_size=1, max_size=5).map("/".join)
TYPES = st.sampled_from([tarfile.REGTYPE] * 4 + [tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, b"L", b"K", b"S"])


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(NAMES, TYPES, NAMES), max_size=5))
def test_no_list_of_members_writes_outside_the_folder(listed: list[tuple[str, bytes, str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        members: list[Entry] = [(entry(member, kind, linkname=link), b"x") for member, kind, link in listed]
        archive = pack(root / "m.tar.gz", members)
        into = root / "box" / "out"
        into.parent.mkdir()
        try:
            extract(archive, into)
        except InvalidModel:
            assert not into.exists()
        else:
            files = {member for member, data in tree(into).items() if data is not None}
            assert files == {path for path, each in contents_of(archive).members.items() if not each.is_folder}
            assert not any(path.is_symlink() for path in into.rglob("*"))
        assert {path.name for path in root.iterdir()} == {"m.tar.gz", "box"}
        assert {path.name for path in into.parent.iterdir()} <= {"out"}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_damaged_archive_is_refused_or_harmless(data: st.DataObject) -> None:
    """Whatever flipped bytes of the tar or of the gzip, or a cut, do: the answer is `InvalidModel` or files inside the folder."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        tar = bytearray(tar_bytes([MANIFEST, ("m/a.txt", b"some text " * 20), (f"m/{'n' * 120}", b"b" * 30)]))
        for _ in range(data.draw(st.integers(0, 3))):
            tar[data.draw(st.integers(0, 4000))] = data.draw(st.integers(0, 255))
        content = bytearray(gzip.compress(tar, 1))
        for _ in range(data.draw(st.integers(0, 1))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        archive = root / "m.tar.gz"
        archive.write_bytes(content[: data.draw(st.integers(1, len(content)) | st.just(len(content)))])
        try:
            extract(archive, root / "out")
        except InvalidModel:
            assert not (root / "out").exists()
        assert {path.name for path in root.iterdir()} <= {"m.tar.gz", "out"}

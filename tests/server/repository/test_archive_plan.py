"""The judgement over an archive's directory, on hand-made entries: no file is involved."""

import stat
from zipfile import ZIP_BZIP2, ZIP_DEFLATED, ZipInfo

import pytest

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.archive_plan import SHOWN_NAME_CHARS_MAX, ArchiveLimits, plan

ARCHIVE_BYTES = 1_000_000


def entries(*names: str) -> list[ZipInfo]:
    """Well-formed empty members, each behind the one before it."""
    infos = [ZipInfo(name) for name in names]
    for index, info in enumerate(infos):
        info.header_offset = index * 100
    return infos


def judge(infos: list[ZipInfo], limits: ArchiveLimits | None = None) -> list[tuple[str, ...]]:
    return [member.parts for member in plan("x.mar", ARCHIVE_BYTES, infos, limits or ArchiveLimits())]


def refused(infos: list[ZipInfo], limits: ArchiveLimits | None = None) -> str:
    with pytest.raises(InvalidModel) as caught:
        judge(infos, limits)
    return str(caught.value)


def test_plain_files_and_folders_are_planned_in_their_order() -> None:
    planned = plan("x.mar", ARCHIVE_BYTES, entries("w.pt", "sub/", "sub/a.py", "ünï.txt"), ArchiveLimits())
    assert [(member.parts, member.is_folder) for member in planned] == [
        (("w.pt",), False),
        (("sub",), True),
        (("sub", "a.py"), False),
        (("ünï.txt",), False),
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/etc/passwd", "an absolute path"),
        ("//server/share", "an absolute path"),
        ("C:/windows", "an absolute path"),
        ("c:x", "an absolute path"),
        ("../x", "a '..' component"),
        ("a/../../x", "a '..' component"),
        ("a/..", "a '..' component"),
        ("..", "a '..' component"),
        ("./x", "a '.' component"),
        ("a//b", "a '' component"),
        ("", "a '' component"),
        ("a\\..\\x", "a backslash"),
        ("a\nb", "a control character"),
        ("a" * 256, "a longer one"),
        ("é" * 128, "a longer one"),
        ("/".join(["a"] * 33), "33"),
        ("a/" * 20 + "b" * 1000, "1040 characters"),
    ],
)
def test_a_name_that_is_not_a_plain_inner_path_is_refused(name: str, reason: str) -> None:
    message = refused(entries("fine.txt", name))
    assert message.endswith(f", got {reason}")
    assert message.startswith("Archive x.mar")


def test_the_longest_allowed_component_and_depth_pass() -> None:
    assert len(judge(entries("a" * 255, "/".join(["b"] * 32)))) == 2


def test_a_name_with_a_nul_is_refused_although_zipfile_cuts_it() -> None:
    info = entries("safe.py\0.txt")
    assert info[0].filename == "safe.py"
    assert "a control character" in refused(info)


def test_a_refusal_shows_only_the_start_of_a_long_name() -> None:
    message = refused(entries("x" * 5000))
    assert "x" * SHOWN_NAME_CHARS_MAX + "…" in message
    assert len(message) < 300


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        (stat.S_IFLNK, "a symbolic link"),
        (stat.S_IFCHR, "a character device"),
        (stat.S_IFBLK, "a block device"),
        (stat.S_IFIFO, "a named pipe"),
        (stat.S_IFSOCK, "a socket"),
        (0o150000, "file type 0o150000"),
    ],
)
def test_links_and_devices_are_refused(mode: int, kind: str) -> None:
    infos = entries("link")
    infos[0].external_attr = (mode | 0o777) << 16
    assert refused(infos) == f"Archive x.mar, member 'link': expected a regular file or a folder, got {kind}"


@pytest.mark.parametrize(("name", "mode"), [("a", stat.S_IFDIR), ("a/", stat.S_IFREG)])
def test_a_kind_that_contradicts_the_name_is_refused(name: str, mode: int) -> None:
    infos = entries(name)
    infos[0].external_attr = mode << 16
    assert "to end in '/'" in refused(infos)


def test_a_folder_with_data_is_refused() -> None:
    infos = entries("a/")
    infos[0].file_size = 5
    assert refused(infos).endswith("expected a folder without data, got 5 bytes")


@pytest.mark.parametrize("flag", [0x1, 0x40, 0x2000])
def test_an_encrypted_member_is_refused(flag: int) -> None:
    infos = entries("a")
    infos[0].flag_bits |= flag
    assert refused(infos).endswith("got an encrypted member")


def test_a_compression_method_besides_stored_and_deflated_is_refused() -> None:
    infos = entries("a", "b")
    infos[0].compress_type = ZIP_DEFLATED
    infos[1].compress_type = ZIP_BZIP2
    assert refused(infos) == "Archive x.mar, member 'b': expected data stored or deflated, got compression method 12"


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("a", "a"), "a second member of the same name"),
        (("a/", "a/"), "a second member of the same name"),
        (("a", "A"), "a second member of the same name"),
        (("stra\u00dfe", "STRASSE"), "a second member of the same name"),
        (("\u00e9", "e\u0301"), "a second member of the same name"),
        (("Sub/a", "sub/b"), "'sub' as well"),
        (("a", "a/b"), "'a' as both"),
        (("a/b", "a"), "'a' as both"),
        (("a/b/", "a/b"), "a second member of the same name"),
    ],
)
def test_members_that_would_meet_on_some_file_system_are_refused(names: tuple[str, ...], reason: str) -> None:
    assert refused(entries(*names)).endswith(f"got {reason}")


def test_a_folder_listed_after_its_files_is_no_collision() -> None:
    assert judge(entries("a/b", "a/")) == [("a", "b"), ("a",)]


def test_member_count_is_limited() -> None:
    limits = ArchiveLimits(members_max=2)
    assert len(judge(entries("a", "b"), limits)) == 2
    assert refused(entries("a", "b", "c"), limits) == "Archive x.mar: expected at most 2 members, got 3"


def test_unpacked_size_is_limited_over_all_members() -> None:
    infos = entries("a", "b")
    infos[0].file_size = infos[1].file_size = 50
    assert len(judge(infos, ArchiveLimits(unpacked_bytes_max=100))) == 2
    assert refused(infos, ArchiveLimits(unpacked_bytes_max=99)).endswith("expected at most 99 bytes unpacked, got 100")


def test_ratio_is_judged_only_above_its_floor() -> None:
    infos = entries("zeros")
    infos[0].file_size = 3 * ARCHIVE_BYTES
    assert judge(infos, ArchiveLimits(ratio_max=2, ratio_floor_bytes=3 * ARCHIVE_BYTES))
    assert judge(infos, ArchiveLimits(ratio_max=3, ratio_floor_bytes=0))
    message = refused(infos, ArchiveLimits(ratio_max=2, ratio_floor_bytes=0))
    assert "at most 2 times its 1000000 bytes" in message
    assert message.endswith("got 3000000 bytes")


def test_members_that_share_bytes_are_refused() -> None:
    infos = entries("a", "b")
    infos[0].compress_size = 70
    assert len(judge(infos)) == 2
    infos[0].compress_size = 71
    assert refused(infos).startswith("Archive x.mar, member 'b': expected data of its own between bytes 101")


@pytest.mark.parametrize(("offset", "size"), [(-1, 0), (ARCHIVE_BYTES, 0), (0, ARCHIVE_BYTES), (2**63, 1)])
def test_data_outside_the_archive_is_refused(offset: int, size: int) -> None:
    infos = entries("a")
    infos[0].header_offset, infos[0].compress_size = offset, size
    assert "data of its own" in refused(infos)

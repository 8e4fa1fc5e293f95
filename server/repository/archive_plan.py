"""What may be unpacked from an archive, decided from what it lists alone: pure, nothing is read or written here.

An archive comes from anyone who may register a model, so every member is taken as hostile: its name may point outside
the folder, its kind may be a link or a device, its sizes may lie. The limits are ours; the formats have none. A zip lists its
members in one place, a tar one by one as it is read: the same `Judge` looks at both.
"""

import re
import stat
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipInfo

from ringserve.protocol.errors import InvalidModel

LOCAL_HEADER_BYTES = 30  # the fixed part in front of every member's data (APPNOTE.TXT 4.3.7)
# Bits of a member's general purpose flags (APPNOTE.TXT 4.4.4): encrypted, strongly encrypted, masked local header.
ENCRYPTION_FLAGS = 0x0001 | 0x0040 | 0x2000
SHOWN_NAME_CHARS_MAX = 120
DRIVE = re.compile(r"[A-Za-z]:")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """How much one archive may hold. Deflate reaches 1,032:1 on zeros, real weights stay below 10:1.

    Below `ratio_floor_bytes` of unpacked data the ratio is not judged: small, regular text compresses well.
    """

    members_max: int = 10_000
    directory_bytes_max: int = 4 << 20
    unpacked_bytes_max: int = 64 << 30
    ratio_max: int = 100
    ratio_floor_bytes: int = 64 << 20
    name_bytes_max: int = 1024
    component_bytes_max: int = 255
    depth_max: int = 32


@dataclass(frozen=True, slots=True)
class Listed:
    """One member as its archive lists it. A folder's name ends in "/". `kind` is the file type of a Unix mode, 0 where the archive
    says none; `stored_name` is what refusals show."""

    name: str
    kind: int
    size_bytes: int
    stored_name: str


@dataclass(frozen=True, slots=True)
class Member:
    """One file or folder that may be written. `parts` are the names from the archive's root down."""

    parts: tuple[str, ...]
    is_folder: bool
    size_bytes: int
    stored_name: str


def refusal(archive: str, member: str, expected: str, got: str) -> InvalidModel:
    """The error for one archive; `member` is empty when the archive as a whole is at fault."""
    shown = member if len(member) <= SHOWN_NAME_CHARS_MAX else f"{member[:SHOWN_NAME_CHARS_MAX]}…"
    where = f"Archive {archive}, member {shown!r}" if member else f"Archive {archive}"
    return InvalidModel(f"{where}: expected {expected}, got {got}")


def plan(archive: str, archive_bytes: int, infos: Sequence[ZipInfo], limits: ArchiveLimits) -> list[Member]:
    """The members of a zip, in its order. Raises `InvalidModel` for the first one that may not be written."""
    if len(infos) > limits.members_max:
        raise refusal(archive, "", f"at most {limits.members_max} members", f"{len(infos)}")
    judge = Judge(archive, archive_bytes, limits)
    members = []
    for info in infos:
        # `orig_filename` is the name as stored; `filename` is cut at a NUL, so the two can disagree about what is meant.
        if CONTROL.search(info.orig_filename):
            raise refusal(archive, info.orig_filename, "a printable name", "a control character")
        kind = stat.S_IFMT(info.external_attr >> 16)  # the upper half is a Unix mode, or zero
        members.append(judge.admit(Listed(info.filename, kind, info.file_size, info.orig_filename)))
        _check_readable(archive, info)
    judge.check_sizes()
    _check_overlap(archive, archive_bytes, infos)
    return members


@dataclass(slots=True)
class Judge:
    """Looks at members one by one and remembers every path, to see when two of them meet.

    `seen` maps a path as a case-blind, normalising file system compares it to its spelling and whether it is a folder:
    an archive must mean the same on every machine.
    """

    archive: str
    archive_bytes: int
    limits: ArchiveLimits
    unpacked_bytes: int = 0
    seen: dict[tuple[str, ...], tuple[tuple[str, ...], bool]] = field(default_factory=dict)
    listed: set[tuple[str, ...]] = field(default_factory=set)

    def admit(self, listed: Listed) -> Member:
        """The member to write. Raises `InvalidModel`; sizes are judged by `check_sizes`, for one or for all."""
        if len(self.listed) >= self.limits.members_max:
            raise refusal(self.archive, "", f"at most {self.limits.members_max} members", "more")
        parts = self._checked_parts(listed)
        is_folder = self._checked_kind(listed)
        self._claim(listed, parts, is_folder)
        self.unpacked_bytes += listed.size_bytes
        return Member(parts, is_folder, listed.size_bytes, listed.stored_name)

    def check_sizes(self) -> None:
        """The declared sizes so far; the writer holds every member to its declared size, so the sum holds for the real bytes."""
        check_sizes(self.archive, self.archive_bytes, self.unpacked_bytes, self.limits)

    def _refusal(self, listed: Listed, expected: str, got: str) -> InvalidModel:
        return refusal(self.archive, listed.stored_name, expected, got)

    def _checked_parts(self, listed: Listed) -> tuple[str, ...]:
        name = listed.name
        if CONTROL.search(name):
            raise self._refusal(listed, "a printable name", "a control character")
        if SURROGATE.search(name):
            raise refusal(self.archive, ascii(listed.stored_name), "a name in UTF-8", "other bytes")
        if len(name.encode()) > self.limits.name_bytes_max:
            raise self._refusal(
                listed, f"a name of at most {self.limits.name_bytes_max} bytes", f"{len(name)} characters"
            )
        if "\\" in name:
            raise self._refusal(listed, "'/' between folders", "a backslash")
        if name.startswith("/") or DRIVE.match(name):
            raise self._refusal(listed, "a path relative to the model's folder", "an absolute path")
        parts = tuple(name.removesuffix("/").split("/"))
        if len(parts) > self.limits.depth_max:
            raise self._refusal(listed, f"at most {self.limits.depth_max} nested names", f"{len(parts)}")
        for part in parts:
            if part in ("", ".", ".."):
                raise self._refusal(listed, "a plain path inside the model's folder", f"a {part!r} component")
            if len(part.encode()) > self.limits.component_bytes_max:
                raise self._refusal(
                    listed, f"components of at most {self.limits.component_bytes_max} bytes", "a longer one"
                )
        return parts

    def _checked_kind(self, listed: Listed) -> bool:
        """Whether the member is a folder."""
        kind = listed.kind
        is_folder = listed.name.endswith("/")
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise self._refusal(listed, "a regular file or a folder", KIND_NAMES.get(kind, f"file type {kind:#o}"))
        if kind and (kind == stat.S_IFDIR) != is_folder:
            raise self._refusal(listed, "a folder's name, and only that, to end in '/'", KIND_NAMES[kind])
        if is_folder and listed.size_bytes:
            raise self._refusal(listed, "a folder without data", f"{listed.size_bytes} bytes")
        if listed.size_bytes < 0:
            raise self._refusal(listed, "a size of 0 bytes or more", f"{listed.size_bytes}")
        return is_folder

    def _claim(self, listed: Listed, parts: tuple[str, ...], is_folder: bool) -> None:
        key = tuple(_collation(part) for part in parts)
        if key in self.listed:
            raise self._refusal(listed, "every name once", "a second member of the same name")
        self.listed.add(key)
        for depth in range(1, len(parts) + 1):
            claim = (parts[:depth], is_folder or depth < len(parts))
            spelling, folder = self.seen.setdefault(key[:depth], claim)
            if spelling != claim[0]:
                raise self._refusal(
                    listed, f"one spelling of {'/'.join(spelling)!r}", f"{'/'.join(claim[0])!r} as well"
                )
            if folder != claim[1]:
                raise self._refusal(listed, "a name to be a file or a folder", f"{'/'.join(spelling)!r} as both")


def top_folder(archive: str, members: Sequence[Member], never: str) -> str | None:
    """The folder that everything in a tar lies under, which is not part of the model; None where there is none. A folder called
    `never` at the root shows that the model itself is the root. Raises `InvalidModel` for several folders, and where what lies in
    the one would meet what lies beside it."""
    folders = {member.parts[0]: member for member in members if member.is_folder or len(member.parts) > 1}
    if never in folders or not folders:
        return None
    top, *more = folders
    if more:
        expected = f"everything under one folder, or {never} at the root"
        raise refusal(archive, "", expected, f"the folders {top!r} and {more[0]!r}")
    judge = Judge(archive, 0, ArchiveLimits(members_max=len(members)))
    for member in members:
        parts = lifted(member, top)
        if parts:
            judge.admit(Listed("/".join(parts) + "/" * member.is_folder, 0, member.size_bytes, member.stored_name))
    return top


def lifted(member: Member, top: str | None) -> tuple[str, ...]:
    """The path without the folder that everything lies under: () for that folder itself."""
    inside = top is not None and member.parts[0] == top and (member.is_folder or len(member.parts) > 1)
    return member.parts[1:] if inside else member.parts


KIND_NAMES = {
    stat.S_IFREG: "a regular file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
}


def _collation(part: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", part).casefold())


def check_sizes(archive: str, archive_bytes: int, unpacked_bytes: int, limits: ArchiveLimits) -> None:
    """Raises `InvalidModel` for more than the disk is to hold, or a machine to be kept busy with."""
    if unpacked_bytes > limits.unpacked_bytes_max:
        expected = f"at most {limits.unpacked_bytes_max} bytes unpacked"
        raise refusal(archive, "", expected, f"{unpacked_bytes}")
    if unpacked_bytes > max(limits.ratio_floor_bytes, limits.ratio_max * archive_bytes):
        expected = (
            f"at most {limits.ratio_max} times its {archive_bytes} bytes unpacked (the zip-store format has ratio 1)"
        )
        raise refusal(archive, "", expected, f"{unpacked_bytes} bytes")


def _check_readable(archive: str, info: ZipInfo) -> None:
    if info.flag_bits & ENCRYPTION_FLAGS:
        raise refusal(archive, info.orig_filename, "readable data", "an encrypted member")
    if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
        raise refusal(
            archive, info.orig_filename, "data stored or deflated", f"compression method {info.compress_type}"
        )


def _check_overlap(archive: str, archive_bytes: int, infos: Iterable[ZipInfo]) -> None:
    """Members that share bytes make a small file unpack to anything: each must lie behind the one before it."""
    free_at = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        end = info.header_offset + LOCAL_HEADER_BYTES + info.compress_size
        if info.header_offset < free_at or end > archive_bytes:
            got = f"bytes {info.header_offset} to {end}"
            raise refusal(
                archive, info.orig_filename, f"data of its own between bytes {free_at} and {archive_bytes}", got
            )
        free_at = end

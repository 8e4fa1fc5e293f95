"""What the kernel's control groups leave to this process: processors and memory.

A limit may stand at the process' own group or at any group above it, and the smallest counts. Version 2 has one tree for
everything, version 1 a tree for each controller, and a machine may have both. A container sees its own group as the root of
the mount, with or without a namespace: `/proc/self/mountinfo` says which group lies where.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path("/")
_ESCAPED = re.compile(r"\\([0-7]{3})")


class _Mount(NamedTuple):
    point: Path
    group: Path  # the group that the mount shows as its root
    options: frozenset[str]


def cpu_quota(root: Path = ROOT) -> float | None:
    """How many processors' worth of time this process may use, None when nothing limits it."""
    quotas = [_v2_quota(folder / "cpu.max") for folder in _folders_v2(root)]
    quotas += [_v1_quota(folder) for folder in _folders_v1("cpu", root)]
    return min((quota for quota in quotas if quota is not None), default=None)


def memory_limit_bytes(root: Path = ROOT) -> int | None:
    """None when nothing limits it. Version 1 says so with a number larger than any machine."""
    files = [folder / "memory.max" for folder in _folders_v2(root)]
    files += [folder / "memory.limit_in_bytes" for folder in _folders_v1("memory", root)]
    limits = [_number(file) for file in files]
    return min((limit for limit in limits if limit is not None), default=None)


def _v2_quota(path: Path) -> float | None:
    """`max 100000` or `150000 100000`: time, and the period it may be used in."""
    words = _text(path).split()
    return _ratio(words[0], words[1]) if len(words) == 2 else None


def _v1_quota(folder: Path) -> float | None:
    return _ratio(_text(folder / "cpu.cfs_quota_us").strip(), _text(folder / "cpu.cfs_period_us").strip())


def _ratio(quota: str, period: str) -> float | None:
    """None for `max`, for -1 (version 1's word for it) and for what is no pair of numbers."""
    if not (quota.isdecimal() and period.isdecimal()) or int(period) == 0:
        return None
    return int(quota) / int(period)


def _number(path: Path) -> int | None:
    text = _text(path).strip()
    return int(text) if text.isdecimal() else None


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""


def _folders_v2(root: Path) -> Iterator[Path]:
    for line in _text(root / "proc/self/cgroup").splitlines():
        if line.startswith("0::"):
            for mount in _mounts("cgroup2", root):
                yield from _up(mount, Path(line[3:]))


def _folders_v1(controller: str, root: Path) -> Iterator[Path]:
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        if controller in controllers.split(","):
            for mount in _mounts("cgroup", root):
                if controller in mount.options:
                    yield from _up(mount, Path(group))


def _up(mount: _Mount, group: Path) -> Iterator[Path]:
    """The folder of `group` and those above it, as far as the mount shows them. A group that lies elsewhere, as seen from
    inside another namespace, is taken for the mount's root: it is the one that was mounted for this container."""
    try:
        below = group.relative_to(mount.group)
    except ValueError:
        below = Path()
    if ".." in below.parts:
        below = Path()
    folder = mount.point / below
    yield folder
    while folder != mount.point:
        folder = folder.parent
        yield folder


def _mounts(kind: str, root: Path) -> Iterator[_Mount]:
    """`36 35 98:0 /group /point options more - kind source options`"""
    for line in _text(root / "proc/self/mountinfo").splitlines():
        before, _, after = line.partition(" - ")
        fields, rest = before.split(), after.split()
        if len(fields) >= 5 and len(rest) >= 3 and rest[0] == kind:
            point = root / _unescaped(fields[4]).lstrip("/")
            yield _Mount(point, Path(_unescaped(fields[3])), frozenset(rest[2].split(",")))


def _unescaped(field: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), field)

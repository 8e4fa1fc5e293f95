"""A strict reader of Prometheus text 0.0.4: what it takes, any reader takes; what is wrong, it says."""

import re
from typing import NamedTuple

_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"'
_SAMPLE = re.compile(
    rf"({_NAME})(?:\{{((?:{_LABEL}(?:,{_LABEL})*,?)?)\}})? (\+Inf|-Inf|NaN|-?[0-9.]+(?:e[+-]?[0-9]+)?)"
)
_COMMENT = re.compile(rf"# (HELP|TYPE) ({_NAME}) (.*)")
_PAIR = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"')
_ESCAPES = {r"\\": "\\", r"\"": '"', r"\n": "\n"}
_SUFFIXES = {"histogram": ("_bucket", "_sum", "_count")}


class Read(NamedTuple):
    """Of one family: its kind, its help, and its samples by name and labels."""

    kind: str
    help: str
    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]


def read(text: str) -> dict[str, Read]:
    """The families by name. Raises `AssertionError` for what is no such text."""
    assert text == "" or text.endswith("\n"), "the last line ends"
    families: dict[str, Read] = {}
    name = said = ""
    for line in text.splitlines():
        comment = _COMMENT.fullmatch(line)
        if comment is not None and comment[1] == "HELP":
            name, said = comment[2], comment[3]
            assert name not in families, f"{name} comes twice"
        elif comment is not None:
            assert comment[2] == name, f"TYPE of {comment[2]} after HELP of {name}"
            assert comment[3] in ("counter", "gauge", "histogram"), line
            families[name] = Read(comment[3], said, {})
        else:
            sample = _SAMPLE.fullmatch(line)
            assert sample is not None, line
            kind, _, samples = families[name]
            assert sample[1] in {name + suffix for suffix in _SUFFIXES.get(kind, ("",))}, line
            pairs = [(label, _unescaped(value)) for label, value in _PAIR.findall(sample[2] or "")]
            key = sample[1], frozenset(pairs)
            assert len(dict(pairs)) == len(pairs), line
            assert key not in samples, f"{line} comes twice"
            samples[key] = float(sample[3])
    for each in families.values():
        if each.kind == "histogram":
            _check_histogram(each)
    return families


def value(families: dict[str, Read], name: str, /, **labels: str) -> float:
    """Of the one sample that has these labels, whatever others it has; the family's name may have a suffix."""
    found = values(families, name, **labels)
    assert len(found) == 1, (name, labels, found)
    return found[0]


def values(families: dict[str, Read], name: str, /, **labels: str) -> list[float]:
    wanted = set(labels.items())
    return [
        each
        for family in families.values()
        for (sample, pairs), each in family.samples.items()
        if sample == name and wanted <= pairs
    ]


def _unescaped(text: str) -> str:
    return re.sub(r"\\.", lambda match: _ESCAPES[match[0]], text)


def _check_histogram(family: Read) -> None:
    """Buckets only grow, the last one is +Inf and is the count."""
    buckets: dict[frozenset[tuple[str, str]], list[tuple[float, float]]] = {}
    counts: dict[frozenset[tuple[str, str]], float] = {}
    for (name, pairs), number in family.samples.items():
        rest = frozenset(pair for pair in pairs if pair[0] != "le")
        if name.endswith("_bucket"):
            buckets.setdefault(rest, []).append((float(dict(pairs)["le"]), number))
        elif name.endswith("_count"):
            counts[rest] = number
    assert buckets.keys() == counts.keys()
    for labels, found in buckets.items():
        numbers = [number for _, number in sorted(found)]
        assert numbers == sorted(numbers)
        assert max(found)[0] == float("inf")
        assert numbers[-1] == counts[labels]

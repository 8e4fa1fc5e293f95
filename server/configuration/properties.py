"""Java's properties files, read and written: the format of config.properties and of snapshots."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

_ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)
_LINE_END = re.compile(r"\r\n|\r|\n")
_BLANKS = " \t\f"
# A key ends at the first blank, = or : that no backslash escapes; one = or : may stand among the blanks that follow.
# It never goes back, so that a torn file of one long line takes no more memory than it has.
_KEY_AND_VALUE = re.compile(r"((?:[^\\=: \t\f]++|\\.)*+)[ \t\f]*+[=:]?[ \t\f]*+(.*)", re.DOTALL)
_KNOWN_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "f": "\f"}
_WRITTEN_ESCAPES = {"\n": "\\n", "\t": "\\t", "\r": "\\r", "\f": "\\f"} | {each: "\\" + each for each in "\\=:#!"}


@dataclass(frozen=True, slots=True)
class Property:
    key: str
    value: str
    line: int


def parse_properties(text: str) -> list[Property]:
    """A Java properties file: comments, continued lines, escapes. Any text is one."""
    found: list[Property] = []
    pending: list[str] = []  # of a logical line that is not complete yet
    continues = False
    started = 0
    for number, raw in enumerate(_LINE_END.split(text), 1):
        line = raw.lstrip(_BLANKS)
        if not continues:
            if not line or line[0] in "#!":
                continue
            started = number
        continues = (len(line) - len(line.rstrip("\\"))) % 2 == 1
        pending.append(line[:-1] if continues else line)
        if not continues:
            found.append(_property("".join(pending), started))
            pending.clear()
    if any(pending):
        found.append(_property("".join(pending), started))
    return found


def write_properties(pairs: Iterable[tuple[str, str]], comments: Iterable[str] = ()) -> str:
    """What `java.util.Properties.store` writes: pure ASCII, one pair a line, in the order given, after the comments."""
    lines = ["#" + _ascii(line) for comment in comments for line in _LINE_END.split(comment)]
    lines += [f"{_escaped(key, is_key=True)}={_escaped(value, is_key=False)}" for key, value in pairs]
    return "".join(line + "\n" for line in lines)


def _property(text: str, line: int) -> Property:
    match = _KEY_AND_VALUE.fullmatch(text)
    assert match is not None, "the pattern takes any text"
    return Property(_unescaped(match[1]), _unescaped(match[2]), line)


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text

    def plain(match: re.Match[str]) -> str:
        code = match[1]
        return chr(int(code[1:], 16)) if len(code) == 5 else _KNOWN_ESCAPES.get(code, code)

    # Java's characters are UTF-16: what lies beyond comes as two escapes. Half of one is no character.
    return _ESCAPE.sub(plain, text).encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _escaped(text: str, *, is_key: bool) -> str:
    # Blanks end a key wherever they stand; those in front of a value would be skipped if the first were not escaped.
    blanks = len(text) if is_key else 1
    head, tail = text[:blanks], text[blanks:]
    return _ascii("".join(map(_written, head)).replace(" ", "\\ ") + "".join(map(_written, tail)))


def _written(character: str) -> str:
    return _WRITTEN_ESCAPES.get(character, character)


def _ascii(text: str) -> str:
    return "".join(each if " " <= each <= "~" else _code_units(each) for each in text)


def _code_units(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02X}{units[at + 1]:02X}" for at in range(0, len(units), 2))

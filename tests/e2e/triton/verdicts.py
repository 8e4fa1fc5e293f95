"""Whether an answer is the one that was recorded.

What is compared is what clients of the protocol rely on: the status (gRPC: the code), the JSON up to further keys, the bytes of
tensors, the head fields of the protocol, and the sentence of an error. Two things are expected to differ, and count as the same: what
a client got wrong is 400 here and often 500 there (contract 1.4), and the health routes have a body here (contract 1.2).
"""

import math
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

# What differs from run to run, and is compared by its type.
VOLATILE = frozenset(("ns", "last_inference", "trace_file"))


# Sentences that go on in the words of a JSON parser or of the model.
BEFORE_OTHERS = (
    "failed to parse the request json buffer: ",
    "failed to process the request(s) for model 'failing_0', message: valueerror: a model that raises",
    "load failed for model 'broken': version 1 is at unavailable state: ",
)


class Verdict(Enum):
    SAME = "same"
    WORDS = "the same refusal in other words"
    OTHER = "other"
    DIED = "Triton died"


def judged(recorded: Mapping[str, Any], got: Mapping[str, Any]) -> tuple[Verdict, str]:
    """The verdict on one step, and what differs."""
    if "died" in recorded:
        return Verdict.DIED, "" if _answered(got) else f"got {got}"
    if "lost" in got:
        return Verdict.OTHER, f"the connection was lost: {got['lost']}"
    word = "status" if "status" in recorded else "code"
    if not _same_status(recorded[word], got.get(word)):
        return (
            Verdict.OTHER,
            f"expected {recorded[word]}, got {got.get(word)}: {_sentence(recorded)!r} | {_sentence(got)!r}",
        )
    if _sentence(recorded) is not None:
        same = _alike(_settled_sentence(recorded), _settled_sentence(got))
        return (Verdict.SAME, "") if same else (Verdict.WORDS, f"{_sentence(recorded)!r} | {_sentence(got)!r}")
    expected = {key: each for key, each in recorded.items() if key != word}
    if expected.get("text") == "":  # no body, so nothing is said about one
        expected = {}
    found = list(_differences(expected, got))
    return (Verdict.OTHER, "; ".join(found[:4])) if found else (Verdict.SAME, "")


def _answered(got: Mapping[str, Any]) -> bool:
    return "lost" not in got and got.get("status", 200) < 500 and got.get("code") != "INTERNAL"


def _same_status(expected: object, got: object) -> bool:
    return expected == got or (expected, got) in ((500, 400), ("INTERNAL", "INVALID_ARGUMENT"))


def _sentence(said: Mapping[str, Any]) -> str | None:
    """Of an error; None for any other answer."""
    if "code" in said:
        return None if said["code"] == "OK" else str(said["details"])
    if said.get("status", 0) < 400:
        return None
    body = said.get("json")
    if isinstance(body, dict) and "error" in body:
        return str(body["error"])
    return str(said.get("events", said.get("text", "")))


def _alike(theirs: str, ours: str) -> bool:
    """Ours may say more after theirs; and what follows the words of the server is a parser's, or the model's."""
    if theirs and ours.startswith(theirs):
        return True
    return any(theirs.startswith(words) and ours.startswith(words) for words in BEFORE_OTHERS)


def _settled_sentence(said: Mapping[str, Any]) -> str:
    sentence = _sentence(said) or ""
    return " ".join(sentence.replace('"', "'").lower().rstrip(".").split())


def _differences(expected: Any, got: Any, where: str = "") -> Iterator[str]:
    """Further keys of an object are no difference, nor is a body where none was."""
    if isinstance(expected, Mapping) and isinstance(got, Mapping):
        for name, each in expected.items():
            if name in VOLATILE:
                if type(each) is not type(got.get(name)):
                    yield f"{where}.{name}: expected {type(each).__name__}, got {got.get(name)!r:.100}"
            elif name not in got:
                yield f"{where}.{name}: missing"
            else:
                yield from _differences(each, got[name], f"{where}.{name}")
    elif isinstance(expected, list) and isinstance(got, list):
        if len(expected) != len(got):
            yield f"{where}: expected {len(expected)}, got {len(got)} entries: {expected!r:.300} | {got!r:.300}"
        else:
            for index, (left, right) in enumerate(zip(expected, got, strict=True)):
                yield from _differences(left, right, f"{where}[{index}]")
    elif not _equal(expected, got):
        yield f"{where}: expected {expected!r:.200}, got {got!r:.200}"


def _equal(expected: Any, got: Any) -> bool:
    """Of floats, as many digits as theirs have."""
    if isinstance(expected, float) and isinstance(got, int | float) and not isinstance(got, bool):
        return (math.isnan(expected) and math.isnan(got)) or math.isclose(expected, got, rel_tol=1e-6)
    return type(expected) is type(got) and bool(expected == got)

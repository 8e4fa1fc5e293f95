"""What differs between what TorchServe said and what our server says, and why it may.

A step is the same when status, phrase, headers and body are. Of what may differ, `accepted` says why, step by step; two things
differ in nearly every answer and are judged by rule.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tests.e2e.inference.accepted import LISTED
from tests.e2e.inference.talk import Step

SAME = "the same"
TYPED = "defect 14: predictions have no content type and no phrase there"
STREAMED = "defect 10: a header of the workers leaks there"
WORDED = "the same error, whose sentence goes on: it names what was counted, or what became of the worker"


class Recorded:
    """A recording, and how the conversation compares with it."""

    def __init__(self, lines: Iterable[Sequence[Any]]) -> None:
        self._steps: dict[str, dict[str, Any]] = {}
        for chapter, label, seen in lines:
            self._steps.setdefault(chapter, {})[label] = seen
        self.steps = sum(map(len, self._steps.values()))

    def compare(self, chapter: str, steps: Iterator[Step]) -> list[str]:
        """What differs and is not listed, or is listed and does not differ, a line each. Every step of the recording must be
        held."""
        wanted, found = dict(self._steps[chapter]), []
        for label, seen in steps:
            got, expected = json.loads(json.dumps(seen)), wanted.pop(label)
            why = reason(chapter, label, expected, got)
            if f"{chapter}: {label}" in LISTED and why in (SAME, *ALIKE):
                found.append(f"{chapter}: {label}\n  is listed, and is {why}")
            if not why:
                found.append(f"{chapter}: {label}\n  there: {json.dumps(expected)}\n  here:  {json.dumps(got)}")
        assert wanted == {}, f"every step of the recording is repeated: {sorted(wanted)}"
        return found


def reason(chapter: str, label: str, expected: Any, got: Any) -> str:
    """Why the two may differ, "" when nobody said so."""
    if expected == got:
        return SAME
    rows = list(zip(expected.get("rows", [expected]), got.get("rows", [got]), strict=True))
    for why, alike in ALIKE.items():
        if all(there == here or alike(there, here) == here for there, here in rows):
            return why
    why, statuses = LISTED.get(f"{chapter}: {label}", ("", []))
    return why if statuses == [here["status"] for _, here in rows] else ""


def typed(expected: dict[str, Any], got: dict[str, Any]) -> dict[str, Any]:
    """`expected` with the phrase and the content type of `got`, where it has none of its own."""
    if "headers" not in expected:
        return expected
    said = {name: value for name, value in got.get("headers", {}).items() if name == "content-type"}
    phrase = expected["phrase"] or got.get("phrase")
    return {**expected, "phrase": phrase, "headers": {**said, **expected["headers"]}}


def streamed(expected: dict[str, Any], got: dict[str, Any]) -> dict[str, Any]:
    """`expected` as typed, without the header of TorchServe's workers."""
    alike = typed(expected, got)
    headers = {name: value for name, value in alike.get("headers", {}).items() if name != "ts_stream_next"}
    return {**alike, "headers": headers} if "headers" in alike else alike


def worded(expected: dict[str, Any], got: dict[str, Any]) -> dict[str, Any]:
    """`expected` with the sentence of `got`, where that begins with its own."""
    there, here = _object(expected), _object(got)
    if "message" in there and str(here.get("message")).startswith(there["message"]):
        return {
            **expected,
            "body": json.dumps({**there, "message": here["message"]}, indent=2, ensure_ascii=False) + "\n",
        }
    return expected


def _object(seen: dict[str, Any]) -> dict[str, Any]:
    """The JSON object that the body is, or {}."""
    try:
        found = json.loads(seen.get("body", ""))
    except (TypeError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


ALIKE: dict[str, Callable[[Any, Any], Any]] = {TYPED: typed, STREAMED: streamed, WORDED: worded}

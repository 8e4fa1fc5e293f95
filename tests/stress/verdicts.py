"""Whether what came back is honest. Pure.

An answer is judged by itself as far as that goes. Where only a death excuses it (a connection cut, a worker lost), it becomes a
suspect, and is judged against the times of the kills when the run is over.
"""

import json
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum

import msgspec

from tests.stress.plans import ORDINARY, WORKER_LOST, Body, Kind, Plan

# How long after a kill its victims may still hear of it, and by how much clocks read in different places may disagree.
ECHO_S = 5.0
SLACK_S = 0.5
VIOLATIONS_KEPT = 40
# Rows that failed for another row's fault in the model that raises: the server gives up on finding the culprit after so many
# calls, which only batches with several culprits reach.
INNOCENT_SHARE_MAX = 0.02
RIGHT_SHARE_MIN = 0.7


class Word(StrEnum):
    RIGHT = "right"
    REFUSED = "refused"  # an honest no: queue full, deadline over, a request at fault
    SUSPECT = "suspect"
    WRONG = "wrong"
    LEFT = "left"  # the client went, nothing was owed to it


class Suspect(msgspec.Struct, frozen=True):
    """Something that only a kill excuses: of a front end, or where `worker` is set, of a worker."""

    what: str
    since_s: float
    until_s: float
    worker: bool
    front_end: bool


class Tally(msgspec.Struct):
    """What one client process counted. `counts[kind][word or status]`."""

    counts: dict[str, dict[str, int]] = {}
    suspects: list[Suspect] = []
    violations: list[str] = []
    violation_count: int = 0
    hangs: list[tuple[float, float]] = []
    innocent: int = 0

    def count(self, kind: Kind, word: str, number: int = 1) -> None:
        by_word = self.counts.setdefault(kind.value, {})
        by_word[word] = by_word.get(word, 0) + number

    def violate(self, text: str) -> None:
        self.violation_count += 1
        if len(self.violations) < VIOLATIONS_KEPT:
            self.violations.append(text)

    @property
    def requests(self) -> int:
        return sum(by_word.get("sent", 0) for by_word in self.counts.values())


def merge(tallies: Sequence[Tally]) -> Tally:
    """All processes together."""
    whole = Tally()
    for tally in tallies:
        for kind, by_word in tally.counts.items():
            whole.counts[kind] = dict(Counter(whole.counts.get(kind, {})) + Counter(by_word))
        whole.suspects += tally.suspects
        whole.hangs += tally.hangs
        whole.innocent += tally.innocent
        whole.violation_count += tally.violation_count
        whole.violations += tally.violations
    return whole


def judge(plan: Plan, status: int, body: bytes) -> tuple[Word, str]:
    """One complete answer. The text says what is wrong with it."""
    if status == 200 and 200 in plan.allowed:
        if is_answer(plan, body):
            return Word.RIGHT, ""
        return Word.WRONG, f"{label(plan)} was answered {shown(body)} instead of {shown(b''.join(plan.answer))}"
    if status in plan.allowed:
        return (
            (Word.REFUSED, "")
            if is_error_body(body, status)
            else (Word.WRONG, f"{label(plan)}: {status} with {shown(body)}")
        )
    if status in WORKER_LOST:
        return Word.SUSPECT, f"{label(plan)} was answered {status} {message(body)}"
    return Word.WRONG, f"{label(plan)} was answered {status} {shown(body)}, expected one of {sorted(plan.allowed)}"


def is_answer(plan: Plan, body: bytes) -> bool:
    """Whether a body is the plan's own answer, to the byte or, of a typed model, to the number."""
    if plan.kind is Kind.TYPED:
        try:
            return bool(json.loads(body) == json.loads(bytes(plan.answer[0])))
        except ValueError:
            return False
    at = 0
    for piece in plan.answer:
        if memoryview(body)[at : at + len(piece)] != piece:
            return False
        at += len(piece)
    return at == len(body)


def is_beginning(plan: Plan, body: bytes) -> bool:
    """Whether an answer that was cut off is the plan's own as far as it goes."""
    return b"".join(plan.answer).startswith(body)


def is_error_body(body: bytes, status: int) -> bool:
    """TorchServe's shape, with the status in it."""
    try:
        error = json.loads(body)
    except ValueError:
        return False
    return isinstance(error, dict) and error.keys() == {"code", "type", "message"} and error["code"] == status


def message(body: bytes) -> str:
    """The sentence of an error."""
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return shown(body)


def is_innocent(plan: Plan, status: int, body: bytes) -> bool:
    """Whether a request failed that did not ask its model to fail."""
    return plan.kind in ORDINARY and status == 503 and b"Prediction failed" in body


def label(plan: Plan) -> str:
    """A request as a violation names it."""
    said = {"pipelined": plan.pipelined, "half-closed": plan.half_closes, "read slowly": plan.reads_slowly}
    manner = [plan.delivery.value, *(word for word, holds in said.items() if holds)]
    if plan.deadline_ms is not None:
        manner.append(f"deadline {plan.deadline_ms} ms")
    return f"{plan.kind.value} {plan.number} ({len(plan.body)} bytes, {', '.join(manner)})"


def shown(body: Body) -> str:
    return repr(bytes(body[:120])) + (f" and {len(body) - 120} bytes more" if len(body) > 120 else "")


def unexcused(suspects: Sequence[Suspect], worker_s: Sequence[float], front_end_s: Sequence[float]) -> list[str]:
    """The suspects that no kill excuses."""

    def had_kill(suspect: Suspect, times_s: Sequence[float]) -> bool:
        since_s = max(suspect.since_s - SLACK_S, suspect.until_s - ECHO_S)
        return any(since_s <= time_s <= suspect.until_s + SLACK_S for time_s in times_s)

    return [
        f"{suspect.what}, and nothing had been killed"
        for suspect in suspects
        if not (suspect.worker and had_kill(suspect, worker_s))
        and not (suspect.front_end and had_kill(suspect, front_end_s))
    ]


def shortcomings(tally: Tally) -> list[str]:
    """What is wrong with the whole although each request was answered honestly: a server that refuses everything is no server."""
    found = []
    for kind in ORDINARY:
        counts = tally.counts.get(kind.value, {})
        answered = counts.get(Word.RIGHT, 0) + counts.get(Word.REFUSED, 0)
        if answered >= 50 and counts.get(Word.RIGHT, 0) < RIGHT_SHARE_MIN * answered:
            found.append(
                f"only {counts.get(Word.RIGHT, 0)} of {answered} answered {kind.value} requests got their answer"
            )
    asked = sum(tally.counts.get(Kind.FAULTY.value, {}).get(word, 0) for word in (Word.RIGHT, Word.REFUSED))
    if tally.innocent > INNOCENT_SHARE_MAX * asked + 1:
        found.append(f"{tally.innocent} of {asked} requests failed for another one's fault")
    return found


def rss_growth(samples_bytes: Sequence[int]) -> float:
    """From the first tenth to the end of a run: the median of the last quarter to that of the quarter after the start."""
    settled = sorted_quarters(samples_bytes[len(samples_bytes) // 10 :])
    return settled[1] / settled[0] - 1 if settled[0] else 0.0


def sorted_quarters(samples: Sequence[int]) -> tuple[float, float]:
    """Medians of the first and of the last quarter; of nothing, zeros."""
    quarter = max(1, len(samples) // 4)
    first, last = sorted(samples[:quarter]), sorted(samples[-quarter:])
    return (first[len(first) // 2], last[len(last) // 2]) if samples else (0.0, 0.0)

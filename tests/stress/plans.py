"""What one client does next, drawn at random, and what it may then be answered. Pure: the same seed draws the same plans."""

import hashlib
import json
import math
from dataclasses import dataclass, field
from enum import Enum
from random import Random

MEBIBYTE = 1 << 20
BODY_BYTES_MAX = 8 * MEBIBYTE
REQUEST_BYTES_MAX = 10_000_000  # max_request_size of the server
TYPED_WIDTH = 64
WHOLE_PATH_BYTES_MAX = 256 << 10  # larger bodies are watched for an early answer while they are sent
RESPONSE_TIMEOUT_S = 5
HANG_MS = 8000

Body = bytes | memoryview


class Kind(Enum):
    """Which model is asked, and for what. Ordinary kinds can be answered 200, the others are at fault."""

    HASH = "hash"
    TYPED = "typed"
    STREAM = "stream"
    FAULTY = "faulty"
    RAISE = "raise"
    SLEEPY = "sleepy"
    HANG = "hang"
    UNKNOWN = "unknown"
    OVERSIZED = "oversized"
    BAD_DEADLINE = "bad deadline"
    SHORT = "short"


# How often each kind is drawn; HANG is drawn among the sleepy ones.
WEIGHTS = {
    Kind.HASH: 60,
    Kind.TYPED: 15,
    Kind.STREAM: 8,
    Kind.FAULTY: 5,
    Kind.RAISE: 1,
    Kind.SLEEPY: 8,
    Kind.UNKNOWN: 0.5,
    Kind.OVERSIZED: 0.1,
    Kind.BAD_DEADLINE: 0.5,
    Kind.SHORT: 0.5,
}
HANG_SHARE = 1 / 1500
MODELS = {
    Kind.HASH: "hash",
    Kind.TYPED: "typed",
    Kind.STREAM: "stream",
    Kind.FAULTY: "faulty",
    Kind.RAISE: "faulty",
    Kind.SLEEPY: "sleepy",
    Kind.HANG: "sleepy",
    Kind.UNKNOWN: "nobody",
    Kind.OVERSIZED: "hash",
    Kind.BAD_DEADLINE: "hash",
    Kind.SHORT: "typed",
}
# What each kind may be answered without anything else having happened. 503: the queue is full, or no worker is there now.
ALLOWED = {
    Kind.HASH: {200, 503},
    Kind.TYPED: {200, 503},
    Kind.STREAM: {200, 503},
    Kind.FAULTY: {200, 503},
    Kind.RAISE: {503},
    Kind.SLEEPY: {200, 503},
    Kind.HANG: {500, 503},
    Kind.UNKNOWN: {404},
    Kind.OVERSIZED: {413, 503},
    Kind.BAD_DEADLINE: {400, 503},
    Kind.SHORT: {400, 503},
}
ORDINARY = {Kind.HASH, Kind.TYPED, Kind.STREAM, Kind.FAULTY, Kind.SLEEPY}
# What a dying worker answers the batch it was executing.
WORKER_LOST = {500, 507}

assert WEIGHTS.keys() | {Kind.HANG} == MODELS.keys() == ALLOWED.keys() == set(Kind)


class Delivery(Enum):
    """How the request is sent."""

    WHOLE = "whole"
    SPLIT = "split"
    CHUNKED = "chunked"
    SLOW = "slow"
    EXPECT = "expect"


class Moment(Enum):
    """When the client leaves, if it does."""

    IN_HEAD = "in head"
    BEFORE_BODY = "before body"
    IN_BODY = "in body"
    AFTER_BODY = "after body"
    IN_ANSWER = "in answer"


@dataclass(frozen=True, slots=True)
class Plan:
    """One request. `answer` is what a 200 must carry; that of a typed model is compared as numbers."""

    kind: Kind
    number: str
    body: Body
    answer: tuple[Body, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    delivery: Delivery = Delivery.WHOLE
    leaves: Moment | None = None
    resets: bool = False  # leaves by RST, otherwise by FIN
    half_closes: bool = False
    reads_slowly: bool = False
    fresh: bool = False
    deadline_ms: int | None = None
    pipelined: bool = False

    @property
    def path(self) -> str:
        return f"/predictions/{MODELS[self.kind]}"

    @property
    def simple(self) -> bool:
        """Whether it is sent by one write and read without a pause, as nearly all are."""
        plain = self.delivery is Delivery.WHOLE and self.leaves is None
        return plain and not self.reads_slowly and not self.half_closes and len(self.body) <= WHOLE_PATH_BYTES_MAX

    @property
    def allowed(self) -> set[int]:
        return ALLOWED[self.kind] | ({504} if self.deadline_ms is not None else set())

    def head(self) -> bytes:
        """Request line and headers."""
        framing = (
            "transfer-encoding: chunked" if self.delivery is Delivery.CHUNKED else f"content-length: {len(self.body)}"
        )
        lines = [f"POST {self.path} HTTP/1.1", "host: stress", "content-type: application/octet-stream", framing]
        if self.delivery is Delivery.EXPECT:
            lines.append("expect: 100-continue")
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        return ("\r\n".join(lines) + "\r\n\r\n").encode()


class Planner:
    """Draws the plans of one client. `blob` is what bodies are cut from; no two clients share a name."""

    def __init__(self, name: str, seed: int, kinds: set[Kind] | None = None) -> None:
        self._chance = Random(f"{seed} {name}")
        self._name = name
        self._count = 0
        self._blob = memoryview(self._chance.randbytes(BODY_BYTES_MAX + 4 * MEBIBYTE))
        self._weights = {kind: weight for kind, weight in WEIGHTS.items() if kinds is None or kind in kinds}
        self._hangs = kinds is None or Kind.HANG in kinds

    def next(self) -> list[Plan]:
        """One plan, or several that are sent at once on one connection."""
        chance = self._chance
        if Kind.HASH in self._weights and chance.random() < 0.01:
            return [self._hash(chance.randrange(512), pipelined=True) for _ in range(chance.randint(2, 4))]
        (kind,) = chance.choices(list(self._weights), list(self._weights.values()))
        if kind is Kind.SLEEPY and self._hangs and chance.random() < HANG_SHARE:
            kind = Kind.HANG
        return [self._draw(kind)]

    def _draw(self, kind: Kind) -> Plan:
        if kind is Kind.TYPED:
            return self._typed()
        if kind is Kind.STREAM:
            return self._stream()
        if kind in (Kind.HASH, Kind.FAULTY, Kind.SLEEPY):
            return self._hash(self._size(small=kind is not Kind.HASH), kind)
        return self._at_fault(kind)

    def _next_number(self) -> str:
        self._count += 1
        return f"{self._name}-{self._count}"

    def _size(self, *, small: bool = False) -> int:
        """Mostly small, sometimes nothing, rarely megabytes: equal shares of every order of magnitude within a class."""
        drawn = self._chance.random()
        if drawn < 0.02:
            return 0
        low, high = (
            (1, 4096) if drawn < 0.92 else (4096, 256 << 10) if drawn < 0.994 or small else (1 << 18, BODY_BYTES_MAX)
        )
        return int(math.exp(self._chance.uniform(math.log(low), math.log(high))))

    def _cut(self, size: int) -> memoryview:
        at = self._chance.randrange(len(self._blob) - size + 1)
        return self._blob[at : at + size]

    def _hash(self, size: int, kind: Kind = Kind.HASH, *, pipelined: bool = False) -> Plan:
        number, body, chance = self._next_number(), self._cut(size), self._chance
        headers, answer = {"x-stress-number": number}, (f"{number} {hashlib.sha256(body).hexdigest()}".encode(),)
        if kind is Kind.SLEEPY:
            headers["x-stress-sleep-ms"] = str(chance.choice((0, 1, 5, 20)))
        if pipelined:
            return Plan(kind, number, body, answer, headers, pipelined=True)
        if chance.random() < 0.25:
            headers["x-stress-echo"] = "yes"
            return self._mannered(Plan(kind, number, body, (*answer, b" ", body), headers))
        return self._mannered(Plan(kind, number, body, answer, headers))

    def _typed(self) -> Plan:
        number = self._next_number()
        values = [self._chance.getrandbits(40) for _ in range(TYPED_WIDTH)]
        body = b"".join(value.to_bytes(8, "little") for value in values)
        answer = json.dumps([values[0], sum(values)]).encode()
        return self._mannered(Plan(Kind.TYPED, number, body, (answer,), {"x-stress-number": number}))

    def _stream(self) -> Plan:
        number, body, chance = self._next_number(), self._cut(self._size(small=True)), self._chance
        parts, padding = chance.choice((0, 1, 2, 5, 20)), chance.choice((0, 0, 0, 0, 1000, 40_000))
        digest = hashlib.sha256(body).hexdigest()
        answer = "".join(f"{number} {part} {digest}{'.' * padding}\n" for part in range(parts)) + f"{number} end\n"
        headers = {"x-stress-number": number, "x-stress-parts": str(parts), "x-stress-padding": str(padding)}
        return self._mannered(Plan(Kind.STREAM, number, body, (answer.encode(),), headers))

    def _at_fault(self, kind: Kind) -> Plan:
        """A request that must be refused, or fails; it is sent in the plainest way."""
        number, chance = self._next_number(), self._chance
        headers, body = {"x-stress-number": number}, bytes(self._cut(chance.randrange(2048)))
        if kind is Kind.RAISE:
            body = b"raise " + body
        elif kind is Kind.HANG:
            headers["x-stress-sleep-ms"] = str(HANG_MS)
        elif kind is Kind.OVERSIZED:
            body = bytes(REQUEST_BYTES_MAX + chance.randint(1, MEBIBYTE))
        elif kind is Kind.BAD_DEADLINE:
            headers["x-request-timeout-ms"] = chance.choice(("soon", "-1", "0", "1.5"))
        elif kind is Kind.SHORT:
            body = body[: TYPED_WIDTH * 8 - 1]
        return Plan(kind, number, body, headers=headers)

    def _mannered(self, plan: Plan) -> Plan:
        """The same request, sent and read in some manner: two in three plainly, so that there is a load at all."""
        chance, drawn = self._chance, self._chance.random()
        changed: dict[str, object] = {"fresh": chance.random() < 0.03}
        if drawn < 0.10:
            changed["delivery"] = Delivery.CHUNKED
        elif drawn < 0.15:
            changed["delivery"] = Delivery.SPLIT
        elif drawn < 0.155:
            changed["delivery"] = Delivery.SLOW
        elif drawn < 0.17:
            changed["delivery"] = Delivery.EXPECT
        elif drawn < 0.22:
            changed |= {"leaves": chance.choice(list(Moment)), "resets": chance.random() < 0.5}
        elif drawn < 0.23:
            changed["half_closes"] = True
        elif drawn < 0.235:
            changed |= {"reads_slowly": True, "fresh": True}
        if chance.random() < 0.1:
            changed["deadline_ms"] = deadline_ms = int(math.exp(chance.uniform(math.log(1), math.log(1000))))
            changed["headers"] = {**plan.headers, "x-request-timeout-ms": str(deadline_ms)}
        return _with(plan, changed)


def _with(plan: Plan, changed: dict[str, object]) -> Plan:
    fields = {name: getattr(plan, name) for name in Plan.__slots__}
    return Plan(**{**fields, **changed})

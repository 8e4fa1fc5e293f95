"""What an envelope makes of requests and answers (contract 6): a server for each of TorchServe's."""

import json
from collections.abc import Iterator
from typing import Any

from tests.e2e.inference.talk import Ask, Peer, Step

JSON = {"content-type": "application/json"}
PREDICT, EXPLAIN = "POST /v1/models/inside:predict", "POST /v1/models/inside:explain"
INFER, EXPLAIN_V2 = "POST /v2/models/inside/infer", "POST /v2/models/inside/explain"
PLAIN = "POST /predictions/inside"


def asked(line: str, body: Any, note: str = "", kind: str = "application/json", answer: str = "") -> Ask:
    """`answer` is what the handler computes."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    said = f"{note or content.decode('utf-8', 'replace')}{f' answered with {answer}' if answer else ''}"
    return Ask(line, content, {"content-type": kind, **({"with": answer} if answer else {})}, said)


def form(name: str, value: Any) -> Ask:
    body = f"{name}={json.dumps(value)}".encode()
    return asked(PLAIN, body, f"a form with {name} {value}", "application/x-www-form-urlencoded")


INSTANCES: tuple[Any, ...] = (
    {"instances": [1, 2, 3]},
    {"instances": [[1, 2], [3, 4]]},
    {"instances": [{"data": "x"}, {"data": "y", "target": 0}]},
    {"instances": ["a"]},
    {"instances": [{"b64": "AAE="}]},
    {"instances": [{"data": {"b64": "aGVsbG8="}, "n": 1}]},
    {"instances": [None, True, 1.5]},
)
UNFIT: tuple[Any, ...] = ({"instances": []}, {"other": [1]}, b"{broken")


def json_envelope(peer: Peer) -> Iterator[Step]:
    for line in (PLAIN, PREDICT):
        yield from peer.say(*(asked(line, body) for body in INSTANCES))
    yield from peer.say(*(asked(PLAIN, body) for body in UNFIT))
    yield from peer.say(form("data", {"instances": [1]}))
    yield from peer.say(asked(PLAIN, {"instances": [1, 2]}, "as bytes", "application/octet-stream"))
    for answer in ("[7]", "['a', {'b': 1.5}]", "[1, 2, 3]", "None", "[float('nan'), 1]", "1 / 0"):
        yield from peer.say(asked(PLAIN, {"instances": [1, 2]}, answer=answer))
    yield from peer.say(asked(EXPLAIN, {"instances": [1]}), asked("POST /explanations/inside", {"instances": [1]}))
    yield from peer.manage(Ask("GET /v1/models/inside"))


def body_envelope(peer: Peer) -> Iterator[Step]:
    yield from peer.say(*(asked(PLAIN, body) for body in (*INSTANCES[:2], *UNFIT)))
    yield from peer.say(form("data", 1), form("body", 2), form("other", 3))
    yield from peer.say(asked(PLAIN, b"text", kind="text/plain"), asked(PLAIN, b"\x00\xff", "bytes", "image/png"))
    for answer in ("['a']", "[{'a': [1]}]", "[1, 2]", "None", "1 / 0"):
        yield from peer.say(asked(PLAIN, [1], answer=answer))


def kserve(peer: Peer) -> Iterator[Step]:
    for line in (PREDICT, EXPLAIN):
        yield from peer.say(*(asked(line, body) for body in INSTANCES))
    yield from peer.say(asked(PLAIN, INSTANCES[0]), asked("POST /explanations/inside", INSTANCES[0]))
    yield from peer.say(*(asked(PREDICT, body) for body in UNFIT))
    yield from peer.say(form("data", {"instances": [1]}), form("body", {"instances": [1]}))
    for kind in ("text/plain", "application/octet-stream", "application/json; charset=utf-8"):
        yield from peer.say(asked(PREDICT, {"instances": [1, 2]}, kind=kind, note=f"as {kind}"))
    for answer in ("[7]", "[[1.5, 2.5]]", "[{'a': 1}, 'b']", "'text'", "None", "[object()]", "1 / 0"):
        yield from peer.say(asked(PREDICT, {"instances": [1, 2]}, answer=answer))
    yield from peer.manage(Ask("GET /v1/models/inside"), Ask("GET /v1/models/none"))


def tensor(name: str, datatype: str, data: Any, shape: list[int] | None = None) -> dict[str, Any]:
    return {"name": name, "shape": shape or [len(data)], "datatype": datatype, "data": data}


TENSORS: tuple[Any, ...] = (
    {"inputs": [tensor("a", "INT64", [1, 2, 3])]},
    {"id": "mine", "inputs": [tensor("a", "FP32", [1.5, 2.5])]},
    {"inputs": [tensor("a", "FP32", [1, 2, 3, 4], [2, 2])]},
    {"inputs": [tensor("a", "FP64", [[1.5, 2], [3, 4]], [2, 2])]},
    {"inputs": [tensor("a", "BYTES", ["x"])]},
    {"inputs": [tensor("a", "BYTES", ["x", "y"])]},
    {"inputs": [tensor("a", "BOOL", [True, False])]},
    {"inputs": [tensor("a", "UINT8", [1, 2])]},
    {"inputs": [tensor("a", "INT64", [1]), tensor("b", "FP32", [2.5])]},
    {"inputs": [tensor("a", "INT64", [1])], "parameters": {"x": 1}},
)
UNFIT_TENSORS: tuple[Any, ...] = (
    {"inputs": [tensor("a", "FP32", [1, 2, 3], [2, 2])]},
    {"other": []},
    b"{broken",
)
OUTPUTS = (
    "[[1, 2, 3]]",
    "[[1.5, 2.5]]",
    "[['x', 'y']]",
    "[[True, False]]",
    "[[[1, 2], [3, 4]]]",
    "[__import__('numpy').float32([[1, 2]])]",
    "[{'a': 1}]",
    "[[1], [2]]",
    "None",
    "1 / 0",
)


def kservev2(peer: Peer) -> Iterator[Step]:
    yield from peer.say(*(asked(INFER, body) for body in TENSORS))
    yield from peer.say(
        asked(EXPLAIN_V2, TENSORS[0]), asked(PLAIN, TENSORS[1]), asked("POST /explanations/inside", TENSORS[1])
    )
    yield from peer.say(*(asked(INFER, body) for body in UNFIT_TENSORS))
    for kind in ("text/plain", "application/octet-stream"):
        yield from peer.say(asked(INFER, TENSORS[0], f"as {kind}", kind))
    yield from peer.say(*(asked(INFER, TENSORS[1], answer=answer, note="a tensor") for answer in OUTPUTS))

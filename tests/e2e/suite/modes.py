"""Ways to serve a model that its configuration asks for, and the routes of other servers' clients (contract 1.2, 1.6, 6, 11.2, 11.4)."""

import json
from typing import Any

from tests.e2e.suite.cases import Archive, Ask, Case, Judge, Together, Tool, fails, has, says, tells

JSON = "application/json"
PER_MODEL = "there every model of a server has the same envelope, and a module of the archive is none"


def is_json(value: Any) -> Judge:
    """However it is laid out."""
    return lambda answer: bool(json.loads(answer) == value)


def wrapped(what: str, asked: Any, answer: Any, path: str = "", **more: Any) -> Ask:
    return says(what, json.dumps(asked), is_json(answer), content_type=JSON, path=path, **more)


def refused(what: str, asked: Any, *words: str) -> Ask:
    return fails(
        what,
        json.dumps(asked),
        400,
        has(*words),
        content_type=JSON,
        torchserve="what an envelope cannot parse is a failure of the model's",
    )


def enveloped(name: str, envelope: str, *asks: Ask | Together, source: str = "instances.py", rows: int = 1) -> Case:
    config = f"envelope: {envelope}\nbatchSize: {rows}\nmaxBatchDelay: 20000\nbatching: fill\n"
    return Case(Archive(name, source, config=config), asks)


def tensor(*values: int) -> dict[str, Any]:
    return {"name": "x", "shape": [1, len(values)], "datatype": "INT64", "data": list(values)}


V1, V2 = "/v1/models/enveloped-kserve:predict", "/v2/models/enveloped-kservev2/infer"
ENVELOPES = (
    enveloped(
        "enveloped-body", "body", says("the body is all that the handler gets", b"x", "bytearray bytearray(b'x')")
    ),
    enveloped(
        "enveloped-json",
        "json",
        wrapped("instances become predictions", {"instances": [1, 2.5]}, {"predictions": [2, 5.0]}),
        wrapped("bytes are decoded", {"instances": [{"b64": "aGk="}]}, {"predictions": ["bytes b'hi'"]}),
    ),
    enveloped(
        "enveloped-kserve",
        "kserve",
        wrapped("instances become predictions", {"instances": [1, [2, 3]]}, {"predictions": [2, [4, 6]]}),
        wrapped("on KServe's own route", {"instances": [1]}, {"predictions": [2]}, V1),
        wrapped("and explanations", {"instances": [1]}, {"explanations": [2]}, "/v1/models/enveloped-kserve:explain"),
        refused("a body without instances is refused", {"inputs": [1]}, "instances"),
    ),
    enveloped(
        "enveloped-batch",
        "kserve",
        Together(
            "every request of a batch gets its own",
            tuple(
                wrapped(name, {"instances": asked}, {"predictions": answer}, torchserve="of a batch it answers one")
                for name, asked, answer in (("one", [1], [2]), ("two", [3, 4], [6, 8]))
            ),
        ),
        rows=2,
    ),
    enveloped(
        "enveloped-kservev2",
        "kservev2",
        wrapped(
            "inputs become outputs",
            {"id": "mine", "inputs": [tensor(1, 2)]},
            {
                "id": "mine",
                "model_name": "enveloped-kservev2",
                "model_version": "1.0",
                "outputs": [{"name": "x", "datatype": "INT64", "data": [2, 4], "shape": [2]}],
            },
            V2,
        ),
        refused("data that does not fill its shape is refused", {"inputs": [{**tensor(1), "shape": [3]}]}, "shape"),
        source="tensors.py",
    ),
    Case(
        Archive("own-envelope", "own_envelope", config="envelope: questions\n"),
        (wrapped("an envelope of the archive's own", {"question": "why"}, {"answer": 3}, torchserve=PER_MODEL),),
    ),
)

# ---- sequences

START, ID, END = "ts_request_sequence_start", "ts_request_sequence_id", "ts_request_sequence_end"
STATEFUL = """
minWorkers: 1
maxWorkers: 1
batchSize: 4
maxBatchDelay: 1
sequenceBatching: true
sequenceMaxIdleMSec: 60000
maxSequenceJobQueueSize: 4
maxNumSequence: 4
"""


def turn(sequence: str, count: int, **mark: str) -> Ask:
    """One request of a sequence, and how many the handler has counted."""
    return tells(
        f"{sequence} {count}",
        b"",
        {"sequence": sequence, "count": count},
        asked_with={ID: sequence, **mark},
        headers={ID: sequence},
    )


def is_a_new_sequence(answer: bytes) -> bool:
    said = json.loads(answer)
    return (said["sequence"][:7], said["count"]) == ("ts-seq-", 1)


SEQUENCES = Case(
    Archive("dialogue", "dialogue.py", config=STATEFUL, tool=Tool.THEIRS),
    (
        turn("a", 1, **{START: "true"}),
        Together("two at once", (turn("a", 2), turn("b", 1, **{START: "true"}))),
        turn("b", 2),
        turn("a", 3, **{END: "true"}),
        turn("a", 1, **{START: "true"}),
        says("a request without a sequence begins one", b"", is_a_new_sequence),
    ),
)
TICKETS = Case(
    Archive("waits", "waits.py", config="useJobTicket: true\nminWorkers: 1\nmaxWorkers: 1\n", tool=Tool.THEIRS),
    (),
)

# ---- routes


def routed(what: str, path: str, inputs: dict[str, Any], **more: Any) -> Ask:
    seen = {name: ["bytearray", value] for name, value in inputs.items()}
    return says(what, b"x", is_json(seen), path=path, **more)


ROUTES = Case(
    Archive("elsewhere", "inputs.py", tool=Tool.THEIRS),
    (
        routed(
            "SageMaker's, by the query",
            "/invocations?model_name=elsewhere&a=1",
            {"body": "x", "model_name": "elsewhere", "a": "1"},
        ),
        routed("SageMaker's, by the path", "/models/elsewhere/invoke?a=1", {"body": "x", "a": "1"}),
        routed("the oldest one", "/elsewhere/predict?a=1&b=%C3%A9", {"body": "x", "a": "1", "b": "Ã©"}),
        routed("the oldest one, with a version", "/elsewhere/1.0/predict?a=1", {"body": "x", "a": "1"}),
        routed("KServe's first", "/v1/models/elsewhere:predict?a=1", {"body": "x"}),
        routed("KServe's second", "/v2/models/elsewhere/infer", {"body": "x"}),
        routed("KServe's first, to explain", "/v1/models/elsewhere:explain", {"body": "x"}),
        routed("KServe's second, to explain", "/v2/models/elsewhere/explain", {"body": "x"}),
        fails(
            "a model that is not there",
            b"x",
            404,
            "Model not found: nobody",
            path="/predictions/nobody",
            kind="ModelNotFoundException",
        ),
        fails(
            "a version that is not there",
            b"x",
            404,
            "Model version: 3.0 does not exist for model: elsewhere",
            path="/predictions/elsewhere/3.0",
            kind="ModelVersionNotFoundException",
        ),
    ),
)

MODES = (*ENVELOPES, SEQUENCES, TICKETS, ROUTES)

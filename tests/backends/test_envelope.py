"""Handlers in envelopes, as the backend runs them: which one, for which rows, and what becomes of the others."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from ringserve.backends.contract import Batch, BatchControl, Reply, Request
from ringserve.backends.handler_backend import HandlerBackend
from ringserve.protocol.errors import InvalidModel, PredictionFailed, RingServeError

Load = Callable[..., HandlerBackend]
MakeModel = Callable[..., Any]
Ask = Callable[..., list[Any]]
RequestOf = Callable[..., Request]

CALLS = "calls = []\ndef handle(data, context):\n    if data is None:\n        return None\n"
ECHO = CALLS + "    calls.append(data)\n    return [[row, len(calls), len(context.request_ids)] for row in data]\n"
OWN = """
from ts.torch_handler.request_envelope.base import BaseEnvelope

class Helper:
    pass

class Mine(BaseEnvelope):
    def parse_input(self, data):
        return [row["body"] + 1 for row in data]

    def format_output(self, data):
        return [{"mine": answer} for answer in data]
"""
EXPLAINS = """
def handle(data, context):
    if data is None:
        return None
    explain = context.get_request_header(0, "explain") == "True"
    seen = [context.get_request_header(row, "explain") for row in range(len(data))]
    return [["explained" if explain else "predicted", row["body"], seen] for row in data]
"""
STREAMS = """
from ts.handler_utils.utils import send_intermediate_predict_response

def handle(data, context):
    if data is None:
        return None
    send_intermediate_predict_response([f"part of {row}" for row in data], context.request_ids, "", 200, context)
    return data
"""


class Recorded(BatchControl):
    """The parts that were sent, by row."""

    def __init__(self) -> None:
        self.sent: list[list[bytes | None]] = []

    def stream(self, parts: Sequence[Reply | RingServeError | None]) -> bool:
        self.sent.append([bytes(part.body) if isinstance(part, Reply) else None for part in parts])
        return True


def bodies(replies: list[Any]) -> list[Any]:
    return [
        json.loads(bytes(reply.body)) if isinstance(reply, Reply) else (reply.http_status, reply.message)
        for reply in replies
    ]


def instances(*values: Any) -> dict[str, Any]:
    return {"instances": list(values)}


def test_a_handler_sees_the_inputs_and_the_client_the_format_of_the_envelope(
    load_handler_backend: Load, request_of: RequestOf, ask: Ask
) -> None:
    backend = load_handler_backend(ECHO, envelope="kserve")
    replies = ask(backend, [request_of(instances(1, 2)), request_of(instances(3))])
    assert bodies(replies) == [{"predictions": [[1, 1, 2], [2, 1, 2]]}, {"predictions": [[3, 1, 2]]}]


def test_rows_that_do_not_parse_fail_alone_and_the_handler_is_called_once_for_the_others(
    load_handler_backend: Load, request_of: RequestOf, ask: Ask
) -> None:
    backend = load_handler_backend(ECHO, envelope="kserve")
    sent: tuple[Any, ...] = ({}, instances(1), [], instances(2), b"{")
    asked = [request_of(body) for body in sent]
    refusals = bodies(replies := ask(backend, asked))
    assert [status for status, _ in (refusals[0], refusals[2], refusals[4])] == [400] * 3
    assert 'no "instances"' in refusals[0][1]
    assert "no JSON object" in refusals[2][1]
    assert "not JSON" in refusals[4][1]
    assert bodies([replies[1], replies[3]]) == [{"predictions": [[1, 1, 2]]}, {"predictions": [[2, 1, 2]]}]


def test_a_batch_of_which_nothing_parses_does_not_reach_the_handler(
    load_handler_backend: Load, request_of: RequestOf, ask: Ask
) -> None:
    backend = load_handler_backend(ECHO, envelope="kservev2")
    assert [status for status, _ in bodies(ask(backend, [request_of({}), request_of([])]))] == [400, 400]
    asked = {"inputs": [{"name": "a", "shape": [1], "datatype": "INT8", "data": [1]}]}
    (answer,) = bodies(ask(backend, [request_of(asked)]))
    assert answer["outputs"][0]["data"][1:] == [1, 1], "the handler's first call"
    assert (answer["id"], answer["model_name"]) == ("request-1", "m")


def test_instances_that_are_no_list_have_a_call_of_their_own(
    load_handler_backend: Load, request_of: RequestOf, ask: Ask
) -> None:
    backend = load_handler_backend(CALLS + "    calls.append(data)\n    return [data]\n", envelope="kserve")
    sent: list[Any] = [{"instances": {"a": 1}}, instances(5), {}, {"instances": "text"}]
    answers = bodies(ask(backend, [request_of(body) for body in sent]))
    assert answers[:2] == [{"predictions": [{"a": 1}]}, {"predictions": [[5]]}]
    assert (answers[2][0], answers[3]) == (400, {"predictions": ["text"]})


def test_json_answers_are_json(load_handler_backend: Load, request_of: RequestOf, ask: Ask) -> None:
    (reply,) = ask(load_handler_backend(ECHO, envelope="json"), [request_of(instances(5))])
    assert reply == Reply(b'{"predictions": [[5, 1, 1]]}', "application/json")


def test_a_module_of_the_archive_may_be_an_envelope(make_model: MakeModel, request_of: RequestOf, ask: Ask) -> None:
    """Beside the class it may define others."""
    backend = HandlerBackend()
    backend.load(make_model({"handler.py": CALLS + "    return data\n", "own.py": OWN}, envelope="own"))
    assert bodies(ask(backend, [request_of(1), request_of(2)])) == [{"mine": 2}, {"mine": 3}]


def test_a_built_in_envelope_comes_before_a_module_of_its_name(
    make_model: MakeModel, request_of: RequestOf, ask: Ask
) -> None:
    backend = HandlerBackend()
    backend.load(make_model({"handler.py": CALLS + "    return data\n", "body.py": OWN}, envelope="body"))
    assert bodies(ask(backend, [request_of(7)])) == [7]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (None, r'^The envelope "own" is none of body, json, kserve, kservev2 and no module of the archive '),
        ("x = 1\n", r'^The module of the envelope "own" should define one BaseEnvelope, found the classes \[\]\.$'),
        ("class A:\n    pass\n", r"found the classes \['A'\]\.$"),
        (OWN + "class Other(Mine):\n    pass\n", r"found the classes \['Helper', 'Mine', 'Other'\]\.$"),
    ],
)
def test_an_envelope_that_leads_nowhere_is_refused_before_the_model_is_loaded(
    make_model: MakeModel, source: str | None, message: str
) -> None:
    files = {"handler.py": "raise AssertionError('it was imported')\n"}
    with pytest.raises(InvalidModel, match=message):
        HandlerBackend().load(make_model(files if source is None else {**files, "own.py": source}, envelope="own"))


def test_loading_and_describing_go_past_the_envelope(load_handler_backend: Load) -> None:
    source = "seen = []\ndef handle(data, context):\n    seen.append(data)\n    return [{'seen': seen}]\n"
    assert load_handler_backend(source, envelope="kserve").describe() == {"seen": [None, [{}]]}


@pytest.mark.parametrize("envelope", ["", "kserve"])
def test_a_batch_of_predictions_and_explanations_is_run_apart(
    load_handler_backend: Load, request_of: RequestOf, ask: Ask, envelope: str
) -> None:
    """`BaseHandler` does to all rows what the header of the first one says."""
    source = EXPLAINS if not envelope else EXPLAINS.replace('row["body"]', "row").replace("range(len(data))", "[0, -1]")
    backend = load_handler_backend(source, envelope=envelope)
    headers: list[dict[str, str]] = [{}, {"explain": "True"}, {}, {"explain": "True"}, {"explain": "no"}]
    asked = [request_of(instances(row) if envelope else row, header) for row, header in enumerate(headers)]
    answers = bodies(ask(backend, asked))
    words = ["predicted", "explained", "predicted", "explained", "predicted"]
    if envelope:
        keys = ["predictions" if word == "predicted" else "explanations" for word in words]
        assert [[*answer] for answer in answers] == [[key] for key in keys]
        answers = [answer[key][0] for answer, key in zip(answers, keys, strict=True)]
    assert [answer[:2] for answer in answers] == [[word, row] for row, word in enumerate(words)]
    assert answers[1][2] == ["True", "True"]


def test_parts_reach_the_rows_that_were_not_refused_as_the_handler_made_them(
    load_handler_backend: Load, request_of: RequestOf
) -> None:
    """What is sent meanwhile has no envelope; what is returned at the end does."""
    control = Recorded()
    requests = [request_of(body) for body in (instances(1), {}, instances(2))]
    batch = Batch(3, requests=requests, control=control)
    load_handler_backend(STREAMS, envelope="kserve").execute(batch)
    assert control.sent == [[b"part of 1", None, b"part of 2"]]
    answers = bodies(batch.replies)
    assert [answers[0], answers[2]] == [{"predictions": [1]}, {"predictions": [2]}]
    assert answers[1][0] == 400


def test_what_the_handler_raises_still_fails_the_batch(
    load_handler_backend: Load, request_of: RequestOf, ask: Ask
) -> None:
    """So that the worker looks for the row; the ones that do not parse fail again in the part they are in."""
    backend = load_handler_backend(CALLS + "    raise ValueError(data)\n", envelope="kserve")
    with pytest.raises(PredictionFailed, match=r"^Prediction failed$"):
        ask(backend, [request_of(instances(1)), request_of({})])

"""Envelopes through the server: by the server's configuration and by the model's, in batches, and what does not parse; and the
importable surface of `ts` in a worker."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until
from tests.e2e.importable import table, takes_as_much

CLIENT_S_MAX = 30.0
ROWS = 4
# A batch leaves when all of its clients have asked.
BATCHED = f"batchSize: {ROWS}\nmaxBatchDelay: 20000\nbatching: fill\n"
# Answers each input with itself, the number of requests in the batch, and what the first of them wants.
HANDLER = """
def handle(data, context):
    if data is None:
        return None
    rows = len(context.request_ids)
    word = "explain" if context.get_request_header(0, "explain") == "True" else "predict"
    return [[getattr(each, "get", lambda key, default: each)("data", each), rows, word] for each in data]
"""
DATA = """
def handle(data, context):
    return data and [each["data"] for each in data]
"""
STREAMS = """
from ts.handler_utils.utils import send_intermediate_predict_response

def handle(data, context):
    if data is None:
        return None
    send_intermediate_predict_response(["part;"] * len(context.request_ids), context.request_ids, "", 200, context)
    return data
"""
OWN = """
from ts.torch_handler.request_envelope.base import BaseEnvelope

class Own(BaseEnvelope):
    def parse_input(self, data):
        return [row["body"]["own"] for row in data]

    def format_output(self, data):
        return [{"own": answer} for answer in data]
"""


@pytest.fixture(scope="module")
def server(archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("envelopes")
    store = folder / "store"
    (folder / "own.py").write_text(OWN)
    archive(store, "kserve", "h.py", source=HANDLER)
    archive(store, "kserves", "h.py", source=HANDLER, config=BATCHED)
    archive(store, "v2", "h.py", source=DATA, config=f"envelope: kservev2\n{BATCHED}")
    archive(store, "json", "h.py", source=HANDLER, config="envelope: json\n")
    archive(store, "body", "h.py", source=HANDLER, config="envelope: body\n")
    archive(store, "own", "h.py", source=HANDLER, config="envelope: own\n", extra_files=str(folder / "own.py"))
    archive(store, "none", "imports.py", config="envelope: none\n")
    archive(store, "stream", "h.py", source=STREAMS)
    config = {"default_workers_per_model": 1, "service_envelope": "kserve", "enable_model_api": "true"}
    server = ServerProcess(store, config=config, folder=folder / "server")
    with server:
        ping = f"{server.inference_url}/ping"
        wait_until(lambda: httpx.get(ping, trust_env=False).status_code == 200, 60, f"healthy models\n{server.log}")
        yield server
    assert server.remains() == []


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.inference_url, timeout=CLIENT_S_MAX, trust_env=False) as client:
        yield client


def ask_together(client: httpx.Client, paths: list[str], bodies: list[Any]) -> list[httpx.Response]:
    with ThreadPoolExecutor(len(paths)) as pool:
        return list(pool.map(lambda path, body: client.post(path, json=body), paths, bodies))


def a_tensor(name: str, *data: Any, datatype: str = "INT64") -> dict[str, Any]:
    return {"name": name, "shape": [len(data)], "datatype": datatype, "data": list(data)}


def test_the_servers_envelope_is_around_every_model_that_says_nothing(client: httpx.Client) -> None:
    response = client.post("/predictions/kserve", json={"instances": [1, {"data": "b"}]})
    assert response.json() == {"predictions": [[1, 1, "predict"], ["b", 1, "predict"]]}
    assert response.headers["content-type"] == "application/json"


def test_every_client_of_a_batch_gets_its_own_predictions(client: httpx.Client) -> None:
    asked = [[f"{row}.{place}" for place in range(row)] for row in range(ROWS)]
    responses = ask_together(client, ["/predictions/kserves"] * ROWS, [{"instances": each} for each in asked])
    assert [response.json() for response in responses] == [
        {"predictions": [[value, ROWS, "predict"] for value in each]} for each in asked
    ]


def test_explanations_and_predictions_that_wait_together_are_each_what_was_asked_for(client: httpx.Client) -> None:
    """The handler looks at the first request of its batch, as `BaseHandler` does."""
    paths = ["/predictions/kserves", "/explanations/kserves"] * (ROWS // 2)
    responses = ask_together(client, paths, [{"instances": [row]} for row in range(ROWS)])
    for row, response in enumerate(responses):
        key, word = ("explanations", "explain") if row % 2 else ("predictions", "predict")
        assert response.json() == {key: [[row, ROWS // 2, word]]}


def test_what_does_not_parse_fails_alone(client: httpx.Client) -> None:
    bodies: list[Any] = [{"instances": [1]}, {"inputs": []}, {"instances": [2]}, {"instances": None}]
    responses = ask_together(client, ["/predictions/kserves"] * ROWS, bodies)
    assert [response.status_code for response in responses] == [200, 400, 200, 400]
    assert 'The request has no "instances"' in responses[1].json()["message"]
    assert responses[3].json() == responses[1].json()
    assert [response.json() for response in responses[::2]] == [
        {"predictions": [[number, 2, "predict"]]} for number in (1, 2)
    ]


def test_the_second_protocol_names_its_outputs_and_its_faults(client: httpx.Client) -> None:
    bodies = [
        {"id": "mine", "inputs": [a_tensor("a", 1, 2), a_tensor("b", "text", datatype="BYTES")]},
        {"inputs": [a_tensor("c", 3)]},
        {"inputs": [{**a_tensor("d", 1, 2, 3), "shape": [2, 2]}]},
        {"inputs": [a_tensor("e", "x")]},
    ]
    full, plain, misshapen, mistyped = ask_together(client, ["/predictions/v2"] * ROWS, bodies)
    assert full.json() == {
        "id": "mine",
        "model_name": "v2",
        "model_version": "1.0",
        "outputs": [
            {"name": "a", "datatype": "INT64", "data": [1, 2], "shape": [2]},
            {"name": "b", "datatype": "BYTES", "data": ["text"], "shape": [1]},
        ],
    }
    assert plain.json()["outputs"] == [{"name": "c", "datatype": "INT64", "data": [3], "shape": [1]}]
    assert plain.json()["id"] == plain.headers["x-request-id"]
    assert misshapen.status_code == mistyped.status_code == 400
    assert misshapen.json()["message"] == "inputs[0].shape: 3 values do not have the shape [2, 2]."
    assert mistyped.json()["message"] == "inputs[0].data: expected values of INT64, got ['x']."


def test_a_model_chooses_its_own_envelope(client: httpx.Client) -> None:
    wanted = {"instances": [{"b64": "YQ=="}]}
    refused = client.post("/predictions/json", json=wanted)
    assert refused.status_code == 503, "bytes have no JSON form"
    response = client.post("/predictions/json", json={"instances": [1]})
    assert (response.text, response.headers["content-type"]) == (
        '{"predictions": [[1, 1, "predict"]]}',
        "application/json",
    )
    assert client.post("/predictions/body", json=[5]).json() == [[5], 1, "predict"]
    assert client.post("/predictions/own", json={"own": 7}).json() == {"own": [7, 1, "predict"]}


def test_parts_are_sent_as_they_are_and_the_end_in_the_envelope(client: httpx.Client) -> None:
    response = client.post("/predictions/stream", json={"instances": [1]})
    assert response.text == 'part;{\n  "predictions": [\n    1\n  ]\n}'


def test_the_first_protocols_routes_work_with_its_envelope(client: httpx.Client) -> None:
    body = {"instances": [1]}
    assert client.post("/v1/models/kserve:predict", json=body).json() == {"predictions": [[1, 1, "predict"]]}
    assert client.post("/v1/models/kserve:explain", json=body).json() == {"explanations": [[1, 1, "explain"]]}


def test_an_envelope_that_nobody_has_is_named_at_the_registration(
    server: ServerProcess, archive: Callable[..., Path]
) -> None:
    store = server.folder.parent / "store"
    archive(store, "lost", "h.py", source=HANDLER, config="envelope: kserv\n")
    url = f"{server.management_url}/models?url=lost.mar&initial_workers=1&synchronous=true"
    response = httpx.post(url, timeout=CLIENT_S_MAX, trust_env=False)
    assert response.status_code >= 400
    assert 'The envelope "kserv" is none of body, json, kserve, kservev2' in response.json()["message"]


def test_everything_that_handlers_import_is_there_with_torchserves_parameters(client: httpx.Client) -> None:
    wanted = table()
    found = client.post("/predictions/none", json=[*wanted]).json()
    differing = {
        name: (found[name], theirs)
        for name, theirs in wanted.items()
        if (found[name] is not None) != (theirs is not None)
        or (theirs is not None and not takes_as_much(found[name], theirs))
    }
    assert differing == {}
    (said,) = client.post("/predictions/none", json=["ts.launcher:start"]).json().values()
    assert said.startswith("ImportError: ts.launcher starts a server")

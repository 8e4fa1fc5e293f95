"""A long conversation with the management API, written from TorchServe's contract alone: every route, parameter, default, text,
shape and order of fields. One chapter is one test; each leaves the server as it found it, without any model."""

import json
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringserve.server.testing import ServerProcess
from tests.e2e.conversation import (
    IN_BACKGROUND,
    MISSING_M,
    begins,
    described,
    done,
    gone,
    hold,
    listed,
    refuses,
    registered,
    says,
)
from tests.e2e.conversation_registering import BODIES, CONFIGURED, REGISTER, SOURCES

TELLS = """
def handle(data, context):
    if data is None:
        return None
    if context.get_request_header(0, "describe") == "True":
        return [{"labels": ["cat", "dog"], "size": 224}]
    return ["told"] * len(data)
"""
MUMBLES = TELLS.replace('{"labels": ["cat", "dog"], "size": 224}', '"no object"')
SILENT = TELLS.replace('{"labels": ["cat", "dog"], "size": 224}', "None")
FAILS = "def broken(:\n"
RANGED = "minWorkers: 1\nmaxWorkers: 2\nbatchSize: 3\nmaxBatchDelay: 7\nresponseTimeout: 21\nstartupTimeout: 22\n"

NO_ROUTE = "Requested resource is not found, please refer to API document."
NO_METHOD = "Requested method is not allowed, please refer to API document."


def manifest(**model: Any) -> str:
    model = {"modelName": "odd", "modelVersion": "1.0", "handler": "plain.py:handle", **model}
    kept = {name: value for name, value in model.items() if value is not None}
    return json.dumps({"archiverVersion": "0.12", "runtime": "python", "model": kept})


def write_odd(store: Path, name: str, text: str) -> None:
    """An archive whose manifest is this text."""
    with zipfile.ZipFile(store / f"{name}.mar", "w") as file:
        file.writestr("MAR-INF/MANIFEST.json", text)
        file.writestr("plain.py", "def handle(data, context):\n    return data\n")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("conversation")
    store = folder / "store"
    archive(store, "m", "plain.py:handle")
    archive(store, "m", "plain.py:handle", version="2.0", file="m-2")
    archive(store, "m", "plain.py:handle", version="3.0", file="m-3")
    archive(store, "ranged", "plain.py:handle", config=RANGED)
    for name, source in (("tells", TELLS), ("mumbles", MUMBLES), ("silent", SILENT), ("fails", FAILS)):
        archive(store, name, f"{name}.py:handle", source=source)
    write_odd(store, "no-json", "{broken")
    write_odd(store, "no-model", '{"runtime": "python"}')
    write_odd(store, "no-name", manifest(modelName=None))
    write_odd(store, "empty-version", manifest(modelVersion=""))
    write_odd(store, "no-version", manifest(modelVersion=None))
    write_odd(store, "odd-runtime", manifest().replace('"python"', '"PYTHON"'))
    (store / "no-archive.mar").write_bytes(b"this is no archive")
    (store / "unpacked" / "MAR-INF").mkdir(parents=True)
    (store / "unpacked" / "MAR-INF" / "MANIFEST.json").write_text(manifest(modelName="unpacked"))
    (store / "unpacked" / "plain.py").write_text("def handle(data, context):\n    return data\n")
    with ServerProcess(store, models=[], folder=folder / "server") as server:
        yield server
    assert server.wait(1) == 0, server.log
    assert server.remains() == []
    assert "a request failed inside the server" not in server.log


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.management_url, timeout=60, trust_env=False) as client:
        yield client


ROUTES = [
    says(200, "GET /models", {"models": []}),
    says(200, "GET /models/", {"models": []}),
    *(
        refuses(404, line, "ResourceNotFoundException", NO_ROUTE)
        for line in (
            "GET /nowhere",
            "GET /model",
            "GET /token",
            "POST /token?type=management",
            "GET /models/m/1.0/x",
        )
    ),
    *(
        refuses(405, line, "MethodNotAllowedException", NO_METHOD)
        for line in (
            "GET /",
            "POST /",
            "PUT /models",
            "DELETE /models",
            "PATCH /models",
            "OPTIONS /models",
            "POST /models/m",
            "PATCH /models/m",
            "POST /models/m/1.0",
            "POST /models/m/1.0/set-default",
            "POST /v1/models/m",
            "PUT /v1/models/m",
        )
    ),
    says(405, "HEAD /models", None),
    *(
        refuses(404, line, "ModelNotFoundException", "Model not found: m")
        for line in (
            "GET /models/m",
            "GET /models/m/",
            "GET /models/m/1.0",
            "GET /models/m/all",
            "GET /models/m?customized=true",
            "PUT /models/m",
            "PUT /models/m/1.0",
            "PUT /models/m?min_worker=1&synchronous=true",
            "DELETE /models/m",
            "DELETE /models/m/1.0",
            "PUT /models/m/1.0/set-default",
            "OPTIONS /models/m",
            "OPTIONS /models/m/1.0",
            "GET /v1/models/m",
        )
    ),
    refuses(404, "GET /models/a%20b", "ModelNotFoundException", "Model not found: a b"),
    refuses(404, "GET /models/a%2Fb", "ModelNotFoundException", "Model not found: a/b"),
]

# Workers come and go (contract section 2.4).
SCALE = [
    done(200, "POST /models?url=m.mar", registered("m")),
    done(200, "PUT /models/m?synchronous=true", "Workers scaled to 1 for model: m"),
    says(200, "GET /models/m", [described("m", workers=1)]),
    done(200, "PUT /models/m?min_worker=2&synchronous=true", "Workers scaled to 2 for model: m"),
    says(200, "GET /models/m", [described("m", workers=2)]),
    done(200, "PUT /models/m/1.0?min_worker=1&synchronous=true", "Workers scaled to 1 for model: m, version: 1.0"),
    done(
        200,
        "PUT /models/m?min_worker=1&max_worker=3&model_version=1.0&synchronous=true",
        "Workers scaled to 1 for model: m, version: 1.0",
    ),
    says(200, "GET /models/m", [described("m", workers=1, maxWorkers=3)]),
    done(
        200,
        "PUT /models/m?min_worker=many&synchronous=true&timeout=-1&number_gpu=2",
        "Workers scaled to 1 for model: m",
    ),
    says(200, "GET /models/m", [described("m", workers=1)]),
    done(202, "PUT /models/m?min_worker=2", IN_BACKGROUND),
    says(200, "GET /models/m", [described("m", workers=2)], until=True),
    done(202, "PUT /models/m", IN_BACKGROUND),
    says(200, "GET /models/m", [described("m", workers=1)], until=True),
    done(200, "PUT /models/m?min_worker=0&max_worker=5&synchronous=true", "Workers scaled to 0 for model: m"),
    done(200, "PUT /models/m?min_worker=0&synchronous=true", "Workers scaled to 0 for model: m"),
    says(200, "GET /models/m", [described("m")]),
    done(200, "PUT /models/m/?min_worker=0&synchronous=TRUE", "Workers scaled to 0 for model: m"),
    refuses(
        400,
        "PUT /models/m?min_worker=2&max_worker=1",
        "BadRequestException",
        "max_worker cannot be less than min_worker.",
    ),
    refuses(
        400,
        "PUT /models/nobody?min_worker=2&max_worker=1",
        "BadRequestException",
        "max_worker cannot be less than min_worker.",
    ),
    refuses(400, "PUT /models/m?max_worker=0", "BadRequestException", "max_worker cannot be less than min_worker."),
    refuses(400, "PUT /models/m?min_worker=-1", "BadRequestException", "min_worker: expected 0 or more, got -1"),
    *(
        refuses(404, line, "ModelVersionNotFoundException", "Model version: 9.9 does not exist for model: m")
        for line in ("PUT /models/m/9.9", "PUT /models/m?model_version=9.9&synchronous=true", "DELETE /models/m/9.9")
    ),
    refuses(404, "PUT /models/nobody", "ModelNotFoundException", "Model not found: nobody"),
    gone("m"),
    done(200, "POST /models?url=fails.mar", registered("fails")),
    refuses(
        500,
        "PUT /models/fails?synchronous=true",
        "InternalServerException",
        begins("Failed to start workers for model fails version: "),
    ),
    says(200, "GET /v1/models/fails", {"name": "fails", "ready": False}),
    gone("fails"),
    MISSING_M,
]

# Versions: which is the default, what may go (contract sections 2.5 to 2.7).
VERSIONS = [
    done(200, "POST /models?url=m-2.mar", registered("m", "2.0")),
    done(200, "POST /models?url=m.mar", registered("m")),
    done(200, "POST /models?url=m-3.mar", registered("m", "3.0")),
    says(200, "GET /models", {"models": [{"modelName": "m", "modelUrl": "m-2.mar"}]}),
    says(200, "GET /models/m", [described("m", "2.0", modelUrl="m-2.mar")]),
    says(200, "GET /models/m/1.0", [described("m")]),
    says(200, "GET /models/m/3.0/", [described("m", "3.0", modelUrl="m-3.mar")]),
    says(
        200,
        "GET /models/m/all",
        lambda got: (
            sorted(each["modelVersion"] for each in got) == ["1.0", "2.0", "3.0"]
            and all(list(each) == list(described("m")) for each in got)
        ),
    ),
    refuses(
        404,
        "GET /models/m/9.9",
        "ModelVersionNotFoundException",
        "Model version: 9.9 does not exist for model: m",
    ),
    refuses(403, "DELETE /models/m", "InvalidModelVersionException", "Cannot remove default version for model m"),
    refuses(403, "DELETE /models/m/2.0", "InvalidModelVersionException", "Cannot remove default version for model m"),
    done(
        200,
        "PUT /models/m/3.0/set-default",
        'Default version successfully updated for model "m" to "3.0"',
    ),
    says(200, "GET /models/m", [described("m", "3.0", modelUrl="m-3.mar")]),
    says(200, "GET /models", {"models": [{"modelName": "m", "modelUrl": "m-3.mar"}]}),
    done(
        200,
        "PUT /models/m/3.0/set-default/",
        'Default version successfully updated for model "m" to "3.0"',
    ),
    refuses(
        404,
        "PUT /models/m/9.9/set-default",
        "ModelVersionNotFoundException",
        "Model version 9.9 does not exist for model m",
    ),
    refuses(404, "PUT /models/n/1.0/set-default", "ModelNotFoundException", "Model not found: n"),
    done(200, "PUT /models/m/1.0?synchronous=true", "Workers scaled to 1 for model: m, version: 1.0"),
    says(200, "GET /v1/models/m", {"name": "m", "ready": False}),
    says(200, "GET /models/m/1.0", [described("m", workers=1)]),
    says(200, "GET /models/m", [described("m", "3.0", modelUrl="m-3.mar")]),
    gone("m", "/2.0"),
    refuses(
        404,
        "DELETE /models/m/2.0",
        "ModelVersionNotFoundException",
        "Model version: 2.0 does not exist for model: m",
    ),
    done(200, "DELETE /models/m/1.0?synchronous=false&timeout=1", 'Model "m" unregistered'),
    gone("m"),
    MISSING_M,
    refuses(404, "DELETE /models/m", "ModelNotFoundException", "Model not found: m"),
    # The first version that comes is the default again.
    done(200, "POST /models?url=m.mar", registered("m")),
    done(200, "POST /models?url=m-2.mar", registered("m", "2.0")),
    says(200, "GET /models/m", [described("m")]),
    gone("m", "/2.0"),
    gone("m"),
]

# What a handler says of its model (contract section 2.5).
NO_ONE_TO_ASK = " has no worker to serve describe request. Please use scale workers API to add workers."
CUSTOMIZED = [
    done(200, "POST /models?url=tells.mar&initial_workers=1", registered("tells", workers=1)),
    says(200, "GET /models/tells", [described("tells", workers=1, modelUrl="tells.mar")]),
    *(
        says(
            200,
            f"GET /models/tells{path}",
            [
                described(
                    "tells",
                    workers=1,
                    modelUrl="tells.mar",
                    customizedMetadata={"labels": ["cat", "dog"], "size": 224},
                )
            ],
        )
        for path in ("?customized=true", "/1.0?customized=TRUE")
    ),
    *(
        says(200, f"GET /models/tells{path}", [described("tells", workers=1, modelUrl="tells.mar")])
        for path in ("?customized=false", "?customized=1", "/all?customized=true")
    ),
    gone("tells"),
    done(200, "POST /models?url=mumbles.mar&initial_workers=1", registered("mumbles", workers=1)),
    says(
        200,
        "GET /models/mumbles?customized=true",
        [described("mumbles", workers=1, modelUrl="mumbles.mar", customizedMetadata={})],
    ),
    gone("mumbles"),
    done(200, "POST /models?url=silent.mar&initial_workers=1", registered("silent", workers=1)),
    says(
        200,
        "GET /models/silent?customized=true",
        [described("silent", workers=1, modelUrl="silent.mar")],
    ),
    gone("silent"),
    done(200, "POST /models?url=m.mar", registered("m")),
    refuses(503, "GET /models/m?customized=true", "ServiceUnavailableException", f'Model "m"{NO_ONE_TO_ASK}'),
    gone("m"),
]


# Pages (contract section 2.8): a token is there whenever offset + limit is not past the end.
PAGES = [
    *(done(200, f"POST /models?url=m.mar&model_name={name}", registered(name)) for name in ("p3", "p1", "p4", "p2")),
    says(200, "GET /models", {"models": listed("p1", "p2", "p3", "p4")}),
    says(200, "GET /models?limit=2", {"nextPageToken": "2", "models": listed("p1", "p2")}),
    says(200, "GET /models?limit=2&next_page_token=2", {"nextPageToken": "4", "models": listed("p3", "p4")}),
    says(200, "GET /models?limit=2&next_page_token=3", {"models": listed("p4")}),
    says(200, "GET /models?limit=2&next_page_token=4", {"models": []}),
    says(200, "GET /models?next_page_token=1000", {"models": []}),
    says(200, "GET /models?limit=4", {"nextPageToken": "4", "models": listed("p1", "p2", "p3", "p4")}),
    says(200, "GET /models?limit=5", {"models": listed("p1", "p2", "p3", "p4")}),
    says(200, "GET /models?limit=1&next_page_token=1", {"nextPageToken": "2", "models": listed("p2")}),
    says(200, "GET /models?limit=0", {"nextPageToken": "0", "models": []}),
    says(200, "GET /models?limit=0&next_page_token=3", {"nextPageToken": "3", "models": []}),
    says(200, "GET /models?limit=-1", {"models": listed("p1", "p2", "p3", "p4")}),
    says(200, "GET /models?limit=101", {"models": listed("p1", "p2", "p3", "p4")}),
    says(200, "GET /models?limit=1000", {"models": listed("p1", "p2", "p3", "p4")}),
    says(200, "GET /models?limit=two&next_page_token=x", {"models": listed("p1", "p2", "p3", "p4")}),
    says(200, "GET /models?limit=3&next_page_token=-2", {"nextPageToken": "3", "models": listed("p1", "p2", "p3")}),
    says(200, "GET /models?limit=2147483648", {"models": listed("p1", "p2", "p3", "p4")}),
    *(gone(name) for name in ("p1", "p2", "p3", "p4")),
    says(200, "GET /models", {"models": []}),
]

# Workflows, which TorchServe itself takes no more (contract sections 12.4 and 16).
WORKFLOWS = [
    says(200, "GET /workflows", {"workflows": []}),
    says(200, "GET /workflows?limit=1&next_page_token=0", {"workflows": []}),
    refuses(400, "POST /workflows?url=w.war", "BadRequestException", begins("Workflow")),
    refuses(404, "GET /workflows/w", "WorkflowNotFoundException", "Workflow not found: w"),
    refuses(404, "DELETE /workflows/w", "WorkflowNotFoundException", "Workflow not found: w"),
    refuses(405, "PUT /workflows/w", "MethodNotAllowedException", NO_METHOD),
]

CHAPTERS = {
    "routes": ROUTES,
    "register": REGISTER,
    "sources": SOURCES,
    "bodies": BODIES,
    "scale": SCALE,
    "versions": VERSIONS,
    "configured": CONFIGURED,
    "customized": CUSTOMIZED,
    "pages": PAGES,
    "workflows": WORKFLOWS,
}


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_server_answers_as_the_contract_says(client: httpx.Client, chapter: str) -> None:
    hold(CHAPTERS[chapter], client)


def test_the_conversation_is_a_long_one() -> None:
    assert sum(map(len, CHAPTERS.values())) >= 200

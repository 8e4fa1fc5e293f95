"""A conversation as a table: what a client says, and exactly what the server answers, field by field and in order."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx

from ringserve.server.testing import wait_until

PATIENCE_S = 20.0
IN_BACKGROUND = "Processing worker updates..."
NO_WORKERS_YET = "registered with 0 initial workers. Use scale workers API to add workers for the model."
Judge = Callable[[Any], bool]


@dataclass(frozen=True, slots=True)
class Step:
    """`line` is a method and a path with its query. `expected` is JSON whose parts may be judges; None is no JSON at all. With
    `until`, the request is repeated until it is so."""

    line: str
    status: int
    expected: Any
    body: bytes | None = None
    content_type: str = "application/json"
    until: bool = False


def says(status: int, line: str, expected: Any, **more: Any) -> Step:
    return Step(line, status, expected, **more)


def done(status: int, line: str, sentence: str, **more: Any) -> Step:
    """Work that was done, or will be."""
    return Step(line, status, {"status": sentence}, **more)


def refuses(status: int, line: str, kind: str, message: Any, **more: Any) -> Step:
    """An error; the message may be a judge."""
    return Step(line, status, {"code": status, "type": kind, "message": message}, **more)


def begins(text: str) -> Judge:
    return lambda got: isinstance(got, str) and got.startswith(text)


def matches(pattern: str) -> Judge:
    return lambda got: isinstance(got, str) and re.fullmatch(pattern, got) is not None


def a(kind: type) -> Judge:
    return lambda got: type(got) is kind


# ---- what TorchServe says of models


def registered(name: str, version: str = "1.0", workers: int = 0) -> str:
    if workers == 0:
        return f'Model "{name}" Version: {version} {NO_WORKERS_YET}'
    return f'Model "{name}" Version: {version} registered with {workers} initial workers'


def gone(name: str, version: str = "") -> Step:
    """Unregister, as most chapters end."""
    return done(200, f"DELETE /models/{name}{version}", f'Model "{name}" unregistered')


def worker(**more: Any) -> dict[str, Any]:
    described = {
        "id": matches("9[0-9]{3,}"),
        "startTime": matches(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"),
        "status": "READY",
        "memoryUsage": a(int),
        "pid": a(int),
        "gpu": False,
        "gpuUsage": "N/A",
    }
    return {**described, **more}


def described(name: str, version: str = "1.0", workers: int = 0, **more: Any) -> dict[str, Any]:
    """A version with TorchServe's fields in TorchServe's order."""
    fields = {
        "modelName": name,
        "modelVersion": version,
        "modelUrl": "m.mar",
        "runtime": "python",
        "minWorkers": workers,
        "maxWorkers": workers,
        "batchSize": 1,
        "maxBatchDelay": 100,
        "responseTimeout": 120,
        "startupTimeout": 120,
        "maxRetryTimeoutInSec": 300,
        "clientTimeoutInMills": 0,
        "parallelType": "",
        "parallelLevel": 0,
        "deviceType": "cpu",
        "continuousBatching": False,
        "useJobTicket": False,
        "useVenv": False,
        "stateful": False,
        "sequenceMaxIdleMSec": 0,
        "sequenceTimeoutMSec": 0,
        "maxNumSequence": 0,
        "maxSequenceJobQueueSize": 0,
        "loadedAtStartup": False,
        "workers": [worker() for _ in range(workers)],
        "jobQueueStatus": {"remainingCapacity": 100, "pendingRequests": 0},
    }
    assert more.keys() <= fields.keys() | {"customizedMetadata"}
    return {**fields, **more}


def listed(*names: str) -> list[dict[str, str]]:
    return [{"modelName": name, "modelUrl": "m.mar"} for name in names]


MISSING_M = refuses(404, "GET /models/m", "ModelNotFoundException", "Model not found: m")


# ---- judging an answer


def difference(expected: Any, got: Any, where: str = "body") -> str | None:
    """Where the answer is another one; None where it is not. Fields must come in their order."""
    if callable(expected):
        return None if expected(got) else f"{where}: got {got!r}"
    if isinstance(expected, dict) and isinstance(got, dict):
        if list(expected) != list(got):
            return f"{where}: expected the fields {list(expected)}, got {list(got)}"
        pairs = [(f"{where}.{name}", expected[name], got[name]) for name in expected]
    elif isinstance(expected, list) and isinstance(got, list) and len(expected) == len(got):
        pairs = [(f"{where}[{index}]", each, got[index]) for index, each in enumerate(expected)]
    else:
        same = type(expected) is type(got) and expected == got
        return None if same else f"{where}: expected {expected!r}, got {got!r}"
    return next((found for name, one, other in pairs if (found := difference(one, other, name))), None)


def wrong(step: Step, client: httpx.Client) -> str | None:
    """Say it once; what is wrong with the answer, None when nothing is."""
    method, _, path = step.line.partition(" ")
    headers = {} if step.body is None else {"content-type": step.content_type}
    response = client.request(method, path, content=step.body, headers=headers)
    if response.status_code != step.status:
        return f"expected status {step.status}, got {response.status_code}: {response.text}"
    if response.headers["connection"] != ("close" if step.status >= 400 else "keep-alive"):
        return f"connection: {response.headers['connection']}"
    if "x-request-id" not in response.headers or response.headers["pragma"] != "no-cache":
        return f"headers: {response.headers}"
    if step.expected is None:
        return f"expected no body, got {response.text}" if response.content else None
    if response.headers["content-type"] != "application/json":
        return f"content-type: {response.headers['content-type']}"
    got = response.json()
    if response.text != json.dumps(got, indent=2, ensure_ascii=False) + "\n":
        return f"expected two spaces of indentation and a new line at the end, got {response.text!r}"
    return difference(step.expected, got)


def hold(steps: list[Step], client: httpx.Client) -> None:
    """The conversation, from its beginning to its end, or to the first answer that is another one."""
    for index, step in enumerate(steps):
        if step.until:
            wait_until(lambda step=step: wrong(step, client) is None, PATIENCE_S, f"step {index}, {step.line}")  # type: ignore[misc]
        found = wrong(step, client)
        assert found is None, f"step {index}, {step.line}: {found}"

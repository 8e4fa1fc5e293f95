"""What a client says to a server about keys, settings, snapshots and metrics, and what it looks at, for any server that speaks
TorchServe's API: what TorchServe 0.12 answered lies in `recorded/`.

A step is a label and what was seen, as JSON. What differs from start to start (times, pids, memory, keys, places) is written as its kind.
"""

import json
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from ringserve.server.testing import wait_until

Step = tuple[str, Any]
KINDS = {"pid": "<pid>", "memoryUsage": "<bytes>", "startTime": "<time>", "created": "<time>"}
HEADERS = ("content-type", "connection", "access-control-allow-origin", "access-control-allow-methods")
STAMP = re.compile(r"\d{17}(?=-(?:startup|snapshot|shutdown)\.cfg)")
COUNTERS = ("Requests2XX", "Requests4XX", "Requests5XX", "ts_inference_requests_total")


@dataclass(frozen=True, slots=True)
class Place:
    """A server that runs. `settle` waits for what it does after an answer."""

    folder: Path
    store: Path
    urls: Mapping[str, str]
    settle: Callable[[], None]

    def request(self, line: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> httpx.Response:
        """`line` is a listener, a method and a path with its query."""
        plane, method, path = line.split(" ", 2)
        return httpx.request(
            method, self.urls[plane] + path, content=body, headers=headers, timeout=60, trust_env=False
        )

    def say(self, line: str, body: bytes | None = None, note: str = "", **headers: str) -> Step:
        response = self.request(line, body, {name.replace("_", "-"): value for name, value in headers.items()})
        seen: dict[str, Any] = {"status": response.status_code, "body": self.plain(_content(response))}
        seen.update({name: response.headers[name] for name in HEADERS if name in response.headers})
        return f"{line} {note}".rstrip(), seen

    def with_key(self, line: str, key: str, note: str, body: bytes | None = None) -> Step:
        return self.say(line, body, note, authorization=f"Bearer {key}")

    def keys(self) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = json.loads((self.folder / "key_file.json").read_text())
        return found

    def plain(self, value: Any) -> Any:
        """Without what differs from start to start."""
        if isinstance(value, dict):
            return {name: KINDS.get(name) or self.plain(each) for name, each in value.items() if name != "ringserve"}
        if isinstance(value, list):
            return [self.plain(each) for each in value]
        if not isinstance(value, str):
            return value
        for plane, url in self.urls.items():
            value = value.replace(url, f"<{plane}>")
        return STAMP.sub("<stamp>", value.replace(str(self.store), "<store>").replace(str(self.folder), "<folder>"))

    def snapshots(self) -> list[Path]:
        return sorted((self.folder / "logs" / "config").glob("*.cfg"))


def _content(response: httpx.Response) -> Any:
    try:
        content = response.json()
    except ValueError:
        return response.text
    return "<document>" if isinstance(content, dict) and "openapi" in content else content


# ---- keys (contract section 4)

KEYS_SETTINGS = {"enable_model_api": "true", "disable_token_authorization": "false"}
OPEN = (
    "inference OPTIONS /",
    "inference GET /api-description",
    "management OPTIONS /",
    "management GET /api-description",
)
GUARDED = (
    "inference GET /ping",
    "inference POST /predictions/m",
    "inference GET /predictions/none",
    "inference GET /nothing",
    "inference OPTIONS /predictions/m",
    "management GET /models",
    "management GET /models/none",
    "management POST /models?url=none.mar",
    "management DELETE /models/none",
    "management GET /v1/models/m",
    "management GET /nothing",
)
TOKEN = (
    "GET /token",
    "GET /token?type=",
    "GET /token?type=API",
    "GET /token?type=Inference",
    "GET /token?type=nonsense",
    "GET /token?type=inference",
    "PUT /token?type=management",
    "DELETE /token?type=inference",
    "GET /token/?type=inference",
    "GET /tokens?type=inference",
)


def keys(place: Place) -> Iterator[Step]:
    file = place.folder / "key_file.json"
    first = place.keys()
    yield "key file", {plane: sorted(fields) for plane, fields in first.items()}
    yield "key file, mode", oct(stat.S_IMODE(file.stat().st_mode))
    yield "key file, keys", [re.fullmatch(r"[\w-]{8}", each["key"]) is not None for each in first.values()]
    for line in (*OPEN, *GUARDED):
        yield place.say(line, note="without a key")
        for plane in first:
            yield place.with_key(line, first[plane]["key"], f"with the {plane} key")
        yield place.with_key(line, "x" * 8, "with another key")
    key = first["inference"]["key"]
    for form in (
        "{}",
        "bearer {}",
        "BEARER {}",
        "Basic {}",
        "Bearer",
        "Bearer  {}",
        "Bearer\t{}",
        "Bearer {} x",
        'Bearer "{}"',
    ):
        yield place.say("inference GET /ping", note=f"with {form!r}", authorization=form.format(key))
    yield from _renewed(place, first)


def _renewed(place: Place, first: dict[str, dict[str, str]]) -> Iterator[Step]:
    line = "management GET /token?type=inference"
    yield place.say(line, note="without a key")
    for plane in ("inference", "management"):
        yield place.with_key(line, first[plane]["key"], f"with the {plane} key")
    yield "keys that are others now", _changed(first, place.keys())
    for said in TOKEN:
        before = place.keys()
        yield place.with_key(f"management {said}", first["API"]["key"], "with the API key")
        yield f"keys that are others after {said}", _changed(before, place.keys())
    last = place.keys()
    yield "key file, mode after renewal", oct(stat.S_IMODE((place.folder / "key_file.json").stat().st_mode))
    for line, plane in (("inference GET /ping", "inference"), ("management GET /models", "management")):
        yield place.with_key(line, first[plane]["key"], "with the old key")
        yield place.with_key(line, last[plane]["key"], "with the new key")


def _changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [plane for plane in after if after[plane] != before.get(plane)]


# ---- settings that show, and who may change models (contract sections 1.1, 7.5, 7.6)

SETTINGS = {
    "enable_model_api": "true",
    "disable_token_authorization": "true",
    "default_workers_per_model": 0,
    "job_queue_size": 55,
    "default_response_timeout": 66,
    "default_startup_timeout": 99,
    "cors_allowed_origin": "*",
    "cors_allowed_methods": "GET, POST",
    "models": json.dumps(
        {"m": {"1.0": {"batchSize": 4, "maxBatchDelay": 11, "responseTimeout": 121, "minWorkers": 0}}}
    ),
}


def settings(place: Place) -> Iterator[Step]:
    yield place.say("inference GET /ping", origin="http://a.example")
    yield place.say("inference GET /nothing", origin="http://a.example")
    yield place.say("management POST /models?url=m.mar")
    yield place.say("management GET /models/m", note="as configured")
    yield place.say("management DELETE /models/m")
    yield place.say("management POST /models?url=m.mar&model_name=n&batch_size=2&response_timeout=8&runtime=python3")
    yield place.say("management GET /models/n", note="as asked for")
    yield place.say("inference POST /predictions/n", b"x", "without workers")
    yield place.say("management DELETE /models/n")


# ---- snapshots (contract section 8)

CHANGES = (
    "inference GET /ping",
    "management GET /models",
    "management POST /models?url=m.mar",
    "management POST /models?url=m.mar",
    "management POST /models?url=none.mar",
    "management GET /models/m",
    "management POST /models?url=m-2.mar&batch_size=4&max_batch_delay=7&response_timeout=8&startup_timeout=60",
    "management PUT /models/m/2.0/set-default",
    "management PUT /models/m/9.0/set-default",
    "management PUT /models/m/2.0?min_worker=1&max_worker=2&synchronous=true",
    "management PUT /models/m/2.0?min_worker=3&max_worker=2&synchronous=true",
    "management PUT /models/m/2.0?min_worker=0&synchronous=true",
    "management POST /models?url=m.mar&model_name=other&runtime=python3",
    "management PUT /models/other?min_worker=1&synchronous=true",
    "management DELETE /models/m",
    "management DELETE /models/m/1.0",
    "management DELETE /models/none",
)
PROPERTIES = (
    "inference_address",
    "management_address",
    "model_store",
    "tsConfigFile",
    "job_queue_size",
    "default_response_timeout",
    "enable_model_api",
    "disable_token_authorization",
    "number_of_gpu",
)


def snapshots(place: Place) -> Iterator[Step]:
    """From the start to what is remembered of the last change; the server is stopped after it."""
    place.settle()
    yield "names after the start", _kinds(place, place.snapshots())
    said = _properties(place.snapshots()[0])
    for name in PROPERTIES:
        yield f"property {name}", place.plain(said.get(name))
    yield "state after the start", _state(place, said)
    yield "the state knows its file", json.loads(said["model_snapshot"])["name"] == place.snapshots()[0].name
    for line in CHANGES:
        before = place.snapshots()
        yield place.say(line)
        place.settle()
        new = [path for path in place.snapshots() if path not in before]
        yield f"names after {line}", sorted(set(_kinds(place, new)))
        if new:
            yield f"state after {line}", _state(place, _properties(new[-1]))


def stopped(place: Place) -> Iterator[Step]:
    """Of a server that has stopped."""
    yield "the last name", _kinds(place, place.snapshots()[-1:])
    yield "the last state", _state(place, _properties(place.snapshots()[-1]))


def restored(place: Place) -> Iterator[Step]:
    """Of a server that was started with nothing but a state to restore: no worker has to come up first."""
    yield place.say("management GET /models")
    for model in ("m", "renamed"):
        yield place.say(f"management GET /models/{model}/all")


RESTORED_STATE: dict[str, Any] = {
    "name": "startup.cfg",
    "modelCount": 3,
    "models": {
        "m": {
            "1.0": {
                "defaultVersion": False,
                "marName": "m.mar",
                "minWorkers": 0,
                "maxWorkers": 0,
                "batchSize": 2,
                "maxBatchDelay": 50,
                "responseTimeout": 33,
                "startupTimeout": 88,
                "runtimeType": "python",
            },
            "2.0": {
                "defaultVersion": True,
                "marName": "m-2.mar",
                "minWorkers": 0,
                "maxWorkers": 0,
                "batchSize": "6",
                "maxBatchDelay": 0,
                "responseTimeout": 120,
                "startupTimeout": 120,
                "runtimeType": "python3",
                "something": ["else"],
            },
        },
        "renamed": {
            "1.0": {
                "defaultVersion": True,
                "marName": "m.mar",
                "minWorkers": 0,
                "maxWorkers": 0,
                "batchSize": 1,
                "maxBatchDelay": 100,
                "responseTimeout": 120,
                "startupTimeout": 120,
                "runtimeType": "python",
            }
        },
    },
}
RESTORED_SETTINGS = {
    "disable_token_authorization": "true",
    "load_models": "m.mar",  # which the state replaces
    "model_snapshot": json.dumps(RESTORED_STATE),
}


def _kinds(place: Place, paths: Sequence[Path]) -> list[str]:
    return [str(place.plain(path.name)) for path in paths]


def _properties(path: Path) -> dict[str, str]:
    """Of Java: `\\:`, `\\=` and `\\n` in the values, one line each."""
    lines = [line for line in path.read_text().splitlines() if line and line[0] != "#"]
    pairs = (re.match(r"((?:\\.|[^=\\])*)=(.*)", line) for line in lines)
    return {pair[1]: re.sub(r"\\(.)", lambda it: {"n": "\n"}.get(it[1], it[1]), pair[2]) for pair in pairs if pair}


def _state(place: Place, said: dict[str, str]) -> Any:
    return place.plain(json.loads(said["model_snapshot"]))


# ---- metrics (contract section 3)

METRICS_SETTINGS = {
    "enable_model_api": "true",
    "disable_token_authorization": "true",
    "default_workers_per_model": 1,
    "metrics_mode": "prometheus",
    "model_metrics_auto_detect": "true",
}
# Does what the request says with `context.metrics`.
MEASURING = """
import json
from ts.metrics.dimension import Dimension
from ts.metrics.metric_type_enum import MetricTypes

def attempt(metrics, call, *arguments, **named):
    if call == "fail":
        raise RuntimeError("as asked")
    if "dimensions" in named:
        named["dimensions"] = [Dimension(*pair) for pair in named["dimensions"]]
    if "metric_type" in named:
        named["metric_type"] = MetricTypes[named["metric_type"]]
    if call == "add_or_update":
        name, kind, *rest = arguments
        return metrics.get_metric(name, MetricTypes[kind]).add_or_update(*rest)
    found = getattr(metrics, call)(*arguments, **named)
    return None if found is None else [found.metric_name, found.unit, found.metric_type.value, list(found.dimension_names)]

def handle(data, context):
    if data is None:
        return None
    answers = []
    for row in data:
        words, named = json.loads(bytes(row["body"]))
        try:
            answers.append({"done": attempt(context.metrics, *words, **named)})
        except RuntimeError:
            raise
        except Exception as error:
            answers.append({"raised": type(error).__name__, "says": str(error)})
    return answers
"""
NOTHING = (["get_metric", "HandlerTime"], {"metric_type": "GAUGE"})
TYPES = (
    "Requests2XX",
    "Requests4XX",
    "Requests5XX",
    "ts_inference_requests_total",
    "ts_inference_latency_microseconds",
    "ts_queue_latency_microseconds",
    "QueueTime",
    "WorkerThreadTime",
    "WorkerLoadTime",
    "PredictionTime",
    "CPUUtilization",
    "MemoryUtilization",
    "DiskUtilization",
    "MemoryUsed",
    "MemoryAvailable",
    "DiskUsage",
    "DiskAvailable",
)
COUNTED = (
    ("scrape", ()),
    ("predict", ("inference POST /predictions/counts",)),
    ("predict twice by version", ("inference POST /predictions/counts/1.0",) * 2),
    ("fail", ("inference POST /predictions/counts fail",) * 2),
    ("unknown model", ("inference POST /predictions/none",)),
    ("unknown version", ("inference POST /predictions/counts/9",)),
    ("unknown route", ("inference GET /nothing",) * 2),
    ("ping", ("inference GET /ping",) * 3),
    ("management", ("management GET /models", "management GET /models/counts", "management GET /models/none")),
    ("register", ("management POST /models?url=m.mar&initial_workers=0",)),
    ("no worker", ("inference POST /predictions/m",)),
    ("conflict", ("management POST /models?url=m.mar",)),
    ("unregister", ("management DELETE /models/m",)),
    ("metrics, elsewhere", ("metrics GET /nothing", "metrics GET /", "metrics OPTIONS /")),
)
ENDPOINT = (
    *(f"metrics {method} /metrics?name[]=none" for method in ("GET", "POST", "PUT", "DELETE", "OPTIONS")),
    "metrics GET /metrics/?name[]=none",
    "metrics GET /metrics/deeper/still?name[]=none",
    "metrics GET /metrics?name[]=Requests",
    "metrics GET /",
    "metrics POST /",
    "metrics OPTIONS /",
    "metrics GET /api-description",
    "metrics GET /nothing",
    "metrics GET /metricsx",
    "metrics GET /models",
    "inference GET /metrics",
    "management GET /metrics",
)
CALLS: tuple[tuple[list[Any], dict[str, Any]], ...] = (
    (["add_counter", "Sweets", 3], {}),
    (["add_counter", "Sweets", -1], {}),
    (["add_metric", "Sweets", 2, "count"], {}),
    (["add_counter", "Colors", 1], {"dimensions": [["Color", "red"]]}),
    (["add_metric", "Heat", 41.5, "percent"], {"metric_type": "GAUGE"}),
    (["add_percent", "Heat", 42.5], {}),
    (["add_size", "Weight", 7], {}),
    (["add_size", "Weight", 7, None, "XB"], {}),
    (["add_time", "Pace", 12.25], {}),
    (["add_time", "Pace", 12.25, None, "h"], {}),
    (["add_error", "Mishap", 1], {}),
    (["add_metric", "Spread", 3.0, "ms"], {"metric_type": "HISTOGRAM"}),
    (["add_metric", "Spread", 0.3, "ms"], {"metric_type": "HISTOGRAM"}),
    (["add_metric_to_cache", "Late", "count"], {"dimension_names": ["Color"], "metric_type": "COUNTER"}),
    (["add_or_update", "Late", "COUNTER", 4, ["green"]], {}),
    (["add_or_update", "Late", "COUNTER", -4, ["green"]], {}),
    (["add_or_update", "Late", "COUNTER", 4, []], {}),
    (["get_metric", "Sweets"], {}),
    (["get_metric", "Sweets"], {"metric_type": "GAUGE"}),
    (["get_metric", "Heat"], {"metric_type": "GAUGE"}),
    (["get_metric", "None"], {}),
    (["add_counter", 3, 3], {}),
)
OWN = ("Sweets", "Colors", "Heat", "Weight", "Pace", "Mishap", "Spread", "Late")


def metrics(place: Place) -> Iterator[Step]:
    """The model `counts` has a worker; `m` is not registered yet."""
    place.request("inference POST /predictions/counts", _asking(*NOTHING))
    for line in ENDPOINT:
        yield place.say(line)
    for what, lines in COUNTED:
        before = _counters(place)
        for line in lines:
            *said, last = line.split(" ")
            place.request(
                line if last != "fail" else " ".join(said),
                _asking(["fail"] if last == "fail" else NOTHING[0], NOTHING[1]),
            )
        place.settle()
        after = _counters(place)
        yield (
            f"counted by: {what}",
            {name: each - before.get(name, 0) for name, each in after.items() if each != before.get(name)},
        )
    for words, named in CALLS:
        yield place.say("inference POST /predictions/counts", _asking(words, named), json.dumps([words, named]))
    place.settle()
    wait_until(lambda: "Late" in _families(place, "?name[]=Late"), 10, "what the handler emitted last")
    found = _families(place, "")
    for name in (*TYPES, *OWN):
        kinds, samples = found.get(name, ([], {}))
        yield f"family {name}", [*kinds, *([samples] if name in OWN else [_kinds_of(samples)])]
    one = _families(place, "?name[]=Sweets&name[]=Heat")
    yield "only two of them", {name: samples for name, (_, samples) in one.items()}


def _asking(words: list[Any], named: dict[str, Any]) -> bytes:
    return json.dumps([words, named]).encode()


def _counters(place: Place) -> dict[str, float]:
    found = _families(place, "?" + "&".join(f"name[]={name}" for name in COUNTERS))
    return {label: value for _, samples in found.values() for label, value in samples.items()}


def _kinds_of(samples: dict[str, float]) -> list[str]:
    return sorted({re.sub(r'WorkerName="W-\d+', 'WorkerName="W-<id>', label) for label in samples})


def _families(place: Place, query: str) -> dict[str, tuple[list[str], dict[str, float]]]:
    """Of each family its help and type, and its samples with their labels as they stand there."""
    found: dict[str, tuple[list[str], dict[str, float]]] = {}
    for line in place.request(f"metrics GET /metrics{query}").text.splitlines():
        words = line.split(" ", 3)
        if words[0] == "#":
            family = found.setdefault(words[2], ([], {}))
            family[0].append(words[3])
        else:
            label, _, value = line.rpartition(" ")
            family[1][re.sub(r'ostname="[^"]*"', 'ostname="<host>"', label)] = float(value)
    return found

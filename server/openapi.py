"""The OpenAPI documents (contract section 13), as functions from what is served to a dictionary.

Titles, paths and operation ids are TorchServe's; unlike TorchServe's, no id comes twice, every parameter has a type with its
range, every answer a schema, and every route of this server is there.
"""

from collections.abc import Iterable, Mapping
from urllib.parse import quote

from ringserve.protocol.tensor import Signature
from ringserve.server.openapi_inference import inference_paths, model_inference_paths
from ringserve.server.openapi_schemas import (
    MODEL,
    MODEL_PATHS,
    NAME_CHARS_MAX,
    VERSION,
    Json,
    answer,
    components,
    errors,
    flag,
    json_body,
    listed,
    operation,
    parameter,
    record,
    ref,
    text,
    whole,
)
from ringserve.server.settings import BATCH_SIZE_MAX, WORKERS_MAX, Settings

TITLE = "TorchServe APIs"


def inference_document(version: str) -> Json:
    """Of the inference listener."""
    return _document(TITLE, version, {**_common_paths(), **inference_paths()})


def management_document(version: str, settings: Settings) -> Json:
    """Of the management listener; the settings say what is the default of a parameter."""
    return _document(TITLE, version, {**_common_paths(), **_management_paths(settings)})


def metrics_document(version: str) -> Json:
    """Of the metrics listener."""
    return _document(TITLE, version, {**_common_paths(), **_metrics_paths()})


def shared_document(version: str, settings: Settings) -> Json:
    """Of one address for both."""
    return _document(TITLE, version, {**_common_paths(), **inference_paths(), **_management_paths(settings)})


def model_inference_document(model: str, default_version: str, versions: Mapping[str, Signature]) -> Json:
    """Of one model, for those who want predictions of it."""
    paths = model_inference_paths(model, default_version, versions)
    said = "KServe's readiness."
    paths[f"/v1/models/{quote(model, safe='')}"] = {"get": operation(f"{model}:ready", said, [], _readiness())}
    return _document(f"RESTful API for: {model}", "1.0.0", paths)


def model_management_document(model: str, versions: Iterable[str], settings: Settings) -> Json:
    """Of one model, for those who look after it."""
    general = _model_paths(settings)
    name = quote(model, safe="")
    paths = {f"/models/{name}": _without(general["/models/{model_name}"], "model_name", model)}
    for version in versions:
        for rest in ("", "/set-default"):
            path = f"/models/{name}/{quote(version, safe='')}{rest}"
            each = general["/models/{model_name}/{model_version}" + rest]
            paths[path] = _without(each, "model_name model_version", f"{model}:{version}")
    return _document(f"RESTful Management API for: {model}", "1.0.0", paths)


def _without(path: Json, names: str, label: str) -> Json:
    """The operations of a path whose parameters `names` have got values."""
    return {
        method: {
            **each,
            "operationId": f"{each['operationId']}:{label}",
            "parameters": [one for one in each["parameters"] if one["name"] not in names.split()],
        }
        for method, each in path.items()
    }


def _document(title: str, version: str, paths: Json) -> Json:
    info = {"title": title, "version": version}
    return {"openapi": "3.0.1", "info": info, "paths": paths, "components": components()}


# ---- every listener


def _common_paths() -> Json:
    document = {"200": answer("The document.", ref("Document")), **errors(413, 500)}
    said = "This document."
    deprecated = operation("api-description", f"{said} Use OPTIONS / instead.", [], document, deprecated=True)
    paths = {
        "/": {"options": operation("apiDescription", said, [], document)},
        "/api-description": {"get": deprecated},
        "/v1/models/{model_name}": {
            "get": operation("modelReady", "Whether a model can answer, as KServe asks.", [MODEL], _readiness())
        },
    }
    return {**paths, **_probe_paths()}


def _readiness() -> Json:
    return {"200": answer("Known, ready or not.", ref("Readiness")), **errors(404, 413, 500)}


def _probe_paths() -> Json:
    said = {
        "live": "Whether the process answers.",
        "started": "Whether all that was asked for at start-up has been loaded or refused once.",
        "ready": "Whether requests can be answered: no model lacks its workers, and the server is not shutting down.",
    }
    paths: Json = {}
    for kind, description in said.items():
        for name, rest, parameters in (
            ("", "", []),
            ("model_", MODEL_PATHS[0], [MODEL]),
            ("version_", MODEL_PATHS[1], [MODEL, VERSION]),
        ):
            answers = {"200": answer("Yes.", ref("Probe")), **errors(413, 500, *([404] if parameters else []))}
            if kind != "live":
                answers["503"] = answer("Not yet, or not any more; the body says why.", ref("Probe"))
                answers["503"]["headers"] = {
                    "Retry-After": {"description": "Seconds.", "schema": {"type": "integer", "minimum": 1}}
                }
            ids = {"get": f"{name}health_{kind}", "head": f"{name}health_{kind}_head"}
            paths[f"/health/{kind}{rest}"] = {
                method: operation(each, description, parameters, answers) for method, each in ids.items()
            }
    return paths


# ---- metrics


def _metrics_paths() -> Json:
    said = "All metrics, as Prometheus reads them. Any other method, and any path below, answers the same."
    names = {"type": "array", "items": {"type": "string"}, "description": "Only the samples with these names."}
    text_answer = {"description": "Prometheus text 0.0.4.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    return {
        "/metrics": {
            "get": operation(
                "metrics", said, [parameter("query", "name[]", names)], {"200": text_answer, **errors(413, 500)}
            )
        }
    }


# ---- management


def _management_paths(settings: Settings) -> Json:
    registration = _registration(settings)
    limit = whole("How many, at most 100; any other number is 100.", 0, 100, default=100)
    token = whole("The `nextPageToken` of the page before.", 0, default=0)
    paths = {
        "/models": {
            "get": operation(
                "listModels",
                "The default versions of all models.",
                [parameter("query", "limit", limit), parameter("query", "next_page_token", token)],
                {"200": answer("One page.", ref("ModelList")), **errors(413, 500)},
            ),
            "post": operation(
                "registerModel",
                "Register a version of a model.",
                [parameter("query", name, each, required=name == "url") for name, each in registration.items()],
                {
                    "200": answer("Registered, with all its workers.", ref("Status")),
                    "202": answer("Registered; its workers are loading.", ref("Status")),
                    **errors(403, 404, 405, 408, 409, 413, 500, 503, 507),
                },
                _body_of(registration, "url"),
            ),
        }
    }
    status = {
        "200": answer("Every version, and every file that is not served.", ref("ServerStatus")),
        **errors(413, 500),
    }
    paths["/status"] = {"get": operation("serverStatus", "What `ringserve status` shows.", [], status)}
    return {**paths, **_model_paths(settings), **_workflow_paths()}


def _workflow_paths() -> Json:
    """What clients of TorchServe may ask about workflows; there are none."""
    workflow = parameter("path", "workflow_name", text("A workflow.", minLength=1))
    said = "Workflows are not supported: "
    return {
        "/workflows": {
            "get": operation(
                "listWorkflows",
                f"{said}the list is empty.",
                [],
                {"200": answer("None.", ref("WorkflowList")), **errors(413, 500)},
            ),
            "post": operation("registerWorkflow", f"{said}none is taken.", [], errors(413, 500)),
        },
        "/workflows/{workflow_name}": {
            "get": operation("describeWorkflow", f"{said}none is found.", [workflow], errors(404, 413, 500)),
            "delete": operation("unregisterWorkflow", f"{said}none is found.", [workflow], errors(404, 413, 500)),
        },
    }


def _body_of(fields: Mapping[str, Json], *required: str) -> Json:
    optional = [name for name in fields if name not in required]
    schema = {**record("By the names of the query.", fields, optional), "additionalProperties": True}
    return json_body("Parameters may come as a JSON object instead; then those of the query do not count.", schema)


def _registration(settings: Settings) -> dict[str, Json]:
    seconds = "Seconds; the model's own configuration wins."
    return {
        "url": text("An archive in the model store, or an address that `allowed_urls` allows."),
        "model_name": text("Its name, if not the manifest's.", maxLength=NAME_CHARS_MAX),
        "handler": text("`module:function`, or a module, if not the manifest's."),
        "runtime": text("Who runs the handler.", enum=["python", "python3", "LSP"], default="python"),
        "batch_size": whole("Most requests in one batch.", 1, BATCH_SIZE_MAX, default=1),
        "max_batch_delay": whole("Milliseconds that a batch waits for more requests.", default=100),
        "initial_workers": whole("Workers to start.", 0, WORKERS_MAX, default=settings.default_workers_per_model),
        "response_timeout": whole(f"How long a batch may take. {seconds}", default=settings.default_response_timeout_s),
        "startup_timeout": whole(f"How long loading may take. {seconds}", default=settings.default_startup_timeout_s),
        "queue_timeout": whole(
            f"How long a request may wait, 0 for ever. {seconds}", default=settings.default_queue_timeout_s
        ),
        "synchronous": flag("Whether to answer only when the workers have loaded.", default=True),
        "s3_sse_kms": flag("Whether the source is signed for, as S3 wants it.", default=False),
    }


def _scaling() -> dict[str, Json]:
    return {
        "min_worker": whole("Fewest workers.", 0, WORKERS_MAX, default=1),
        "max_worker": whole("Most workers; as many as the fewest when not given.", 0, WORKERS_MAX),
        "synchronous": flag("Whether to answer only when it is done.", default=False),
        "number_gpu": whole("Accepted and not used."),
        "timeout": {"type": "integer", "description": "Accepted and not used."},
    }


def _model_paths(settings: Settings) -> Json:
    """Everything below one model, `_all_ of them by version too."""
    status = answer("Done.", ref("Status"))
    document = {"200": answer("The document.", ref("Document")), **errors(404, 413, 500)}
    customized = parameter("query", "customized", flag("Whether to ask the handler as well.", default=False))
    described = listed(ref("ModelDescription"), "One element for every version that was asked for.", minItems=1)
    paths: Json = {}
    for name, rest, place in (("", MODEL_PATHS[0], [MODEL]), ("version_", MODEL_PATHS[1], [MODEL, VERSION])):
        which = "the default version" if not name else "one version, or `all` of them"
        scaling = _scaling()
        if not name:
            scaling["model_version"] = text("The version, if not the default one.")
        paths[f"/models{rest}"] = {
            "get": operation(
                f"{name}describeModel",
                f"Describe {which}.",
                [*place, customized],
                {"200": answer("As an array.", described), **errors(404, 413, 500, 503)},
            ),
            "put": operation(
                f"{name}setAutoScale",
                "Change how many workers a version has.",
                [*place, *(parameter("query", one, each) for one, each in scaling.items())],
                {
                    "200": status,
                    "202": answer("It will be done.", ref("Status")),
                    "206": answer("Fewer run than were asked for.", ref("Status")),
                    **errors(404, 408, 413, 500, 503, 507),
                },
                _body_of(scaling),
            ),
            "delete": operation(
                f"{name}unregisterModel",
                "Unregister a version; its requests are answered first.",
                place,
                {"200": status, **errors(403, 404, 405, 408, 413, 500)},
            ),
            "options": operation(f"{name}modelDescription", "The document of a model.", place, document),
        }
    paths[f"/models{MODEL_PATHS[1]}/set-default"] = {
        "put": operation(
            "setDefault",
            "Make a version the default one.",
            [MODEL, VERSION],
            {"200": status, **errors(404, 413, 500)},
        )
    }
    return paths

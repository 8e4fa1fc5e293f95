"""The routes of the Open Inference Protocol in the OpenAPI document of the inference listener. Pure."""

from typing import Any

from ringserve.server.openapi_schemas import (
    BYTES,
    JSON,
    MODEL,
    VERSION,
    Json,
    answer,
    flag,
    listed,
    operation,
    record,
    ref,
    text,
)

_VERSION_PATH = "/v2/models/{model_name}/versions/{model_version}"
_MODEL_PATH = "/v2/models/{model_name}"
# What an inference may be refused with; by a handler in TorchServe's words.
INFERENCE_STATUSES = (400, 404, 408, 413, 500, 501, 503, 504, 507)


def open_inference_paths(timeout: Json) -> Json:
    """Of any model; `timeout` is the parameter that says how long the client waits."""
    metadata = record(
        "The server.",
        {"name": text("Its name."), "version": text("Its version."), "extensions": listed(text("One."), "What is on.")},
    )
    names = record("All models.", {"models": listed(text("A name."), "Their names.")})
    paths: Json = {
        "/v2": _read("v2_server", "What the server is.", metadata),
        "/v2/health/live": _read("v2_live", "Whether the server lives.", record("Yes.", {"live": flag("True.")})),
        "/v2/health/ready": _read("v2_ready", "Whether every model can answer.", _ready(), 503),
        "/v2/models": _read("v2_models", "What models there are.", names),
    }
    for path, prefix, parameters in (
        (_MODEL_PATH, "v2", [MODEL]),
        (_VERSION_PATH, "v2_version", [MODEL, VERSION]),
    ):
        paths[path] = _read(f"{prefix}_model", "What a model takes and gives.", _metadata(), 404, 503, of=parameters)
        paths[f"{path}/ready"] = _read(
            f"{prefix}_model_ready", "Whether it can answer.", _ready(), 404, 503, of=parameters
        )
        config: Json = {"type": "object", "description": "Triton's model configuration."}
        paths[f"{path}/config"] = _read(f"{prefix}_config", "How it is served.", config, 404, 503, of=parameters)
        said = "An inference. Of a handler: TorchServe's prediction, by any method but OPTIONS."
        paths[f"{path}/infer"] = {"post": _post(f"{prefix}_infer", said, [*parameters, timeout], _inference())}
        flat = answer("One object.", {"type": "object"})
        said = "An inference by a flat object."
        paths[f"{path}/generate"] = {"post": _post(f"{prefix}_generate", said, [*parameters, timeout], flat)}
        events = answer("An event for each answer.", {"type": "string"}, "text/event-stream")
        said = "An inference by a flat object, with any number of answers."
        paths[f"{path}/generate_stream"] = {"post": _post(f"{prefix}_stream", said, [*parameters, timeout], events)}
    return paths


def _ready() -> Json:
    fields = {"name": text("The model."), "ready": flag("Whether it is."), "error": text("Why not.")}
    lacking: Json = {"models": {"type": "object"}, "reason": text("Of the whole server.")}
    return record("Readiness.", {**fields, **lacking}, ("name", "error", *lacking))


def _metadata() -> Json:
    tensors = listed({"type": "object"}, "Name, datatype, shape.")
    versions = listed(text("A version."), "Those that are ready.")
    fields = {"name": text("Its name."), "versions": versions, "platform": text("What runs it.")}
    return record("A model.", {**fields, "inputs": tensors, "outputs": tensors})


def _read(name: str, said: str, schema: Json, *statuses: int, of: Any = ()) -> Json:
    responses = {"200": answer("So it is.", schema), **_refusals(400, 413, *statuses)}
    if 503 in statuses and "ready" in schema.get("properties", {}):
        responses["503"] = answer("It is not.", schema)
    return {"get": operation(name, said, list(of), responses)}


def _post(name: str, said: str, parameters: list[Json], good: Json) -> Json:
    body: Json = {
        "content": {JSON: {"schema": {"type": "object"}}, BYTES: {"schema": {"type": "string", "format": "binary"}}}
    }
    return operation(name, said, parameters, {"200": good, **_refusals(*INFERENCE_STATUSES)}, body)


def _inference() -> Json:
    good = answer("The outputs: as JSON, or with raw tensors behind it. A handler answers what it likes.", {})
    good["content"]["*/*"] = {"schema": {}}
    return good


def _refusals(*statuses: int) -> Json:
    either = {"anyOf": [ref("V2Error"), ref("Error")]}
    return {str(status): answer("A refusal.", either) for status in statuses}

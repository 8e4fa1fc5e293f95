"""The parts that the OpenAPI documents are made of: schemas, parameters, answers. Pure; openapi.py puts them together."""

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from ringserve.protocol.tensor import Signature, TensorSpec

Json = dict[str, Any]

JSON = "application/json"
BYTES = "application/octet-stream"
INT_MAX = 2**31 - 1
NAME_CHARS_MAX = 256

_WHOLE_TYPES = {"int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"}
_ERRORS = {
    400: "A parameter, the body or the message itself is not what this operation takes.",
    403: "The operation is not allowed on this version.",
    404: "There is no such model, version or archive.",
    405: "The operation is switched off, or the path has no such method.",
    408: "It took longer than it may.",
    409: "This version of the model is registered already.",
    413: "The body is longer than `max_request_size`.",
    500: "The server or the model failed.",
    503: "No worker serves the model, its queue is full, the model failed, or the server is shutting down.",
    504: "The request waited for longer than it may.",
    507: "The model, or the server for it, ran out of memory.",
}


def ref(schema: str) -> Json:
    return {"$ref": f"#/components/schemas/{schema}"}


def text(description: str, **more: Any) -> Json:
    return {"type": "string", "description": description, **more}


def whole(description: str, minimum: int = 0, maximum: int = INT_MAX, **more: Any) -> Json:
    return {"type": "integer", "description": description, "minimum": minimum, "maximum": maximum, **more}


def flag(description: str, **more: Any) -> Json:
    return {"type": "boolean", "description": description, **more}


def listed(items: Json, description: str, **more: Any) -> Json:
    return {"type": "array", "items": items, "description": description, **more}


def record(description: str, fields: Mapping[str, Json], optional: Sequence[str] = ()) -> Json:
    """An object with these fields and no others; all of them are there but for the optional ones."""
    required = [name for name in fields if name not in optional]
    described = {"type": "object", "description": description, "properties": dict(fields)}
    return {**described, **({"required": required} if required else {}), "additionalProperties": False}


# ---- parameters and bodies


def parameter(place: str, name: str, schema: Json, *, required: bool = False) -> Json:
    """In the path, the query or a header. The description moves from the schema to the parameter."""
    bare = {key: value for key, value in schema.items() if key != "description"}
    found = {"name": name, "in": place, "description": schema["description"], "schema": bare}
    return {**found, "required": True} if required or place == "path" else found


MODEL = parameter("path", "model_name", text("A model.", minLength=1, maxLength=NAME_CHARS_MAX))
VERSION = parameter("path", "model_version", text("A version of it.", minLength=1, maxLength=NAME_CHARS_MAX))
MODEL_PATHS = ("/{model_name}", "/{model_name}/{model_version}")


def operation(
    name: str, description: str, parameters: Sequence[Json], answers: Json, body: Json | None = None, **more: Any
) -> Json:
    """One method of one path, which is called `name`."""
    found = {"description": description, "operationId": name, "parameters": list(parameters), **more}
    return {**found, **({} if body is None else {"requestBody": body}), "responses": answers}


def json_body(description: str, schema: Json) -> Json:
    return {"description": description, "content": {JSON: {"schema": schema}}}


# ---- answers


def answer(description: str, schema: Json, content_type: str = JSON) -> Json:
    return {"description": description, "content": {content_type: {"schema": schema}}}


def errors(*statuses: int) -> Json:
    """Refusals, which are the same everywhere. Any request may be refused with 400."""
    return {str(status): {"$ref": f"#/components/responses/{_phrase(status)}"} for status in sorted({400, *statuses})}


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase.replace(" ", "")


def _refusal(status: int) -> Json:
    described = answer(_ERRORS[status], ref("Error"))
    if status == 503:
        described["headers"] = {
            "Retry-After": {"description": "Seconds, where it is known.", "schema": whole("Seconds.")}
        }
    return described


# ---- what models take and give


def row_schema(spec: TensorSpec) -> Json:
    """One row of a tensor in JSON: nested lists."""
    kind = "boolean" if spec.dtype == "bool" else "integer" if spec.dtype in _WHOLE_TYPES else "number"
    schema: Json = {"type": kind}
    for size in reversed(spec.shape):
        schema = {"type": "array", "items": schema, "minItems": size, "maxItems": size}
    return {**schema, "description": f"{spec.dtype}{list(spec.shape)}"}


def model_input(signature: Signature) -> Json:
    """The body of a prediction: anything, unless the model has declared its inputs."""
    if not signature.typed:
        return {"description": "What the handler takes.", "content": {"*/*": {"schema": {}}}}
    declared = ", ".join(map(str, signature.inputs))
    fields = {spec.name: row_schema(spec) for spec in signature.inputs}
    content = {
        JSON: {"schema": record("One row of every input.", fields)},
        BYTES: {"schema": {"type": "string", "format": "binary"}},
    }
    size = f"{signature.input_row_bytes} bytes"
    return {"description": f"{declared}: JSON, a form, or {size}, little-endian.", "required": True, "content": content}


def model_output(signature: Signature) -> Json:
    if not signature.typed:
        return answer("What the handler answered. It may set any other status as well.", {}, "*/*")
    fields = {spec.name: row_schema(spec) for spec in signature.outputs}
    described = answer("One row of every output.", record("By name.", fields))
    described["content"][BYTES] = {"schema": {"type": "string", "format": "binary"}}
    return described


# ---- components


def components() -> Json:
    """What the operations refer to."""
    return {
        "schemas": {
            "Error": record(
                "Every refusal, on every route.",
                {
                    "code": whole("The HTTP status.", 400, 599),
                    "type": text("The kind of error, by the name that TorchServe has for it."),
                    "message": text("What is wrong, for people."),
                },
            ),
            "V2Error": record("A refusal of the Open Inference Protocol.", {"error": text("What is wrong.")}),
            "Status": record("What was done.", {"status": text("A sentence.")}),
            "Ping": record("TorchServe's health.", {"status": text("In a word.", enum=["Healthy", "Unhealthy"])}),
            "Probe": _probe(),
            "Readiness": record("KServe's.", {"name": text("The model."), "ready": flag("Whether it can answer.")}),
            "Document": {"type": "object", "description": "An OpenAPI 3.0 document.", "required": ["openapi", "paths"]},
            **_management_schemas(),
        },
        "responses": {_phrase(status): _refusal(status) for status in _ERRORS},
    }


def _probe() -> Json:
    versions = {"type": "object", "description": "By version.", "additionalProperties": {"type": "string"}}
    fields = {
        "status": text("`live`, `started` or `ready`, and with `not ` in front the opposite."),
        "reason": text("Why not, where it is not a model's fault."),
        "models": {"type": "object", "description": "What is missing, by model.", "additionalProperties": versions},
    }
    return record("The answer to a probe.", fields, optional=("reason", "models"))


def _management_schemas() -> Json:
    model = record("A model's default version.", {"modelName": text("Its name."), "modelUrl": text("Its source.")})
    page = {
        "nextPageToken": text("The `next_page_token` of the next page; absent on the last."),
        "models": listed(model, "Sorted by name.", maxItems=100),
    }
    queue = {
        "remainingCapacity": {"type": "integer", "description": "How many more requests may wait."},
        "pendingRequests": whole("How many wait for a worker."),
    }
    return {
        "ModelList": record("One page.", page, optional=("nextPageToken",)),
        "ModelDescription": _model_description(),
        "ServerStatus": _server_status(),
        "Worker": _worker(),
        "WorkflowList": record("Always empty.", {"workflows": listed({"type": "object"}, "None.", maxItems=0)}),
        "JobQueueStatus": record("The queue of one version.", queue),
        "RepositoryFile": {
            "type": "object",
            "description": "A file of the model repository.",
            "properties": {
                "file": text("Its path."),
                "model": text("The model that it claims to be.", nullable=True),
                "version": text("The version, where it is known.", nullable=True),
                "state": text("What was made of it."),
                "reason": text("Why it is not served.", nullable=True),
                "since": text("When that began to be so, in UTC."),
            },
        },
    }


def _server_status() -> Json:
    fields = {
        "model": text("The model."),
        "version": text("The version."),
        "default": flag("Whether it is the model's default version."),
        "state": text("In a word.", enum=["ready", "idle", "loading", "degraded", "failed"]),
        "workersReady": whole("How many workers have loaded."),
        "minWorkers": whole("Fewest workers wanted."),
        "maxWorkers": whole("Most workers wanted."),
        "devices": listed({"type": "string"}, "Where its workers are."),
        "source": text("The url as it was registered."),
        "reason": text("Why it has no workers."),
    }
    version = record("One version of a model.", fields, optional=("reason",))
    files = listed(ref("RepositoryFile"), "The files that are not served.")
    return record("The server at one moment.", {"models": listed(version, "Sorted."), "repository": files})


def _worker() -> Json:
    fields = {
        "id": text("Its number.", pattern="^[0-9]+$"),
        "startTime": text("Local time with a Z, as TorchServe writes it."),
        "status": text("`READY` once the model has loaded.", enum=["READY", "UNLOADING"]),
        "memoryUsage": {"type": "integer", "format": "int64", "description": "Bytes of resident memory.", "minimum": 0},
        "pid": whole("The process; -1 before there is one.", -1),
        "gpu": flag("Whether it runs on a GPU."),
        "gpuUsage": text("`N/A` on a processor."),
    }
    memory = {"type": "integer", "format": "int64", "minimum": 0}
    optional = {
        "device": text("The GPU that it runs on."),
        "deviceMemoryTotal": {**memory, "description": "Bytes of that."},
        "deviceMemoryUsed": {**memory, "description": "Bytes in use there, by all processes."},
    }
    return record("One worker process.", {**fields, **optional}, optional=tuple(optional))


def _model_description() -> Json:
    # More than TorchServe's, where it is set: ours come under names of their own, so the object is open.
    fields: dict[str, Json] = {
        "modelName": text("The model."),
        "modelVersion": text("The version."),
        "modelUrl": text("The url as it was registered."),
        "runtime": text("Who runs the handler."),
        "minWorkers": whole("Fewest workers wanted."),
        "maxWorkers": whole("Most workers wanted."),
        "batchSize": whole("Most requests in one batch.", 1),
        "maxBatchDelay": {
            "type": "integer",
            "description": "How long a batch waits for more requests, in milliseconds.",
        },
        "responseTimeout": {"type": "integer", "description": "Seconds that a batch may take."},
        "startupTimeout": {"type": "integer", "description": "Seconds that loading may take."},
        "maxRetryTimeoutInSec": {"type": "integer", "description": "TorchServe's."},
        "clientTimeoutInMills": {"type": "integer", "description": "How long a client waits, 0 for ever."},
        "parallelType": text("How the model is spread over devices; empty when it is not."),
        "parallelLevel": {"type": "integer", "description": "Over how many devices it is spread."},
        "deviceType": text("Where it runs.", enum=["cpu", "gpu"]),
        "continuousBatching": flag("TorchServe's."),
        "useJobTicket": flag("TorchServe's."),
        "useVenv": flag("Whether it has a Python environment of its own."),
        "stateful": flag("Whether it serves sequences."),
        "sequenceMaxIdleMSec": {"type": "integer", "description": "TorchServe's."},
        "sequenceTimeoutMSec": {"type": "integer", "description": "TorchServe's."},
        "maxNumSequence": {"type": "integer", "description": "TorchServe's."},
        "maxSequenceJobQueueSize": {"type": "integer", "description": "TorchServe's."},
        "loadedAtStartup": flag("Whether it was asked for when the server started."),
        "workers": listed(ref("Worker"), "Its processes."),
        "jobQueueStatus": ref("JobQueueStatus"),
    }
    optional = {
        "queueTimeout": whole("Seconds that a request may wait for a worker, where it is limited."),
        "deviceIds": listed({"type": "integer"}, "Devices, where they were chosen."),
        "customizedMetadata": {"type": "object", "description": "The handler's own answer, where it was asked for."},
        "repository": listed(ref("RepositoryFile"), "Files that claim to be this model, where a folder is watched."),
    }
    return {
        "type": "object",
        "description": "One version of a model.",
        "required": list(fields),
        "properties": {**fields, **optional},
    }

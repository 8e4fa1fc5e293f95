"""The inference routes of the OpenAPI documents: those of any model, and those of one with what it takes and gives. Pure.

TorchServe calls three of its operations `predictions`; here `/predictions/{model_name}` has that name, and the others have names of
their own.
"""

from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import quote

from ringserve.protocol.tensor import Signature
from ringserve.server.openapi_schemas import (
    INT_MAX,
    MODEL,
    MODEL_PATHS,
    NAME_CHARS_MAX,
    VERSION,
    Json,
    answer,
    errors,
    model_input,
    model_output,
    operation,
    parameter,
    ref,
    text,
    whole,
)
from ringserve.server.openapi_v2 import open_inference_paths

_REST = parameter("path", "url_path", text("Handed to the handler as the header `url_path`.", minLength=1))
_NAME = parameter(
    "query", "model_name", text("A model; the one that was loaded at start-up.", maxLength=NAME_CHARS_MAX)
)
_TIMEOUT = parameter("header", "x-request-timeout-ms", whole("How long the client waits for the answer.", 1, INT_MAX))
_ANY_METHOD = "Any other method but OPTIONS does the same."
_QUERY = "Parameters of the query are inputs beside the body."

# Path, operation id, parameters in it, what is done.
_Route = tuple[str, str, Sequence[Json], str]


def inference_paths() -> Json:
    """Of any model."""
    untyped = Signature()
    document = {"200": answer("The document.", ref("Document")), **errors(404, 413, 500)}
    ping = {
        "200": answer("Every version has the workers it was promised.", ref("Ping")),
        **errors(413),
        "500": answer("Some version has not.", ref("Ping")),
    }
    paths: Json = {"/ping": {"get": operation("ping", "TorchServe's health check.", [], ping)}}
    for path, name, parameters, said in _routes():
        paths[path] = {
            "post": operation(
                name, f"{said} {_ANY_METHOD}", [*parameters, _TIMEOUT], _answers(untyped), model_input(untyped)
            ),
            "options": operation(f"{name}Description", "The document of a model.", parameters, document),
        }
    for path, operations in open_inference_paths(_TIMEOUT).items():
        paths[path] = {**paths.get(path, {}), **operations}
    workflow = parameter("path", "workflow_name", text("A workflow.", minLength=1))
    said = "Workflows are not supported: none is found."
    paths["/wfpredict/{workflow_name}"] = {
        "post": operation("workflowPredictions", said, [workflow], errors(404, 413, 500))
    }
    return paths


def model_inference_paths(model: str, default_version: str, versions: Mapping[str, Signature]) -> Json:
    """Of one model: what each of `versions` takes and gives. A model that declares its inputs explains nothing."""
    name, paths = quote(model, safe=""), {}
    for version, signature in versions.items():
        ways = {"predictions": "A prediction"}
        if not signature.typed:
            ways["explanations"] = "An explanation"
        for way, what in ways.items():
            label = "" if way == "predictions" else f":{way}"
            said = f"{what} of version {version} of {model}."
            path = f"/{way}/{name}/{quote(version, safe='')}"
            paths[path] = _of_model(f"{model}:{version}{label}", said, signature)
            if version == default_version:
                said = f"{what} of the default version of {model}."
                paths[f"/{way}/{name}"] = _of_model(f"{model}{label}", said, signature)
        if version == default_version:
            said = f"A prediction of the default version of {model}, as KServe asks for it."
            for path, label in ((f"/v1/models/{name}:predict", "v1"), (f"/v2/models/{name}/infer", "v2")):
                paths[path] = _of_model(f"{model}:{label}", said, signature)
    return paths


def _of_model(name: str, said: str, signature: Signature) -> Json:
    return {"post": operation(name, said, [_TIMEOUT], _answers(signature), model_input(signature))}


def _answers(signature: Signature) -> Json:
    return {"200": model_output(signature), **errors(404, 408, 413, 500, 503, 504, 507)}


def _routes() -> Iterator[_Route]:
    for way, what in (("predictions", "A prediction"), ("explanations", "An explanation")):
        yield f"/{way}{MODEL_PATHS[0]}", way, [MODEL], f"{what} of the default version of a model."
        yield f"/{way}{MODEL_PATHS[1]}", f"version_{way}", [MODEL, VERSION], f"{what} of one version of a model."
        said = f"{what} of one version, with a path of its own."
        yield f"/{way}{MODEL_PATHS[1]}/{{url_path}}", f"path_{way}", [MODEL, VERSION, _REST], said
    for way in ("predict", "explain"):
        said = f"KServe's {way}, of the default version of a model."
        yield f"/v1/models/{{model_name}}:{way}", f"v1_{way}", [MODEL], said
        verb = "infer" if way == "predict" else way
        yield f"/v2/models/{{model_name}}/{verb}", f"v2_{verb}", [MODEL], said
    said = "KServe's predict, of one version."
    yield "/v2/models/{model_name}/versions/{model_version}/infer", "v2_version_infer", [MODEL, VERSION], said
    yield "/invocations", "invocations", [_NAME], f"SageMaker's invocation. {_QUERY}"
    yield "/models/{model_name}/invoke", "invoke", [MODEL], f"SageMaker's invocation of one of several models. {_QUERY}"
    said = f"TorchServe's oldest route. {_QUERY}"
    yield f"{MODEL_PATHS[0]}/predict", "predict", [MODEL], said
    yield f"{MODEL_PATHS[1]}/predict", "version_predict", [MODEL, VERSION], said

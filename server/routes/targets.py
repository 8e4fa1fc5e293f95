"""Which model a request means, which version of it, and what its address adds to it (contract section 1.2). Pure.

    /predictions/{model}[/{version}[/{rest}]]     handlers see `explain` and `url_path`
    /explanations/{model}[/{version}[/{rest}]]
    /v1/models/{model}:predict  :explain          KServe: handlers see `explain`
    /v2/models/{model}/infer    /explain
    /invocations?model_name={model}               SageMaker: handlers see neither, the query brings inputs
    /models/{model}/invoke
    /{model}[/{version}]/predict                  TorchServe's oldest, the same

The usual ones of these lie in the `RouteTable` as they are; `asked_for` reads any of them, escapes and trailing slashes too.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple
from urllib.parse import unquote

from ringserve.protocol.errors import BadRequest, ModelNotFound, VersionNotFound
from ringserve.protocol.request import FormPart
from ringserve.server.forms import parse_query
from ringserve.server.routing import KSERVE, RouteTable, Target

NAMING_FIELD = "model_name"
NAME_CHARS_MAX = 256  # that an answer repeats: a form may bring a name of megabytes
NO_WORKER = (
    "has no worker to serve inference request. Please use scale workers API to add workers. If this is a sequence inference,"
    " please check if it is closed, or expired; or exceeds maxSequenceJobQueueSize"
)
# What no model can be called who is asked by `/{model}/predict`: other routes begin so.
_NOT_MODELS = frozenset(("api-description", "health", "invocations", "models", "ping", "v1", "v2"))


class Asked(NamedTuple):
    """What a path says: a model, "" where it names none, and a version, None where it names none. `with_query`: the query brings
    inputs, and may name the model."""

    model: str
    version: str | None = None
    headers: Mapping[str, str] = {}
    explains: bool = False
    with_query: bool = False


def asked_for(path: str) -> Asked | None:
    """What the path of an inference route says, None for any other path. `path` is as the client wrote it, without the query."""
    match _segments(path):
        case ["predictions" | "explanations" as first, model, *more]:
            explains = first == "explanations"
            headers = {"explain": str(explains), "url_path": "/".join(more[1:])}
            return Asked(model, more[0] if more else None, headers, explains)
        case ["v1", "models", last]:
            model, colon, verb = last.rpartition(":")
            return Asked(model, None, KSERVE[verb], verb == "explain") if colon and verb in KSERVE else None
        case ["v2", "models", model, "infer"]:
            return Asked(model, None, KSERVE["predict"])
        case ["v2", "models", model, "versions", version, "infer"]:
            return Asked(model, version, KSERVE["predict"])
        case ["v2", "models", model, "explain"]:
            return Asked(model, None, KSERVE["explain"], explains=True)
        case ["invocations"]:
            return Asked("", with_query=True)
        case ["models", model, "invoke"]:
            return Asked(model, with_query=True)
        case [model, *version, "predict"] if model and len(version) < 2 and model not in _NOT_MODELS:
            return Asked(model, version[0] if version else None, with_query=True)
    return None


def query_inputs(asked: Asked, url: bytes) -> list[FormPart]:
    """The parameters of the query of `url`, where they are inputs. Raises `BadRequest`."""
    return parse_query(url.partition(b"#")[0].partition(b"?")[2]) if asked.with_query else []


def name_in(fields: Iterable[FormPart]) -> str:
    """The model that is named by fields of a query or a form, "" where none is."""
    named = (field.data for field in fields if field.name == NAMING_FIELD)
    return next(named, b"").decode("utf-8", "replace")


def find(table: RouteTable, asked: Asked, name: str, query: Sequence[FormPart] = ()) -> Target:
    """Who answers what was asked of model `name`, which "" leaves open: then of the only one there is. Raises `ModelNotFound`, `VersionNotFound`, or
    `BadRequest` where nobody can know whom the client means."""
    if not name and asked.with_query:
        if len(table.models) != 1:
            raise BadRequest(f"Parameter {NAMING_FIELD} is required.")
        name = next(iter(table.models))
    model = table.models.get(name)
    if model is None:
        raise ModelNotFound(f"Model not found: {name[:NAME_CHARS_MAX]}")
    version = model.default_version if asked.version is None else asked.version
    dispatcher = model.versions.get(version)
    if dispatcher is None:
        raise VersionNotFound(f"Model version: {version} does not exist for model: {name}")
    named = asked.version is not None
    return Target(dispatcher, name, version, named, asked.headers, asked.explains, query)


def handler_headers(headers: Iterable[tuple[str, str]], target: Target) -> dict[str, str]:
    """What a handler may see: the last of a header sent twice, and what TorchServe adds. What the client expects of the server
    has been answered."""
    seen = dict(headers)
    seen.pop("expect", None)
    seen.update(target.headers)
    return seen


def no_worker_text(target: Target) -> str:
    """In TorchServe's own words, with its stray quote."""
    if target.named:
        return f'Model "{target.model}" Version {target.version}" {NO_WORKER}'
    return f'Model "{target.model}" {NO_WORKER}'


def _segments(path: str) -> list[str]:
    segments = unquote(path.removeprefix("/")).split("/")
    while segments and not segments[-1]:
        segments.pop()
    return segments

"""How a model is served whose configuration is in Triton's words (server/model_configuration/): which backend runs it, and what of it
stands for the keys of TorchServe and of ours."""

from collections.abc import Mapping
from typing import Any

from ringserve.protocol.errors import InvalidModel
from ringserve.server.model_configuration.configuration import Configuration, configure
from ringserve.server.model_configuration.fields import BACKEND_OF_PLATFORM, NESTED, fields_of
from ringserve.server.scheduling.rules import Scheduling

CONFIG_FILE = "config.pbtxt"
QUEUE_SIZE_MAX = 2**31 - 1  # as of jobQueueSize
HANDLER, TORCHSCRIPT, PYTHON, TRITON = "handler", "torchscript", "python", "triton"
# Triton's word of a backend -> ours. Its python backend runs classes of Triton's, ours of our own.
_OF_TRITON = {"python": TRITON, "pytorch": TORCHSCRIPT, HANDLER: HANDLER, TORCHSCRIPT: TORCHSCRIPT, TRITON: TRITON}
_IN_TRITON = {TRITON: "python", PYTHON: "python", TORCHSCRIPT: "pytorch"}
_CLASSIC = "no other backend of Triton's is served by this version"


def triton_configuration(raw: Mapping[str, Any], own: str | None, file_name: str) -> tuple[Configuration, str] | None:
    """The configuration, and our word for what runs the model; None where nothing is said in Triton's words. `own` is what
    `backend` of model-config.yaml says, if anything. Raises `InvalidModel`."""
    said = fields_of(raw, file_name)
    if said is None:
        return None
    where = CONFIG_FILE if NESTED in raw and "." in file_name else file_name  # or the parameter of a repository load
    backend = _backend(said, own, where)
    said["backend"] = in_triton(backend)
    return configure(said, where), backend


def in_triton(backend: str) -> str:
    """What Triton calls one of our backends."""
    return _IN_TRITON.get(backend, backend)


def _backend(said: Mapping[str, Any], own: str | None, where: str) -> str:
    """Raises `InvalidModel` for a backend of Triton's that is not served, and where two are meant."""
    found = own or HANDLER
    for key, value in (("platform", said.get("platform")), ("backend", said.get("backend"))):
        if not value:
            continue
        word = str(value) if key == "backend" else BACKEND_OF_PLATFORM.get(str(value), "")
        ours = _OF_TRITON.get(word)
        if ours is None:
            accepted = ", ".join(BACKEND_OF_PLATFORM) if key == "platform" else "python, pytorch"
            raise InvalidModel(f"{where}: {key}: expected one of {accepted}, got {value!r:.100}: {_CLASSIC}")
        if own is not None and own != ours:
            raise InvalidModel(
                f"{where}: {key}: expected what the backend {own!r} of model-config.yaml runs, got {value!r}"
            )
        found = ours
    return found


def served_so(triton: Configuration, backend: str, workers: int, file_name: str) -> dict[str, Any]:
    """The fields of `ModelConfig` that the configuration decides; `workers` 0 leaves their number to the server. Raises `InvalidModel` where the backend cannot do what it asks for."""
    decided: dict[str, Any] = {"triton": triton, "batch_size": triton.batch_size}
    if triton.device_type is not None:
        decided["device_type"] = triton.device_type
    if workers:
        decided |= {"min_workers": workers, "max_workers": workers, "per_gpu": triton.per_gpu}
    rules = triton.scheduling
    if triton.reshapes and backend != TRITON:
        raise InvalidModel(
            f"{file_name}: reshape: is not served by this version for the backend {backend}: only models of Triton's Python backend see other shapes than clients"
        )
    delay_ms = -(-rules.queue_delay_us_max // 1000)
    if backend != HANDLER:
        shown = {"max_batch_delay_ms": delay_ms}  # what describe says: front ends go by the rules
        return decided | shown | {"signature": triton.signature, "scheduling": rules}
    if rules.sequences is not None or triton.signature.decoupled:
        asked = "sequence_batching" if rules.sequences is not None else "model_transaction_policy.decoupled"
        raise InvalidModel(f"{file_name}: {asked}: expected a backend of tensors, got a handler")
    if rules.queue_delay_us_max:
        decided |= {"batching": "fill", "max_batch_delay_ms": delay_ms}
    return decided


def queue_size_min(rules: Scheduling | None) -> int:
    """Places that a queue needs at least, so that no level of its configuration is cut short."""
    if rules is None:
        return 1
    levels = range(1, rules.priority_levels + 1) or (0,)
    waiting = sum(rules.policy_of(level).queue_size_max for level in levels)
    return min(QUEUE_SIZE_MAX, max(rules.batch_size_max, waiting))

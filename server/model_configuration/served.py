"""What workers and front ends are told of a version's configuration."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import msgspec
import orjson

from ringserve.protocol.errors import Internal, InvalidModel
from ringserve.protocol.tensor import Signature
from ringserve.server.control import Loaded
from ringserve.server.model_configuration.completion import complete
from ringserve.server.model_configuration.configuration import Configuration
from ringserve.server.model_configuration.fields import NESTED
from ringserve.server.model_configuration.synthesis import synthesized
from ringserve.server.registry import ModelVersion
from ringserve.server.repository.triton_config import in_triton
from ringserve.server.served_model import ServedModel

STRICT = "triton_strict"  # backends/triton_backend.py


def config_for_worker(version: ModelVersion, *, on_gpus: bool, strict: bool = False) -> dict[str, Any]:
    """The model's configuration as its own code sees it: with the one that Triton would show, where it is in Triton's words. `strict`:
    its code is not asked to add to it."""
    config = version.unpacked.config
    if config.triton is None:
        return config.raw
    shown = shown_fields(config.triton, version.name, on_gpus=on_gpus)
    return {**config.raw, NESTED: shown, **({STRICT: True} if strict else {})}


def shown_fields(triton: Configuration, name: str, *, on_gpus: bool) -> dict[str, Any]:
    """What GET .../config says."""
    return named(triton.fields, name, alone="instance_group" not in triton.said, on_gpus=on_gpus)


def named(fields: Mapping[str, Any], name: str, *, alone: bool, on_gpus: bool) -> dict[str, Any]:
    """Printed `fields` with the model's name, and with names and kinds of device for the groups of instances that have none.
    `alone`: nobody has asked for groups, so the one there is is called as the model."""
    groups = []
    for index, group in enumerate(fields["instance_group"]):
        kind = ("KIND_GPU" if on_gpus else "KIND_CPU") if group["kind"] == "KIND_AUTO" else group["kind"]
        own = name if alone else f"{name}_{index}"
        groups.append({**group, "name": group["name"] or own, "kind": kind})
    return {**fields, "name": name, "instance_group": groups}


def served_model(version: ModelVersion, *, on_gpus: bool) -> ServedModel:
    """Of a version whose `signature` is known."""
    assert version.signature is not None
    config = version.unpacked.config
    if config.triton is not None:
        fields = shown_fields(config.triton, version.name, on_gpus=on_gpus)
    else:
        fields = synthesized(
            version.name,
            in_triton(config.backend),
            version.signature,
            version.options.batch_size,
            version.min_workers,
            on_gpus=on_gpus,
        )
    return ServedModel(
        config_json=orjson.dumps(fields),
        platform=fields["platform"] or fields["backend"],
        max_batch_size=fields["max_batch_size"],
        labels=dict(version.unpacked.labels),
    )


def take_loaded(version: ModelVersion, loaded: Loaded, worker_id: str, *, on_gpus: bool) -> None:
    """What its first worker said of the model, when it had loaded it, becomes the version's; the others must say the same. Raises
    `Internal`, and `InvalidModel` for what makes no sense."""
    signature = _completed(version, loaded.signature, loaded.completed)
    if version.signature is None:
        version.signature = signature
        version.served = served_model(version, on_gpus=on_gpus)
    elif version.signature != signature:
        raise Internal(f"Worker {worker_id} declares other inputs and outputs than the workers before it.")


def _completed(version: ModelVersion, signature: Signature, completed: Mapping[str, Any] | None) -> Signature:
    """The signature that all go by, when tensors, batches and scheduling are those that the model's own code has made of them."""
    config = version.unpacked.config
    if completed is None or config.triton is None:
        return signature
    triton = complete(config.triton, completed)
    if triton is config.triton:
        return signature
    if triton.batch_size > config.triton.batch_size and version.signature is not None:
        raise InvalidModel(f"max_batch_size: expected {config.triton.batch_size}, as before, got {triton.batch_size}")
    changed = msgspec.structs.replace(
        config, triton=triton, batch_size=triton.batch_size, signature=triton.signature, scheduling=triton.scheduling
    )
    version.unpacked = replace(version.unpacked, config=changed)
    version.options = replace(version.options, batch_size=triton.batch_size)
    return msgspec.structs.replace(triton.signature, ragged=signature.ragged)

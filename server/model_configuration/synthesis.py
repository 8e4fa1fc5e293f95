"""The configuration of a model that nobody has configured in Triton's words, as Triton would show it. Nothing of protobuf is needed."""

from typing import Any

from ringserve.protocol.tensor import Signature
from ringserve.server.model_configuration.completion import tensor_fields
from ringserve.server.model_configuration.fields import FILE_NAMES, PLATFORMS

_PINNED = {"enable": True}


def synthesized(
    name: str, backend: str, signature: Signature, batch_size: int, workers: int, *, on_gpus: bool
) -> dict[str, Any]:
    """`backend` is Triton's word. A model that takes batches has them put together by the server."""
    size = batch_size if signature.batches else 0
    fields: dict[str, Any] = {
        "name": name,
        "platform": PLATFORMS.get(backend, ""),
        "backend": backend,
        "runtime": "",
        "version_policy": {"latest": {"num_versions": 1}},
        "max_batch_size": size,
        "input": [_input(each) for each in signature.inputs],
        "output": [_output(each) for each in signature.outputs],
        "batch_input": [],
        "batch_output": [],
        "optimization": {
            "priority": "PRIORITY_DEFAULT",
            "input_pinned_memory": _PINNED,
            "output_pinned_memory": _PINNED,
            "gather_kernel_buffer_threshold": 0,
            "eager_batching": False,
        },
    }
    if size:
        fields["dynamic_batching"] = {
            "preferred_batch_size": [size],
            "max_queue_delay_microseconds": 0,
            "preserve_ordering": False,
            "priority_levels": 0,
            "default_priority_level": 0,
            "priority_queue_policy": {},
        }
    fields |= {
        "instance_group": [_group(name, max(1, workers), on_gpus)],
        "default_model_filename": FILE_NAMES.get(backend, ""),
        "cc_model_filenames": {},
        "metric_tags": {},
        "parameters": {},
        "model_warmup": [],
    }
    if signature.decoupled:
        fields["model_transaction_policy"] = {"decoupled": True}
    return fields


def _input(spec: Any) -> dict[str, Any]:
    fields = tensor_fields(spec)
    return {
        "name": fields["name"],
        "data_type": fields["data_type"],
        "format": "FORMAT_NONE",
        "dims": fields["dims"],
        "is_shape_tensor": False,
        "allow_ragged_batch": False,
        "optional": spec.optional,
        "is_non_linear_format_io": False,
    }


def _output(spec: Any) -> dict[str, Any]:
    return {**tensor_fields(spec), "label_filename": "", "is_shape_tensor": False, "is_non_linear_format_io": False}


def _group(name: str, count: int, on_gpus: bool) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "KIND_GPU" if on_gpus else "KIND_CPU",
        "count": count,
        "gpus": [],
        "secondary_devices": [],
        "profile": [],
        "passive": False,
        "host_policy": "",
    }

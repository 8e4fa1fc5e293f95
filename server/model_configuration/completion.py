"""What a model says of itself when it is loaded, added to what its configuration leaves open (contracts/open-inference.md, section 4.1)."""

from collections.abc import Mapping
from typing import Any

import msgspec

from ringserve.protocol.datatypes import DATATYPE_OF
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.model_configuration.configuration import Configuration, configure
from ringserve.server.model_configuration.datatypes import type_name

# What a model may add (`auto_complete_config`); all else is its operator's to say.
COMPLETED = ("input", "output", "max_batch_size", "dynamic_batching", "sequence_batching", "model_transaction_policy")
WHERE = "auto_complete_config"


def complete(configuration: Configuration, completed: Mapping[str, Any]) -> Configuration:
    """With what the model's own code has made of it. Raises `InvalidModel`."""
    said = {**configuration.said}
    for key in COMPLETED:
        # Of a message it counts that it is there, empty as it may be.
        if completed.get(key) or completed.get(key) == {}:
            said[key] = completed[key]
    if "sequence_batching" in configuration.said:
        said.pop("dynamic_batching", None)
    elif "dynamic_batching" in said:
        said.pop("sequence_batching", None)
    return configuration if said == configuration.said else configure(said, WHERE)


def complete_by(configuration: Configuration, signature: Signature) -> Configuration:
    """With the tensors of a declaration, where the configuration has none."""
    if configuration.signature.declared or not signature.declared:
        return configuration
    said = {
        **configuration.said,
        "input": [{**tensor_fields(each), "optional": each.optional} for each in signature.inputs],
        "output": [tensor_fields(each) for each in signature.outputs],
    }
    found = configure(said, "inputs")
    merged = msgspec.structs.replace(signature, batches=found.signature.batches, decoupled=found.signature.decoupled)
    return msgspec.structs.replace(found, signature=merged)


def tensor_fields(spec: TensorSpec) -> dict[str, Any]:
    """A declared tensor as a configuration has it. Triton knows no rows of a single number: it is one of one dimension there."""
    return {"name": spec.name, "data_type": type_name(DATATYPE_OF[spec.dtype]), "dims": list(spec.shape) or [1]}

"""What a configuration asks for that this server does not do: refused by its name where clients would be answered otherwise, and
only reported where it is about speed, memory or devices.
"""

from google.protobuf.message import Message

from ringserve.protocol.errors import InvalidModel
from ringserve.protocol.grpc.model_config_pb2 import ModelConfig

# Field of the message -> why it is not served.
_NOT_SERVED = {
    "ensemble_scheduling": "every request goes to one model",
    "batch_input": "a model of inputs of any shape gets each request by itself",
    "batch_output": "a model of inputs of any shape gets each request by itself",
    "model_operations": "no backend here loads libraries of operations",
    "model_repository_agents": "nobody here would do what an agent is to do with the model's files",
    "cc_model_filenames": "default_model_filename is one for all devices",
    "runtime": "a backend here has one runtime",
}
_SEQUENCES_NOT_SERVED = {
    "state": "a model keeps the state of its sequences itself",
    "iterative_sequence": "a request is executed once",
}
_INSTANCES_WITHOUT_EFFECT = ("rate_limiter", "secondary_devices", "profile", "host_policy", "passive")


def check_served(config: ModelConfig, where: str) -> None:
    """Raises `InvalidModel` naming the first field that asks for what this version does not serve."""
    for name, reason in _NOT_SERVED.items():
        if _said(config, name):
            raise _refused(where, name, reason)
    for name, reason in _SEQUENCES_NOT_SERVED.items():
        if _said(config.sequence_batching, name):
            raise _refused(where, f"sequence_batching.{name}", reason)


def without_effect(config: ModelConfig) -> tuple[str, ...]:
    """The fields that are said and change nothing here, by their paths."""
    said = config.optimization
    found = [f"optimization.{field.name}" for field in said.DESCRIPTOR.fields if _said(said, field.name)]
    for index, group in enumerate(config.instance_group):
        found += [f"instance_group[{index}].{name}" for name in _INSTANCES_WITHOUT_EFFECT if _said(group, name)]
    for kind, tensors in (("input", config.input), ("output", config.output)):
        for index, tensor in enumerate(tensors):
            names = [name for name in ("format", "is_shape_tensor", "is_non_linear_format_io") if _said(tensor, name)]
            found += [f"{kind}[{index}].{name}" for name in names]
    if config.response_cache.enable:
        found.append("response_cache.enable")
    if config.model_warmup and (config.HasField("sequence_batching") or config.model_transaction_policy.decoupled):
        found.append("model_warmup")
    if config.HasField("model_metrics"):
        found.append("model_metrics")
    return tuple(found)


def _said(message: Message, name: str) -> bool:
    field = message.DESCRIPTOR.fields_by_name.get(name)
    if field is None:  # of inputs only
        return False
    if field.message_type is not None and not field.is_repeated:
        return bool(message.HasField(name))
    value = getattr(message, name)
    return bool(value) if field.is_repeated else bool(value != field.default_value)


def _refused(where: str, name: str, reason: str) -> InvalidModel:
    return InvalidModel(f"{where}: {name}: is not served by this version: {reason}")

"""What this server makes of a model configuration: tensors, batches, workers and where they run, which versions."""

from typing import NamedTuple

from ringserve.protocol.datatypes import DTYPES
from ringserve.protocol.grpc.model_config_pb2 import (
    TYPE_BOOL,
    TYPE_FP32,
    TYPE_INT32,
    ModelConfig,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelQueuePolicy,
    ModelSequenceBatching,
)
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.model_configuration.datatypes import datatype_of, dtype_of
from ringserve.server.model_configuration.scheduling_checks import KINDS
from ringserve.server.scheduling.rules import (
    CORRID,
    TIME_US_MAX,
    Control,
    QueuePolicy,
    Scheduling,
    SequenceScheduling,
)

# Triton's, where `oldest` does not say.
CANDIDATES_DEFAULT = 4


class Instances(NamedTuple):
    """How many workers and where: on `devices`, one after the other and from the start again; where there are none, anywhere of
    `device_type`. `per_gpu`: as many on each GPU."""

    workers: int
    devices: tuple[str, ...] = ()
    device_type: str | None = None
    per_gpu: bool = False


def batch_size_of(config: ModelConfig) -> int:
    """Items of one batch; 1 where the model does not batch."""
    return max(1, config.max_batch_size)


def signature_of(config: ModelConfig) -> Signature:
    """With the control tensors last, as inputs that no client may send."""
    sequences = scheduling_of(config).sequences
    controls = () if sequences is None else sequences.controls
    inputs = tuple(_spec(tensor, optional=tensor.optional) for tensor in config.input)
    inputs += tuple(TensorSpec(each.name, DTYPES[each.datatype], (1,), optional=True) for each in controls)
    return Signature(
        inputs if config.input else (),
        tuple(_spec(tensor, optional=False) for tensor in config.output),
        batches=config.max_batch_size > 0,
        decoupled=config.model_transaction_policy.decoupled,
        ragged=any(tensor.allow_ragged_batch for tensor in config.input),
    )


def _spec(tensor: ModelInput | ModelOutput, *, optional: bool) -> TensorSpec:
    return TensorSpec(tensor.name, dtype_of(tensor.data_type), tuple(tensor.dims), optional)


def scheduling_of(config: ModelConfig) -> Scheduling:
    """The rules that front ends go by."""
    if config.HasField("sequence_batching"):
        return Scheduling(batch_size_of(config), batches=True, sequences=_sequences_of(config))
    if not config.HasField("dynamic_batching"):
        return Scheduling(batch_size_of(config))
    batching = config.dynamic_batching
    levels = batching.priority_levels
    return Scheduling(
        batch_size_of(config),
        batches=config.max_batch_size > 0,
        preferred_batch_sizes=tuple(sorted(set(batching.preferred_batch_size))),
        queue_delay_us_max=min(batching.max_queue_delay_microseconds, TIME_US_MAX),
        preserve_ordering=batching.preserve_ordering,
        priority_levels=levels,
        default_priority_level=batching.default_priority_level if levels else 0,
        default_policy=_policy(batching.default_queue_policy),
        policies={level: _policy(policy) for level, policy in sorted(batching.priority_queue_policy.items())},
        ragged_inputs=tuple(tensor.name for tensor in config.input if tensor.allow_ragged_batch),
    )


def _policy(policy: ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        policy.max_queue_size,
        min(policy.default_timeout_microseconds, TIME_US_MAX),
        delays=policy.timeout_action == ModelQueuePolicy.DELAY,
        overridable=policy.allow_timeout_override,
    )


def _sequences_of(config: ModelConfig) -> SequenceScheduling:
    batching = config.sequence_batching
    controls = tuple(_control(each.name, each.control[0]) for each in batching.control_input)
    idle_us = min(batching.max_sequence_idle_microseconds, TIME_US_MAX)
    if batching.HasField("oldest"):
        oldest = batching.oldest
        return SequenceScheduling(
            oldest=True,
            places=oldest.max_candidate_sequences or CANDIDATES_DEFAULT,
            idle_us_max=idle_us,
            controls=controls,
            queue_delay_us_max=min(oldest.max_queue_delay_microseconds, TIME_US_MAX),
            preferred_batch_sizes=tuple(sorted(set(oldest.preferred_batch_size))),
        )
    return SequenceScheduling(
        oldest=False,
        places=batch_size_of(config),
        idle_us_max=idle_us,
        controls=controls,
        queue_delay_us_max=min(batching.direct.max_queue_delay_microseconds, TIME_US_MAX),
        utilization_min=batching.direct.minimum_slot_utilization,
    )


def _control(name: str, control: ModelSequenceBatching.Control) -> Control:
    kind = KINDS[control.kind]
    if kind == CORRID:
        return Control(name, kind, datatype_of(control.data_type))
    for values, number in (
        (control.int32_false_true, TYPE_INT32),
        (control.fp32_false_true, TYPE_FP32),
        (control.bool_false_true, TYPE_BOOL),
    ):
        if values:
            return Control(name, kind, datatype_of(number), float(values[0]), float(values[1]))
    raise AssertionError("scheduling_checks.py lets no control pass that has no values")


def instances_of(config: ModelConfig) -> Instances:
    """What the groups say together."""
    devices: list[str] = []
    total, kinds = 0, set()
    for group in config.instance_group:
        on = [f"cuda:{gpu}" for gpu in group.gpus] or (["cpu"] if group.kind == ModelInstanceGroup.KIND_CPU else [])
        devices += on * group.count
        total += group.count * max(1, len(on))
        kinds.add(group.kind)
    if len(devices) == total:
        return Instances(total, tuple(devices) if set(devices) != {"cpu"} else ("cpu",))
    # Groups that leave the device to the server are workers wherever there is room, beside whatever the others say.
    on_gpus = {ModelInstanceGroup.KIND_GPU, ModelInstanceGroup.KIND_AUTO}
    device_type = "gpu" if kinds == {ModelInstanceGroup.KIND_GPU} else None
    return Instances(total, device_type=device_type, per_gpu=not devices and kinds <= on_gpus)

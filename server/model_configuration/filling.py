"""What Triton adds to a configuration before it shows it: the defaults of section 4, and what the backend says of itself."""

from typing import Any

from ringserve.protocol.grpc.model_config_pb2 import ModelConfig
from ringserve.server.model_configuration.fields import BACKEND_OF_PLATFORM, FILE_NAMES, PLATFORMS

IDLE_US_DEFAULT = 1_000_000


def fill(config: ModelConfig) -> None:
    """Everything that does not depend on the model's name."""
    if not config.backend:
        config.backend = BACKEND_OF_PLATFORM.get(config.platform, "")
    if not config.platform:
        config.platform = PLATFORMS.get(config.backend, "")
    if not config.default_model_filename:
        config.default_model_filename = FILE_NAMES.get(config.backend, "")
    if config.version_policy.WhichOneof("policy_choice") is None:
        config.version_policy.latest.num_versions = 1
    for name in ("input_pinned_memory", "output_pinned_memory"):
        if not config.optimization.HasField(name):
            getattr(config.optimization, name).enable = True
    _fill_scheduling(config)
    if not config.instance_group:
        config.instance_group.add()
    for group in config.instance_group:
        group.count = max(1, group.count)


def _fill_scheduling(config: ModelConfig) -> None:
    if config.HasField("dynamic_batching"):
        _fill_sizes(config.dynamic_batching.preferred_batch_size, config.max_batch_size)
    if config.HasField("sequence_batching"):
        batching = config.sequence_batching
        batching.max_sequence_idle_microseconds = batching.max_sequence_idle_microseconds or IDLE_US_DEFAULT
        if batching.HasField("oldest"):
            _fill_sizes(batching.oldest.preferred_batch_size, config.max_batch_size)


def _fill_sizes(sizes: Any, size_max: int) -> None:
    if not sizes and size_max:
        sizes.append(size_max)

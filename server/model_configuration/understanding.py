"""From the message to what the server goes by: checked, filled in and printed. The one place that puts those together."""

from ringserve.protocol.grpc.model_config_pb2 import ModelConfig
from ringserve.server.model_configuration.checks import Checker
from ringserve.server.model_configuration.configuration import Configuration
from ringserve.server.model_configuration.filling import fill
from ringserve.server.model_configuration.meaning import batch_size_of, instances_of, scheduling_of, signature_of
from ringserve.server.model_configuration.printing import to_mapping
from ringserve.server.model_configuration.refusals import check_served, without_effect
from ringserve.server.model_configuration.scheduling_checks import SchedulingChecker


def understand(config: ModelConfig, where: str) -> Configuration:
    """Raises `InvalidModel` for what is wrong, and for what is not served."""
    said = to_mapping(config, sparse=True)
    Checker(config, where).check()
    SchedulingChecker(config, where).check()
    check_served(config, where)
    ignored = without_effect(config)
    fill(config)
    instances = instances_of(config)
    return Configuration(
        said=said,
        fields=to_mapping(config),
        backend=config.backend,
        signature=signature_of(config),
        scheduling=scheduling_of(config),
        batch_size=batch_size_of(config),
        workers=instances.workers if "instance_group" in said else 0,
        per_gpu=instances.per_gpu,
        devices=instances.devices if "instance_group" in said else (),
        device_type=instances.device_type,
        metric_tags=dict(sorted(config.metric_tags.items())),
        label_files={output.name: output.label_filename for output in config.output if output.label_filename},
        without_effect=ignored,
        reshapes=any(tensor.HasField("reshape") for tensor in (*config.input, *config.output)),
    )

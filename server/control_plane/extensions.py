"""What server metadata says of this server (contract section 1.3): the protocol's extensions in Triton's order, those that are on."""

from ringserve.server.settings import Settings


def server_extensions(settings: Settings, *, shared_memory: bool) -> tuple[str, ...]:
    """`shared_memory`: whether clients may share memory with the server. Statistics are read off what metrics measure."""
    extensions = (
        ("classification", True),
        ("sequence", True),
        ("model_repository", True),
        ("model_repository(unload_dependents)", True),
        ("schedule_policy", True),
        ("model_configuration", True),
        ("system_shared_memory", shared_memory),
        ("cuda_shared_memory", shared_memory and bool(settings.number_of_gpu)),
        ("binary_tensor_data", True),
        ("parameters", True),
        ("statistics", settings.enable_metrics_api),
        ("trace", True),
        ("logging", True),
    )
    return tuple(name for name, is_on in extensions if is_on)

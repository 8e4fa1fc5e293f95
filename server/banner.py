"""What a server says of itself when it starts: TorchServe's lines, those that mean something here (contract section 7.1)."""

import os
import sys
import tempfile
from importlib.metadata import version as package_version
from pathlib import Path

import orjson

from ringserve.server.configuration.sources import without_credentials
from ringserve.server.settings import Settings, grpc_addresses

TORCHSERVE_VERSION = "0.12.0"  # whose command line, files and APIs these are
NOTHING = "N/A"


def banner(settings: Settings, gpus: int) -> str:
    """One line a fact. Nothing that is secret is among them."""
    grpc = grpc_addresses(settings)
    facts = {
        "Torchserve version": f"{TORCHSERVE_VERSION} (RingServe {package_version('ringserve')})",
        "Current directory": Path.cwd(),
        "Temp directory": settings.temp_dir or tempfile.gettempdir(),
        "Metrics config path": settings.metrics_config,
        "Number of GPUs": gpus,
        "Number of CPUs": len(os.sched_getaffinity(0)),
        "Python executable": sys.executable,
        "Config file": settings.config_file,
        "Inference address": settings.inference_address,
        "Management address": settings.management_address,
        "Metrics address": settings.metrics_address,
        **{f"{name.removeprefix('grpc_').capitalize()} gRPC address": address for name, address in grpc.items()},
        "Model Store": _absolute(settings.model_store),
        "Model control mode": settings.model_control_mode,
        "Initial Models": without_credentials(",".join(settings.models)),
        "Log dir": _absolute(settings.log_location),
        "Metrics dir": _absolute(settings.metrics_location),
        "Default workers per model": settings.default_workers_per_model,
        "Blacklist Regex": settings.blacklist_env_vars,
        "Maximum Response Size": settings.max_response_size,
        "Maximum Request Size": settings.max_request_size,
        "Limit Maximum Image Pixels": settings.limit_max_image_pixels,
        "Allowed Urls": list(settings.allowed_urls),
        "Custom python dependency for model allowed": settings.install_py_dep_per_model,
        "Enable metrics API": settings.enable_metrics_api,
        "Metrics mode": settings.metrics_mode.upper(),
        "Disable system metrics": settings.disable_system_metrics,
        "Model config": orjson.dumps(settings.model_defaults).decode() if settings.model_defaults else None,
        "Model API enabled": settings.enable_model_api,
        "Token authorization": not settings.disable_token_authorization,
        "Snapshots": settings.snapshots,
    }
    return "".join(f"\n{name}: {_said(value)}" for name, value in facts.items())


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.absolute()


def _said(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None or value == "":
        return NOTHING
    return "[]" if value == [] else str(value)

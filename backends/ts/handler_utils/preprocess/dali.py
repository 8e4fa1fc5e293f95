"""Image pipelines of NVIDIA DALI, as model-config.yaml describes them. DALI itself comes with the model's requirements."""

from importlib import import_module
from pathlib import Path
from typing import Any

from ringserve.backends.ts.context import Context

SETTINGS = ("batch_size", "num_threads", "device_id", "seed")


def get_dali_pipeline(ctx: Context) -> Any:
    """The pipeline in the archive's file `dali: {pipeline_file: FILE, batch_size, num_threads, device_id, seed}`.

    Raises ValueError for a configuration without them, RuntimeError for a file that is not there, and ImportError without DALI.
    TorchServe has a pipeline of its own for archives without one; it is a file of DALI's and does not come with this server.
    """
    section = ctx.model_yaml_config.get("dali")
    if not section:
        raise ValueError(f"{ctx.model_name} has no dali config in model config yaml file")
    missing = [key for key in (*SETTINGS, "pipeline_file") if key not in section]
    if missing:
        raise ValueError(
            f"{ctx.model_name} has no {', '.join(missing)} in the dali config of its model config yaml file"
        )
    path = Path(ctx.system_properties["model_dir"]) / section["pipeline_file"]
    if not path.exists():
        raise RuntimeError(f"Missing dali pipeline file: {path}")
    settings = {key: section[key] for key in SETTINGS}
    pipeline = _dali().Pipeline.deserialize(filename=str(path), prefetch_queue_depth=1, **settings)
    # What was serialised with the pipeline wins over the arguments.
    pipeline._max_batch_size = settings["batch_size"]
    pipeline._num_threads = settings["num_threads"]
    pipeline._device_id = settings["device_id"]
    return pipeline


def _dali() -> Any:
    try:
        return import_module("nvidia.dali.pipeline")
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("nvidia"):
            raise
    raise ImportError("This model needs NVIDIA DALI, which is not installed: name nvidia-dali in its requirements.txt.")

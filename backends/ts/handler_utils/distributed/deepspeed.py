"""DeepSpeed engines, as model-config.yaml describes them. DeepSpeed itself comes with the model's requirements."""

import json
import logging
from importlib import import_module
from pathlib import Path
from typing import Any

from ringserve.backends.ts.context import Context

LOGGER = logging.getLogger("ringserve.model")
WEIGHTS = ("*.bin", "*.pt")


def create_checkpoints_json(model_path: str, checkpoints_json: str) -> None:
    """Write the list of a checkpoint's files below `model_path` that DeepSpeed reads."""
    files = sorted({str(path) for pattern in WEIGHTS for path in Path(model_path).rglob(pattern) if path.is_file()})
    LOGGER.info("Writing the list of DeepSpeed's checkpoint files: %s", checkpoints_json)
    Path(checkpoints_json).write_text(json.dumps({"type": "ds_model", "checkpoints": files, "version": 1.0}))


def get_ds_engine(model: Any, ctx: Context) -> Any:
    """`deepspeed.init_inference` with `deepspeed: {config: FILE, checkpoint: FILE}` and `handler: {model_path: FOLDER}` of
    model-config.yaml. Raises ValueError for a configuration without them, and ImportError without DeepSpeed."""
    config = ctx.model_yaml_config
    if "deepspeed" not in config:
        raise ValueError(f"{ctx.model_name} has no deepspeed config in model config yaml file")
    section, model_dir = config["deepspeed"], Path(ctx.system_properties["model_dir"])
    model_path = (config.get("handler") or {}).get("model_path")
    if model_path is None:
        raise ValueError(f"{ctx.model_name} has no model_path in the section handler of its model config yaml file")
    engine = _deepspeed()
    file, checkpoint = section.get("config"), section.get("checkpoint")
    if file is not None and not (model_dir / file).exists():
        raise ValueError(f"{ctx.model_name} has no deepspeed config file {model_dir / file}")
    if checkpoint is not None:
        create_checkpoints_json(model_path, str(model_dir / checkpoint))
    return engine.init_inference(
        model,
        config=None if file is None else str(model_dir / file),
        base_dir=model_path,
        checkpoint=None if checkpoint is None else str(model_dir / checkpoint),
    )


def _deepspeed() -> Any:
    try:
        return import_module("deepspeed")
    except ModuleNotFoundError as error:
        if error.name != "deepspeed":
            raise
    raise ImportError("This model needs DeepSpeed, which is not installed: name deepspeed in its requirements.txt.")

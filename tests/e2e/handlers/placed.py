"""A handler that writes down, when it is loaded, which device its worker was given: one file for each process."""

import json
import os
from pathlib import Path
from typing import Any


def handle(data: Any, context: Any) -> list[int] | None:
    if data is not None:
        return [os.getpid()] * len(data)
    seen = {
        "gpu_id": context.system_properties["gpu_id"],
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "order": os.environ.get("CUDA_DEVICE_ORDER"),
    }
    (Path(os.environ["PLACED_DIR"]) / str(os.getpid())).write_text(json.dumps(seen))
    return None

"""`MockContext`: what the unit tests of users' handlers give to `initialize` and `handle`."""

import uuid
from pathlib import Path
from typing import Any

from ringserve.backends.ts.metrics.metrics_store import MetricsStore
from ringserve.backends.ts.utils.util import get_yaml_config


class MockContext:
    """The attributes of a Context that handlers look at while they load. `gpu_id` counts where there is a GPU."""

    def __init__(
        self,
        model_pt_file: str | None = "model.pt",
        model_dir: str = "ts/torch_handler/unit_tests/models/tmp",
        model_file: str | None = "model.py",
        gpu_id: str | None = "0",
        model_name: str = "mnist",
        model_yaml_config_file: str | None = None,
    ) -> None:
        import torch  # not above: handlers without it are tested as well

        files = {"serializedFile": model_pt_file, "modelFile": model_file}
        self.manifest: dict[str, Any] = {"model": {key: name for key, name in files.items() if name}}
        self.system_properties: dict[str, Any] = {"model_dir": model_dir}
        if gpu_id and torch.cuda.is_available():
            self.system_properties["gpu_id"] = gpu_id
        self.explain = False
        self.metrics = MetricsStore(str(uuid.uuid4()), model_name)
        self.model_yaml_config: dict[str, Any] = {}
        if model_yaml_config_file:
            self.model_yaml_config = get_yaml_config(Path(model_dir) / model_yaml_config_file)

    def get_request_header(self, idx: int, exp: str) -> bool:
        """As TorchServe's: whether `explain` is set, for any row but the first."""
        return bool(idx and exp and self.explain)

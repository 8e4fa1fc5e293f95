"""The handler that most archives extend: TorchServe's `BaseHandler`, with the attributes and hooks they rely on.

A subclass overrides the steps it needs. One batch goes through `handle`: preprocess, inference, postprocess; a request
that asks for an explanation or a description takes the hook of that name instead.
"""

import logging
import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ringserve.backends.ts.handler_utils.timer import timed
from ringserve.backends.ts.utils.model_loading import (
    load_aot_compiled,
    load_eager,
    load_onnx,
    load_torchscript,
    pick_device,
)
from ringserve.backends.ts.utils.pt2 import compile_options, wants_aot_compiled
from ringserve.backends.ts.utils.util import load_label_mapping

LOGGER = logging.getLogger("ringserve.model")

if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
    torch.set_float32_matmul_precision("high")  # TensorFloat-32, as TorchServe's handlers were tuned for


class BaseHandler:
    """Loads the archive's model and runs it on tensors."""

    def __init__(self) -> None:
        self.model: Any = None
        self.mapping: dict[str, Any] | None = None
        self.device: Any = None
        self.initialized = False
        self.context: Any = None
        self.model_pt_path: str | None = None
        self.manifest: Any = None
        self.map_location: str | None = None
        self.explain = False
        self.target: Any = 0
        self.profiler_args: dict[str, Any] = {}
        self.model_yaml_config: dict[str, Any] = {}

    def initialize(self, context: Any) -> None:
        """Pick the device, load the model, compile it if configured, read the labels.

        Raises RuntimeError when the archive holds no model file that can be loaded.
        """
        properties = context.system_properties
        self.context, self.manifest = context, context.manifest
        self.model_yaml_config = context.model_yaml_config or {}
        self.device = pick_device(properties.get("gpu_id"))
        self.map_location = self.device.type
        model_dir = properties.get("model_dir")
        files = self.manifest["model"]
        if files.get("serializedFile"):
            self.model_pt_path = os.path.join(model_dir, files["serializedFile"])
        self.model = self._load_model(model_dir, files.get("modelFile") or "")
        self._optimize()
        self.mapping = load_label_mapping(os.path.join(model_dir, "index_to_name.json"))
        self.initialized = True

    def _load_model(self, model_dir: str, model_file: str) -> Any:
        path = self.model_pt_path or ""
        if model_file:
            LOGGER.debug("Loading eager model")
            return self._load_pickled_model(model_dir, model_file, self.model_pt_path).to(self.device).eval()
        suffix = Path(path).suffix
        if suffix == ".pt":
            return self._load_torchscript_model(path)
        if suffix == ".onnx":
            return load_onnx(path, self.device)
        if suffix == ".so" and wants_aot_compiled(self.model_yaml_config):
            return self._load_torch_export_aot_compile(path)
        raise RuntimeError(
            f"No model weights could be loaded from {self.manifest['model']}: a modelFile, or a serializedFile that ends"
            " in .pt (TorchScript), .onnx, or .so (with pt2: {export: {aot_compile: true}}), is needed"
        )

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        """Open a TorchScript file. A hook: subclasses load other formats here."""
        return load_torchscript(model_pt_path, self.device)

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
        """Build the eager model and give it its state dict. A hook."""
        return load_eager(model_dir, model_file, model_pt_path, self.device)

    def _load_torch_export_aot_compile(self, model_so_path: str) -> Any:
        """Open an AOTInductor library. A hook."""
        return load_aot_compiled(model_so_path, self.device)

    def _optimize(self) -> None:
        options = compile_options(self.model_yaml_config)
        if options is not None:
            try:
                if options.get("backend") == "openvino":
                    import_module("openvino.torch")  # registers the backend
                self.model = torch.compile(self.model, **options)
            except Exception:
                LOGGER.warning("torch.compile(%s) failed; the model stays uncompiled", options, exc_info=True)
        elif os.environ.get("TS_IPEX_ENABLE") == "true":
            self.model = self.model.to(memory_format=torch.channels_last)
            self.model = import_module("intel_extension_for_pytorch").optimize(self.model)

    @timed
    def preprocess(self, data: Any) -> Any:
        """The batch as a tensor on the model's device. Override it: requests are rarely lists of numbers."""
        return torch.as_tensor(data, device=self.device)

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """One forward pass."""
        with torch.inference_mode():
            return self.model(data.to(self.device), *args, **kwargs)

    @timed
    def postprocess(self, data: Any) -> Any:
        """The list of answers, one per row."""
        return data.tolist()

    def handle(self, data: Any, context: Any) -> Any:
        """Answer one batch."""
        began_s = time.perf_counter()
        self.context = context
        if os.environ.get("ENABLE_TORCH_PROFILER"):
            output, _ = self._infer_with_profiler(data)
        elif self._is_describe():
            output = [self.describe_handle()]
        else:
            prepared = self.preprocess(data)
            if self._is_explain():
                output = self.explain_handle(prepared, data)
            else:
                output = self.postprocess(self.inference(prepared))
        if context.metrics is not None:  # as in the unit test of a handler
            context.metrics.add_time("HandlerTime", round((time.perf_counter() - began_s) * 1000, 2))
        return output

    def _infer_with_profiler(self, data: Any) -> tuple[Any, Any]:
        """Run the three steps under torch's profiler; the answer, and the profile."""
        profiler = torch.profiler
        if not self.profiler_args:
            self.profiler_args = {
                "activities": [profiler.ProfilerActivity.CPU, profiler.ProfilerActivity.CUDA],
                "record_shapes": True,
            }
        if "on_trace_ready" not in self.profiler_args:
            folder = f"/tmp/pytorch_profiler/{self.manifest['model']['modelName']}"
            self.profiler_args["on_trace_ready"] = profiler.tensorboard_trace_handler(folder)
        with profiler.profile(**self.profiler_args) as profile:
            with profiler.record_function("preprocess"):
                prepared = self.preprocess(data)
            with profiler.record_function("inference"):
                result = self.inference(prepared)
            with profiler.record_function("postprocess"):
                output = self.postprocess(result)
        LOGGER.info("%s", profile.key_averages().table(row_limit=10))
        return output, profile

    def explain_handle(self, data_preprocess: Any, raw_data: Any) -> Any:
        """Answer a request for an explanation by the subclass' `get_insights(tensors, inputs, target)`."""
        row = raw_data[0]
        inputs, target = None, 0
        if isinstance(row, dict):
            inputs = row.get("data") or row.get("body")
            target = row.get("target") or 0
        insights: Any = self  # the method is the subclass': this class has no explanation to give
        return insights.get_insights(data_preprocess, inputs, target)

    def describe_handle(self) -> Any:
        """What a describe request adds about this model; nothing here."""
        return None

    def get_device(self) -> Any:
        """The device the model runs on."""
        return self.device

    def _is_explain(self) -> bool:
        if self.context is not None and self.context.get_request_header(0, "explain") == "True":
            self.explain = True
            return True
        return False

    def _is_describe(self) -> bool:
        return self.context is not None and self.context.get_request_header(0, "describe") == "True"

"""The handler that most archives extend: TorchServe's `BaseHandler`, with the attributes and hooks they rely on.

A subclass overrides the steps it needs. One batch goes through `handle`: preprocess, inference, postprocess; a request
that asks for an explanation or a description takes the hook of that name instead.
"""

import abc
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
    load_pt2,
    load_torchscript,
    pick_device,
    register_extensions,
)
from ringserve.backends.ts.utils.pt2 import compile_options, wants_aot_compiled
from ringserve.backends.ts.utils.rows import rows_of, tensors_of
from ringserve.backends.ts.utils.util import load_label_mapping
from ringserve.backends.ts.utils.weights import SAFETENSORS, weights_only

LOGGER = logging.getLogger("ringserve.model")

PROFILES = Path("/tmp/pytorch_profiler")  # TorchServe's folder: tools and scripts look there
WEIGHTS_ALONE = (".pth", SAFETENSORS)

if torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0):
    torch.set_float32_matmul_precision("high")  # TensorFloat-32, as TorchServe's handlers were tuned for
register_extensions()


def setup_ort_session(model_pt_path: str, map_location: str | None) -> Any:
    """An onnxruntime session on this kind of device. Handlers that open further ONNX files import this."""
    return load_onnx(model_pt_path, torch.device(map_location or "cpu"))


class BaseHandler(abc.ABC):  # noqa: B024 - so that handlers may mark methods of theirs as abstract
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
        self.model_yaml_config = getattr(context, "model_yaml_config", None) or {}
        self.device = pick_device(properties.get("gpu_id"))
        self.map_location = self.device.type
        model_dir = properties.get("model_dir")
        files = self.manifest["model"]
        serialized_file = files.get("serializedFile")
        self.model_pt_path = os.path.join(model_dir, serialized_file) if serialized_file else None
        self._load_model(model_dir, files.get("modelFile") or "")
        self._optimize()
        LOGGER.debug("Model file %s loaded successfully", self.model_pt_path)
        self.mapping = load_label_mapping(os.path.join(model_dir, "index_to_name.json"))
        self.initialized = True

    def _load_model(self, model_dir: str, model_file: str) -> None:
        path = self.model_pt_path or ""
        suffix = Path(path).suffix
        if model_file:
            LOGGER.debug("Loading eager model")
            self.model = self._load_pickled_model(model_dir, model_file, self.model_pt_path)
            self.model.to(self.device)
            self.model.eval()
        elif suffix == ".pt":
            self.model = self._load_torchscript_model(path)
            self.model.eval()
        elif suffix == ".onnx":
            self.model = setup_ort_session(path, str(self.device))
        elif suffix == ".pt2":
            self.model = load_pt2(path, self.device, weights_only=weights_only(self.model_yaml_config))
        elif suffix == ".so" and self._use_torch_export_aot_compile():
            self.model = self._load_torch_export_aot_compile(path)
        else:
            raise RuntimeError(f"No model weights could be loaded{self._what_is_missing(suffix)}")

    def _what_is_missing(self, suffix: str) -> str:
        named = {key: value for key, value in self.manifest["model"].items() if key in ("serializedFile", "modelFile")}
        if suffix in WEIGHTS_ALONE:
            return (
                f": {Path(self.model_pt_path or '').name} holds weights alone, and the manifest names no modelFile (the"
                " archiver's --model-file) whose class they belong to"
            )
        return (
            f" from {named}: a modelFile, or a serializedFile that ends in .pt (TorchScript), .onnx, .pt2, or .so (with"
            " pt2: {export: {aot_compile: true}}), is needed"
        )

    def _load_torchscript_model(self, model_pt_path: str) -> Any:
        """Open a TorchScript file. A hook: subclasses load other formats here."""
        return load_torchscript(model_pt_path, self.device)

    def _load_pickled_model(self, model_dir: str, model_file: str, model_pt_path: str | None) -> Any:
        """Build the eager model and give it its state dict. A hook."""
        only = weights_only(self.model_yaml_config)
        return load_eager(model_dir, model_file, model_pt_path, self.device, weights_only=only)

    def _load_torch_export_aot_compile(self, model_so_path: str) -> Any:
        """Open an AOTInductor library. A hook."""
        return load_aot_compiled(model_so_path, self.device)

    def _use_torch_export_aot_compile(self) -> bool:
        """Whether the configuration says that a .so is such a library. A hook."""
        return wants_aot_compiled(self.model_yaml_config)

    def _optimize(self) -> None:
        options = compile_options(self.model_yaml_config)
        if options is not None:
            # The module reaches into the compiler, which few models use and which takes a while to import.
            self.model = import_module("ringserve.backends.ts.utils.compiled").compile_model(self.model, options)
        elif os.environ.get("TS_IPEX_ENABLE") == "true":
            try:
                ipex = import_module("intel_extension_for_pytorch")
            except ImportError as error:
                LOGGER.warning("TS_IPEX_ENABLE is true, but the model runs without IPEX: %s", error)
                return
            self.model = ipex.optimize(self.model.to(memory_format=torch.channels_last).to(self.device))

    @timed
    def preprocess(self, data: Any) -> Any:
        """The batch as a tensor on the model's device. Override it: requests are rarely lists of numbers.

        Of requests, as `handle` is given them, the tensor is what they brought as JSON; where they bring several inputs by
        name, it is one tensor for each. Raises `PredictionException` with status 400 when they brought something else.
        """
        if isinstance(data, list) and data and isinstance(data[0], dict):
            return tensors_of(data, self.device)
        return torch.as_tensor(data, device=self.device)

    @timed
    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """One forward pass. A dict of tensors is given to the model by name."""
        with torch.inference_mode():
            if isinstance(data, dict):
                return self.model(*args, **{name: each.to(self.device) for name, each in data.items()}, **kwargs)
            return self.model(data.to(self.device), *args, **kwargs)

    @timed
    def postprocess(self, data: Any) -> Any:
        """The list of answers, one per row: lists of numbers, or of several outputs one such list each."""
        return rows_of(data)

    def handle(self, data: Any, context: Any) -> Any:
        """Answer one batch."""
        began_s = time.perf_counter()
        self.context = context
        if self._is_describe():
            output = [self.describe_handle()]
        elif os.environ.get("ENABLE_TORCH_PROFILER"):
            output, _ = self._infer_with_profiler(data)
        else:
            prepared = self.preprocess(data)
            if self._is_explain():
                output = self.explain_handle(prepared, data)
            else:
                output = self.postprocess(self.inference(prepared))
        if context.metrics is not None:  # as in the unit test of a handler
            context.metrics.add_time("HandlerTime", round((time.perf_counter() - began_s) * 1000, 2), None, "ms")
        return output

    def _infer_with_profiler(self, data: Any) -> tuple[Any, Any]:
        """Run the steps under torch's profiler; the answer, and the profile.

        `profiler_args` are the keywords of `torch.profiler.profile`; unless they say otherwise, a trace of every batch is
        written below /tmp/pytorch_profiler/{model name}.
        """
        profiler = torch.profiler
        if not self.profiler_args:
            activities = [profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(profiler.ProfilerActivity.CUDA)
            self.profiler_args.update(activities=activities, record_shapes=True)
        if "on_trace_ready" not in self.profiler_args:
            manifest = self.manifest or self.context.manifest or {}
            folder = PROFILES / str(manifest.get("model", {}).get("modelName", "")).replace("/", "_")
            self.profiler_args["on_trace_ready"] = profiler.tensorboard_trace_handler(str(folder))
            LOGGER.info("Saving chrome trace to : %s", folder)
        with profiler.profile(**self.profiler_args) as profile:
            with profiler.record_function("preprocess"):
                prepared = self.preprocess(data)
            if self._is_explain():
                with profiler.record_function("explain"):
                    output = self.explain_handle(prepared, data)
            else:
                with profiler.record_function("inference"):
                    result = self.inference(prepared)
                with profiler.record_function("postprocess"):
                    output = self.postprocess(result)
        LOGGER.info("%s", profile.key_averages().table(sort_by="cpu_time_total", row_limit=10))
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
        """Whether the batch asks for explanations, also kept in `explain`. TorchServe's stays True from the first on."""
        self.explain = self.context is not None and self.context.get_request_header(0, "explain") == "True"
        return self.explain

    def _is_describe(self) -> bool:
        return self.context is not None and self.context.get_request_header(0, "describe") == "True"

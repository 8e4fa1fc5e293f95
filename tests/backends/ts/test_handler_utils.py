"""What else handlers import: streams of text, frameworks that are not there, and a context for tests of their own."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ringserve.backends.contract import Request
from ringserve.backends.handler_backend import HandlerBackend
from ringserve.backends.ts.context import Context
from ringserve.backends.ts.handler_utils.distributed import pt_pippy
from ringserve.backends.ts.handler_utils.distributed.deepspeed import create_checkpoints_json, get_ds_engine
from ringserve.backends.ts.handler_utils.preprocess.dali import get_dali_pipeline
from ringserve.backends.ts.handler_utils.utils import import_class
from ringserve.backends.ts.metrics.dimension import Dimension
from ringserve.backends.ts.metrics.metric import Metric
from ringserve.backends.ts.service import emit_metrics
from ringserve.backends.ts.torch_handler.base_handler import BaseHandler
from ringserve.backends.ts.torch_handler.dali_image_classifier import DALIImageClassifier
from ringserve.backends.ts.torch_handler.distributed.base_deepspeed_handler import BaseDeepSpeedHandler
from ringserve.backends.ts.torch_handler.distributed.base_pippy_handler import BasePippyHandler
from ringserve.backends.ts.torch_handler.trt_llm_handler import TRTLLMHandler
from ringserve.backends.ts.torch_handler.unit_tests.test_utils.mock_context import MockContext
from ringserve.backends.ts.torch_handler.vllm_handler import VLLMHandler
from ringserve.server.metrics.printed import parse

DALI = {"batch_size": 4, "num_threads": 2, "device_id": 0, "seed": 7, "pipeline_file": "images.dali"}


def context_of(folder: Path, config: dict[str, Any]) -> Context:
    return Context("m", str(folder), {"model": {}}, 1, None, "0.12.0", model_yaml_config=config)


class Words:
    """A tokenizer of whole words: the number of a word is its length."""

    def decode(self, tokens: list[int], **_: Any) -> str:
        return "".join("x" * int(token) + "\n" for token in tokens)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_texts_of_a_batch_come_row_by_row_until_the_last_row_has_ended() -> None:
    """TorchServe's stops with the first row that ends; the others' last words are lost."""
    from ringserve.backends.ts.handler_utils.hf_batch_streamer import TextIteratorStreamerBatch

    streamer = TextIteratorStreamerBatch(Words(), 2, timeout=1.0)
    streamer.put(torch.tensor([1, 2]))
    assert next(streamer) == [{"text": "x\n"}, {"text": "xx\n"}]
    streamer.streamers[0].end()
    for number in (3, 4):
        streamer.streamers[1].put(torch.tensor([number]))
    streamer.streamers[1].end()
    rest = list(streamer)
    assert "".join(each[0]["text"] for each in rest) == ""
    assert "".join(each[1]["text"] for each in rest) == "xxx\nxxxx\n"
    with pytest.raises(ValueError, match=r"made for 2 rows and got tokens of the shape torch.Size\(\[3\]\)"):
        streamer.put(torch.tensor([1, 2, 3]))


def test_nothing_but_its_own_module_imports_transformers_or_the_hub(tmp_path: Path) -> None:
    script = (
        "import sys; from ringserve.backends import ts_import; ts_import.install()\n"
        "import ts.handler_utils.utils, ts.handler_utils.micro_batching, ts.context, ts.service\n"
        "import ts.torch_handler.request_envelope.kservev2, ts.handler_utils.distributed.deepspeed\n"
        "assert not {'transformers', 'huggingface_hub', 'torch'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-P", "-c", script], check=True, timeout=60, cwd=tmp_path)


def test_a_class_is_imported_by_its_name_below_a_prefix_or_not_at_all() -> None:
    assert import_class("Path", "pathlib") is Path
    for name, prefix in (("", None), ("Path", None), ("pathlib.Nobody", None), ("nowhere.Path", None)):
        with pytest.raises(ImportError):
            import_class(name, prefix)


@pytest.mark.parametrize(
    "call",
    [
        lambda: pt_pippy.get_pipeline_driver(None, 2, Context("m", "/m", None, 1, None, "0")),
        lambda: BasePippyHandler().initialize(None),
    ],
)
def test_a_pipeline_over_several_processes_says_that_there_is_one_process(call: Callable[[], None]) -> None:
    with pytest.raises(RuntimeError, match=r"divides a model over several processes with PiPPy.* one process"):
        call()


@pytest.mark.parametrize("kind", [VLLMHandler, TRTLLMHandler])
def test_a_handler_of_the_asynchronous_mode_says_so_when_it_is_loaded(kind: type) -> None:
    assert issubclass(kind, BaseHandler)
    with pytest.raises(RuntimeError, match="needs asyncCommunication, which this version does not serve"):
        kind().initialize(None)


# ---- DeepSpeed


def test_deepspeed_is_named_when_it_is_not_installed(tmp_path: Path) -> None:
    context = context_of(tmp_path, {"deepspeed": {}, "handler": {"model_path": "m"}})
    with pytest.raises(
        ImportError, match="needs DeepSpeed, which is not installed: name deepspeed in its requirements"
    ):
        get_ds_engine(None, context)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "m has no deepspeed config in model config yaml file"),
        ({"deepspeed": {}}, "m has no model_path in the section handler"),
    ],
)
def test_deepspeed_needs_its_configuration(tmp_path: Path, config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        get_ds_engine(None, context_of(tmp_path, config))


def test_deepspeed_is_given_what_the_configuration_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The module stands in for DeepSpeed and answers with what it was called with."""
    deepspeed = ModuleType("deepspeed")
    deepspeed.init_inference = lambda model, **more: (model, more)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", deepspeed)
    (tmp_path / "weights" / "deep").mkdir(parents=True)
    for name in ("a.bin", "deep/b.pt", "c.txt"):
        (tmp_path / "weights" / name).touch()
    config = {"config": "ds.json", "checkpoint": "list.json"}
    context = context_of(tmp_path, {"deepspeed": config, "handler": {"model_path": str(tmp_path / "weights")}})
    with pytest.raises(ValueError, match="m has no deepspeed config file"):
        get_ds_engine("model", context)
    (tmp_path / "ds.json").touch()
    assert get_ds_engine("model", context) == (
        "model",
        {
            "config": str(tmp_path / "ds.json"),
            "base_dir": str(tmp_path / "weights"),
            "checkpoint": str(tmp_path / "list.json"),
        },
    )
    listed = json.loads((tmp_path / "list.json").read_text())
    assert listed["checkpoints"] == [str(tmp_path / "weights" / name) for name in ("a.bin", "deep/b.pt")]
    create_checkpoints_json(str(tmp_path / "nowhere"), str(tmp_path / "list.json"))
    assert json.loads((tmp_path / "list.json").read_text()) == {"type": "ds_model", "checkpoints": [], "version": 1.0}


def test_a_deepspeed_handler_has_the_number_of_its_process_for_a_device() -> None:
    handler = BaseDeepSpeedHandler()
    handler.initialize(None)
    assert handler.device == 0


# ---- DALI


@pytest.mark.parametrize(
    ("config", "kind", "message"),
    [
        ({}, ValueError, "m has no dali config in model config yaml file"),
        ({"dali": {"seed": 1}}, ValueError, "m has no batch_size, num_threads, device_id, pipeline_file in the dali"),
        ({"dali": {**DALI, "pipeline_file": "no.dali"}}, RuntimeError, "Missing dali pipeline file: "),
        (
            {"dali": DALI},
            ImportError,
            "needs NVIDIA DALI, which is not installed: name nvidia-dali in its requirements",
        ),
    ],
)
def test_a_dali_pipeline_needs_its_configuration_its_file_and_dali(
    tmp_path: Path, config: dict[str, Any], kind: type[Exception], message: str
) -> None:
    (tmp_path / "images.dali").touch()
    with pytest.raises(kind, match=message):
        get_dali_pipeline(context_of(tmp_path, config))
    with pytest.raises(kind, match=message):
        DALIImageClassifier().initialize(context_of(tmp_path, config))


def test_a_dali_classifier_prepares_by_its_pipeline_and_answers_labels() -> None:
    class Output:
        def at(self, row: int) -> Any:
            return [float(row)] * 3

    class Pipeline:
        def run(self, source: list[Any]) -> tuple[Output]:
            assert [image.tolist() for image in source] == [[1, 2], [3]]
            return (Output(),)

    handler = DALIImageClassifier()
    handler.pipeline, handler.device, handler.mapping = Pipeline(), torch.device("cpu"), None
    tensor = handler.preprocess([{"data": b"\1\2"}, {"body": bytearray(b"\3")}])
    assert tensor.tolist() == [[0.0] * 3, [1.0] * 3]
    handler.set_max_result_classes(2)
    assert handler.get_max_result_classes() == 2
    answers = handler.postprocess(torch.tensor([[0.0, 2.0, 1.0]]))
    assert [list(answer) for answer in answers] == [["1", "2"]]


# ---- tests of users' own


def test_a_mock_context_has_what_handlers_look_at(tmp_path: Path) -> None:
    (tmp_path / "model-config.yaml").write_text("handler: {top: 3}\n")
    context = MockContext(model_dir=str(tmp_path), model_file=None, model_yaml_config_file="model-config.yaml")
    assert context.manifest == {"model": {"serializedFile": "model.pt"}}
    assert context.system_properties["model_dir"] == str(tmp_path)
    assert ("gpu_id" in context.system_properties) == torch.cuda.is_available()
    assert context.model_yaml_config == {"handler": {"top": 3}}
    context.metrics.add_time("Load", 1.0)
    assert [context.get_request_header(row, "explain") for row in (0, 1)] == [False, False]
    context.explain = True
    assert [context.get_request_header(row, "explain") for row in (0, 1)] == [False, True]


SOCKET = """
def handle(data, context):
    if data is None:
        return None
    context.cl_socket.sendall(b"a message")
"""


def test_the_socket_that_is_not_there_says_what_to_call_instead(
    load_handler_backend: Callable[..., HandlerBackend],
    request_of: Callable[..., Request],
    ask: Callable[..., list[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(Exception, match="Prediction failed"):
        ask(load_handler_backend(SOCKET), [request_of(1)])
    assert "send parts of answers with ts.handler_utils.utils.send_intermediate_predict_response" in caplog.text


def test_metrics_of_old_handlers_are_printed_as_the_server_reads_them(capsys: pytest.CaptureFixture[str]) -> None:
    emit_metrics(None)
    emit_metrics([Metric("Weight", 3, "MB", [Dimension("Level", "Host")], "r1")])
    printed = parse(capsys.readouterr().out.strip())
    assert printed is not None
    assert (printed.name, printed.value) == ("Weight", 3.0)

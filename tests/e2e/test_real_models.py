"""Models as people make them, in archives as people pack them: each answers what it answers when called directly."""

import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import httpx
import joblib
import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ringserve.server.testing import ServerProcess, wait_until

ROOT = Path(__file__).resolve().parents[2]
with pytest.MonkeyPatch.context() as path_patch:  # examples are run from the root; nothing else may import from there
    path_patch.syspath_prepend(ROOT)
    from examples.digits import train as digits_training
    from examples.digits.dataset import Digits, load_split

EXAMPLE = ROOT / "examples" / "digits"
ROWS = 4
ACCURACY_MIN = 0.85  # after the few epochs of this module; ten classes guessed make 0.1
TEXTS = ["the cat sat on the mat", "a dog", "unknown words here", "the dog sat"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "a", "cat", "dog", "sat", "on", "mat"]
COMPILER = shutil.which("g++") or shutil.which("clang++")

TRUSTED = "handler: {weights_only: false}\n"
BATCHES = f"batchSize: {ROWS}\nmaxBatchDelay: 20\n"
PIXELS = """
from ts.torch_handler.base_handler import BaseHandler


class Pixels(BaseHandler):
    def preprocess(self, data):
        rows = [row.get("data") or row.get("body") for row in data]
        return super().preprocess([row["image"] for row in rows])
"""
CLASSIFIER = """
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ts.torch_handler.base_handler import BaseHandler


class Classifier(BaseHandler):
    def initialize(self, context):
        folder = context.system_properties["model_dir"]
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
        self.initialized = True

    def preprocess(self, data):
        texts = [row.get("data") or row.get("body") for row in data]
        texts = [text.decode("utf-8") if isinstance(text, (bytes, bytearray)) else text for text in texts]
        return self.tokenizer(texts, padding=True, return_tensors="pt")

    def inference(self, data):
        with torch.inference_mode():
            return self.model(**data).logits
"""
PIPELINE = """
import os

import joblib

pipeline = None


def handle(data, context):
    global pipeline
    if data is None:
        files = context.manifest["model"]
        pipeline = joblib.load(os.path.join(context.system_properties["model_dir"], files["serializedFile"]))
        return None
    return pipeline.predict_proba([row["body"] for row in data]).tolist()
"""
NEEDS_MORE = """
import a_package_that_nobody_has


def handle(data, context):
    return [None] * len(data)
"""


class Small(torch.nn.Module):
    """Two inputs by name, to be compiled in little time."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(-1, 1, 3))

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return torch.relu(left * self.weight + right)


SMALL_MODEL = """
import torch


class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(3))

    def forward(self, left, right):
        return torch.relu(left * self.weight + right)
"""


@dataclass
class Served:
    """The server, and the models as this process has them."""

    server: ServerProcess
    client: httpx.Client
    folder: Path
    digits: Any
    held_out: Digits
    text_model: Any
    tokenizer: Any
    pipeline: Any
    small: Small

    def ask(self, model: str, bodies: list[Any]) -> list[Any]:
        """All at once, so that they share batches; the JSON of the answers."""

        def post(body: Any) -> Any:
            content: dict[str, Any] = {"content": body} if isinstance(body, str) else {"json": body}
            answer = self.client.post(f"{self.server.inference_url}/predictions/{model}", **content)
            assert answer.status_code == 200, f"{answer.text}\n{self.server.log}"
            return answer.json()

        with ThreadPoolExecutor(len(bodies)) as pool:
            return list(pool.map(post, bodies))

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def files(self) -> Path:
        """What the archives are made of."""
        return self.folder / "files"

    def register(self, archive: Path) -> httpx.Response:
        """Synchronously, with one worker."""
        query = {"url": archive.name, "initial_workers": "1", "synchronous": "true"}
        return self.client.post(f"{self.server.management_url}/models", params=query)


def _trained_digits(patch: pytest.MonkeyPatch) -> tuple[Any, Digits]:
    split = load_split()
    patch.setattr(digits_training, "EPOCHS", 2)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the steps are so small that threads only wait for each other
    try:
        return digits_training.train(split.training), split.held_out
    finally:
        torch.set_num_threads(threads)


def _digit_files(network: Any, folder: Path) -> None:
    """The network as a state dict, as a graph of ONNX, and as a program of torch.export."""
    torch.save(network.state_dict(), folder / "digits.pt")
    images = torch.rand(2, 1, 8, 8)
    torch.onnx.export(
        network,
        (images,),
        folder / "digits.onnx",
        dynamo=False,  # the older exporter: a tenth of the newer one's time
        input_names=["images"],
        output_names=["logits"],
        dynamic_axes={"images": {0: "rows"}, "logits": {0: "rows"}},
    )
    shapes = {"images": {0: torch.export.Dim("rows", min=1, max=64)}}
    torch.export.save(torch.export.export(network, (images,), dynamic_shapes=shapes), folder / "digits.pt2")


def _compile_package(program: Any, path: Path) -> None:
    """An AOTInductor package: machine code for the CPU. The compiler is given as little to do as it takes."""
    options: dict[str, Any] = {"aot_inductor.compile_wrapper_opt_level": "O0", "aot_inductor.precompile_headers": False}
    options["cpp.vec_isa_ok"] = False  # the environment says so too, where inductor has not been imported before
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=options)


def _exported(small: Small) -> Any:
    rows = torch.export.Dim("rows", min=1, max=64)
    example = {"left": torch.rand(2, 3), "right": torch.rand(2, 3)}  # by name, as the requests will bring them
    return torch.export.export(small, (), example, dynamic_shapes={name: {0: rows} for name in example})


def _text_files(folder: Path) -> tuple[Any, Any]:
    """A BERT of a few thousand random weights and a tokenizer of twelve words, saved as transformers saves them."""
    from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

    folder.mkdir()
    words = folder / "vocab.txt"
    words.write_text("\n".join(VOCABULARY) + "\n")
    tokenizer = BertTokenizer(str(words))
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    config.num_labels = 3
    model: Any = BertForSequenceClassification(config)
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def _pipeline(path: Path) -> Any:
    split = load_split()
    rows = split.training.images[:300].reshape(300, -1)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=200))
    joblib.dump(pipeline.fit(rows, split.training.labels[:300]), path)
    return pipeline


def _small_files(small: Small, folder: Path) -> None:
    """Its state dict holds more than tensors: who made it."""
    state = small.state_dict()
    state._metadata["made_by"] = PurePosixPath("train.py")  # type: ignore[attr-defined]
    torch.save(state, folder / "small.pt")
    (folder / "small.py").write_text(SMALL_MODEL)


def _small(folder: Path) -> dict[str, Path]:
    return {"model_file": folder / "small.py", "serialized_file": folder / "small.pt"}


def _archives(archive: Callable[..., Path], store: Path, files: Path) -> None:
    """All but the package."""
    eager = {"model_file": EXAMPLE / "model.py", "serialized_file": files / "digits.pt"}
    archive(store, "digits", "pixels.py", source=PIXELS, config=BATCHES, **eager)
    archive(store, "onnx", "base_handler", config=BATCHES, serialized_file=files / "digits.onnx")
    archive(store, "exported", "base_handler", config=BATCHES, serialized_file=files / "digits.pt2")
    archive(store, "text", "classifier.py", source=CLASSIFIER, config=BATCHES, extra_files=str(files / "text"))
    weights = {"serialized_file": files / "pipeline.joblib"}
    archive(store, "pipeline", "pipeline.py", source=PIPELINE, config=BATCHES, **weights)
    compiled = BATCHES + TRUSTED + "pt2: {compile: {enable: true, backend: inductor, dynamic: true}}\n"
    archive(store, "inductor", "base_handler", config=compiled, **_small(files))


@pytest.fixture(scope="module")
def served(archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server with all of them, a worker each. While it starts, the compiler makes the package, which is registered then."""
    folder = tmp_path_factory.mktemp("real")
    store, files = folder / "store", folder / "files"
    files.mkdir()
    # What is compiled here, the workers need not compile again; the compiler is not tried with every kind of vector first.
    env = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled"), "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0"}
    env |= {"TORCHINDUCTOR_VEC_ISA_OK": "0"}
    small = Small().eval()
    _small_files(small, files)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(), ThreadPoolExecutor(1) as compiler:
        warnings.simplefilter("ignore")  # of torch about torch, and of the exporter about itself
        for name, value in env.items():
            patch.setenv(name, value)
        network, held_out = _trained_digits(patch)
        _digit_files(network, files)
        text_model, tokenizer = _text_files(files / "text")
        pipeline = _pipeline(files / "pipeline.joblib")
        package = compiler.submit(_compile_package, _exported(small), files / "small.pt2") if COMPILER else None
        _archives(archive, store, files)
        env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        config = {"default_workers_per_model": 1}
        with (
            ServerProcess(store, config=config, folder=folder / "server", env=env) as server,
            httpx.Client(timeout=120, trust_env=False) as client,
        ):
            served = Served(server, client, folder, network, held_out, text_model, tokenizer, pipeline, small)
            ping = f"{server.inference_url}/ping"
            wait_until(lambda: client.get(ping).status_code == 200, 120, f"healthy models\n{server.log}")
            if package is not None:
                package.result()
                made = archive(store, "package", "base_handler", config=BATCHES, serialized_file=files / "small.pt2")
                assert served.register(made).status_code == 200, server.log
            yield served
    # The compiler keeps what it has made for the next time, and that is not the server's to remove.
    assert [remain for remain in server.remains() if "/torchinductor_" not in remain] == []


def direct(model: Any, *inputs: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        answer: torch.Tensor = model(*inputs)
    return answer


@pytest.mark.parametrize("model", ["digits", "onnx", "exported"])
def test_a_network_trained_on_digits_answers_as_in_this_process(served: Served, model: str) -> None:
    """As an eager model behind a short handler, compiled; as an ONNX file and a program of torch.export without a handler."""
    images = served.held_out.images[: 2 * ROWS, np.newaxis]
    named = model == "digits"
    answers = served.ask(model, [{"image": image.tolist()} if named else image.tolist() for image in images])
    torch.testing.assert_close(torch.tensor(answers), direct(served.digits, torch.from_numpy(images)))


def test_the_digits_are_read_right(served: Served) -> None:
    """The network has learnt something, and its answers go to the requests they belong to."""
    images, labels = served.held_out.images[:48, np.newaxis], served.held_out.labels[:48]
    answers = served.ask("onnx", [image.tolist() for image in images])
    right = torch.tensor(answers).argmax(dim=1) == torch.from_numpy(labels)
    assert right.float().mean() > ACCURACY_MIN


def test_a_model_of_transformers_reads_texts_with_the_tokenizer_of_its_archive(served: Served) -> None:
    """Weights, configuration and words are files of the archive; nothing is fetched."""
    answers = served.ask("text", TEXTS)
    inputs = served.tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = served.text_model(**inputs).logits
    torch.testing.assert_close(torch.tensor(answers), expected, rtol=1e-5, atol=1e-5)


def test_a_pipeline_of_scikit_learn_answers_as_in_this_process(served: Served) -> None:
    """A file of joblib and eight lines of handler."""
    rows = served.held_out.images[:ROWS].reshape(ROWS, -1)
    answers = served.ask("pipeline", [row.tolist() for row in rows])
    np.testing.assert_allclose(answers, served.pipeline.predict_proba(rows), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "model",
    [
        "inductor",
        pytest.param("package", marks=pytest.mark.skipif(not COMPILER, reason="no C++ compiler makes the package")),
    ],
)
def test_a_compiled_model_answers_as_the_uncompiled(served: Served, model: str) -> None:
    """By torch.compile in the worker, or by AOTInductor before; its two inputs come by their names."""
    torch.manual_seed(11)
    left, right = torch.randn(ROWS, 3), torch.randn(ROWS, 3)
    bodies = [{"left": a.tolist(), "right": b.tolist()} for a, b in zip(left, right, strict=True)]
    torch.testing.assert_close(torch.tensor(served.ask(model, bodies)), direct(served.small, left, right))
    assert "uncompiled" not in served.server.log


def test_what_is_no_number_is_refused_by_the_default_handler(served: Served) -> None:
    """The client is told what it brought, and nothing that it brought beside it fails."""
    url = f"{served.server.inference_url}/predictions/onnx"
    answer = served.client.post(url, content=b"\x89PNG", headers={"content-type": "image/png"})
    assert answer.status_code == 400
    assert "takes numbers in JSON" in answer.json()["message"]


def test_weights_that_hold_more_are_refused_by_name_unless_trusted(
    served: Served, archive: Callable[..., Path]
) -> None:
    """The registration says which class, in which file, and how to allow it; the model compiled by inductor has the same file, and
    says that."""
    refused = served.register(archive(served.store, "refused", "base_handler", **_small(served.files)))
    message = refused.json()["message"]
    assert refused.status_code >= 400
    assert all(words in message for words in ("small.pt holds", "pathlib.PurePosixPath", "weights_only: false"))


def test_a_package_that_a_handler_lacks_is_named_to_whoever_registers_it(
    served: Served, archive: Callable[..., Path]
) -> None:
    """And not a default handler of that name, as TorchServe would have it."""
    refused = served.register(archive(served.store, "lacking", "lacking.py", source=NEEDS_MORE))
    assert refused.status_code >= 400
    assert "No module named 'a_package_that_nobody_has'" in refused.json()["message"]
    assert "ts.torch_handler" not in refused.json()["message"]

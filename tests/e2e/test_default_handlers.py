"""Archives without any code: the handlers that the server brings, by name, each with a small model, through the real CLI.

Every answer is what the model gives that is called directly, with the input prepared by the rules written out here.
"""

import importlib.util
import io
import json
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from ringserve.backends.ts.handler_utils.preprocess.images import imagenet_steps
from ringserve.server.testing import ServerProcess, wait_until
from ringserve.tools.cli.main import main

CLASSIFIER = """
import torch

class Shades(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.filters = torch.nn.Conv2d(3, 4, 7, stride=7)
        self.scores = torch.nn.Linear(4, 3)

    def forward(self, images):
        return self.scores(torch.tanh(self.filters(images)).mean((2, 3)))
"""
SEGMENTER = """
import torch
from typing import Dict

class Layers(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scores = torch.nn.Conv2d(3, 2, 1)

    def forward(self, images: torch.Tensor) -> Dict[str, torch.Tensor]:
        return {"out": self.scores(images)}
"""
DETECTOR = """
import torch

class Frames(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.margin = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, images):
        height, width = images.shape[2:]
        frame = torch.tensor([0.0, 0.0, float(width), float(height)])
        boxes = torch.stack([frame, frame + self.margin])
        labels = torch.tensor([1, 2])
        return [{"boxes": boxes, "labels": labels, "scores": torch.stack([each.mean(), each.min() * 0])} for each in images]
"""
TEXTS = """
import torch

class Texts(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.EmbeddingBag(8, 5)
        self.scores = torch.nn.Linear(5, 2)

    def forward(self, words, begins):
        return self.scores(self.embedding(words, begins))
"""
WORDS = ["<unk>", "a", "good", "film", "bad", "a good", "good film", "bad film"]
SHADES = ["dark", "grey", "bright"]
# All six of a batch are there before it leaves: what is asked together is computed together.
TOGETHER = "batchSize: 6\nmaxBatchDelay: 200\nbatching: fill\n"
MODELS = ("shades", "layers", "frames", "texts")

Ask = Callable[..., httpx.Response]


def build(folder: Path, name: str, source: str) -> Any:
    """The file of a model's class, and a model of random weights, the same in each run."""
    path = folder / f"{name}_model.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    torch.manual_seed(len(name) + 40)
    (kind,) = (each for each in vars(module).values() if isinstance(each, type))
    model: Any = kind()
    torch.save(model.state_dict(), folder / f"{name}.pt")
    return model.eval()


def archive(store: Path, name: str, handler: str, *flags: object) -> None:
    words = ["archive", "--model-name", name, "--version", "1.0", "--handler", handler, "--export-path", store, *flags]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The models themselves, and where they lie."""
    folder = tmp_path_factory.mktemp("default-handlers")
    sources = (CLASSIFIER, SEGMENTER, DETECTOR, TEXTS)
    return {
        "folder": folder,
        **{name: build(folder, name, source) for name, source in zip(MODELS, sources, strict=True)},
    }


@pytest.fixture(scope="module")
def store(models: dict[str, Any]) -> Path:
    folder: Path = models["folder"]
    store = folder / "store"
    store.mkdir()
    labels, config, script = folder / "index_to_name.json", folder / "model-config.yaml", folder / "layers-script.pt"
    labels.write_text(json.dumps({str(number): ["n1", shade] for number, shade in enumerate(SHADES)}))
    config.write_text(TOGETHER)
    torch.save(WORDS, folder / "source_vocab.pt")
    jit: Any = torch.jit
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, which archives are made of
        jit.script(models["layers"]).save(str(script))

    def eager(name: str) -> tuple[object, ...]:
        return ("--model-file", folder / f"{name}_model.py", "--serialized-file", folder / f"{name}.pt")

    named = ("--extra-files", labels, "--config-file", config)
    archive(store, "shades", "image_classifier", *eager("shades"), *named)
    archive(store, "layers", "image_segmenter", "--serialized-file", script)
    archive(store, "frames", "object_detector", *eager("frames"), "--config-file", config)
    vocabulary = ("--extra-files", folder / "source_vocab.pt", "--config-file", config)
    archive(store, "texts", "text_classifier", *eager("texts"), *vocabulary)
    return store


@pytest.fixture(scope="module")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    config = {"default_workers_per_model": 1, "load_models": "all"}
    server = ServerProcess(store, config=config, folder=tmp_path_factory.mktemp("default-handlers-server"))
    with server:
        ping = f"{server.inference_url}/ping"
        wait_until(lambda: httpx.get(ping, trust_env=False).status_code == 200, 60, f"healthy models\n{server.log}")
        yield server
    assert server.wait(1) == 0, server.log
    assert server.remains() == []


@pytest.fixture(scope="module")
def ask(server: ServerProcess) -> Iterator[Ask]:
    """Post to a model."""
    with httpx.Client(base_url=server.inference_url, timeout=60, trust_env=False) as client:

        def post(model: str, content: Any = None, *, verb: str = "predictions", **how: Any) -> httpx.Response:
            return client.post(f"/{verb}/{model}", content=content, **how)

        yield post


def asked_together(ask: Ask, model: str, bodies: list[Any], **how: Any) -> list[httpx.Response]:
    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(lambda body: ask(model, body, **how), bodies))


def image_of(seed: int, size: tuple[int, int]) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def as_file(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def opened(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file))


IMAGES = [
    as_file(image_of(1, (300, 200)), "JPEG"),
    as_file(image_of(2, (100, 333))),
    as_file(image_of(3, (64, 64)).convert("L")),
    as_file(image_of(4, (31, 400)).convert("RGBA")),
    as_file(image_of(5, (500, 40)).quantize(20)),
]


def classified(models: dict[str, Any], *images: bytes) -> list[dict[str, float]]:
    with torch.inference_mode():
        scores = torch.softmax(models["shades"](torch.stack([imagenet_steps()(opened(each)) for each in images])), 1)
    named = ({shade: float(value) for shade, value in zip(SHADES, row, strict=True)} for row in scores)
    return [dict(sorted(row.items(), key=lambda item: -item[1])) for row in named]


def same(answered: dict[str, float], expected: dict[str, float]) -> bool:
    """The same labels in the same order, with the same numbers."""
    return list(answered) == list(expected) and answered == pytest.approx(expected, abs=1e-5)


def test_a_batch_of_mixed_images_is_classified_and_the_broken_one_alone_is_refused(
    ask: Ask, models: dict[str, Any]
) -> None:
    *good, broken = asked_together(ask, "shades", [*IMAGES, IMAGES[0][:500]])
    assert [response.status_code for response in good] == [200] * 5
    for response, expected in zip(good, classified(models, *IMAGES), strict=True):
        assert same(response.json(), expected)  # three classes, fewer than the five of which an answer consists else
    assert broken.status_code == 400
    assert broken.json()["message"].startswith('The input "body" is no image that can be used: ')


def test_an_image_is_a_body_a_file_or_a_field_of_a_form_or_a_list_of_numbers(ask: Ask, models: dict[str, Any]) -> None:
    (expected,) = classified(models, IMAGES[1])
    lists = imagenet_steps()(opened(IMAGES[1])).tolist()
    ways: list[dict[str, Any]] = [
        {"content": IMAGES[1], "headers": {"content-type": "image/png"}},
        {"files": {"data": ("image.png", IMAGES[1], "image/png")}},
        {"files": {"body": IMAGES[1]}},
        {"content": json.dumps(lists), "headers": {"content-type": "application/json"}},
        {"content": urlencode({"data": IMAGES[1]}), "headers": {"content-type": "application/x-www-form-urlencoded"}},
        {"content": b"bm8gaW1hZ2U=", "headers": {"content-type": "text/plain"}},
    ]
    with ThreadPoolExecutor(6) as pool:
        *answers, refused = pool.map(lambda way: ask("shades", **way), ways)
    assert all(same(each.json(), expected) for each in answers), [each.text for each in answers]
    assert refused.status_code == 400


def test_an_image_is_explained_for_the_class_that_the_request_names(ask: Ask, models: dict[str, Any]) -> None:
    files = {"data": ("image.png", IMAGES[2], "image/png")}
    with ThreadPoolExecutor(2) as pool:
        first, last = pool.map(
            lambda more: ask("shades", verb="explanations", files=files, data=more), [{}, {"target": "2"}]
        )
    tensor = imagenet_steps()(opened(IMAGES[2]))[None]
    with torch.inference_mode():
        ways = models["shades"](tensor) - models["shades"](torch.zeros_like(tensor))
    for response, target in ((first, 0), (last, 2)):
        insights = torch.tensor(response.json())
        assert insights.shape == (3, 224, 224)
        assert insights.sum().item() == pytest.approx(ways[0, target].item(), abs=1e-3)


def test_the_segmenter_answers_class_and_probability_of_every_pixel(ask: Ask, models: dict[str, Any]) -> None:
    answers = asked_together(ask, "layers", IMAGES[:2])
    for response, file in zip(answers, IMAGES[:2], strict=True):
        with torch.inference_mode():
            scores = torch.softmax(models["layers"](imagenet_steps()(opened(file))[None])["out"], 1)[0]
        best, classes = scores.max(0)
        answered = torch.tensor(response.json())
        assert answered.shape == (224, 224, 2)
        torch.testing.assert_close(answered[:, :, 1], best, atol=1e-5, rtol=0)
        unsure = (scores[0] - scores[1]).abs() < 1e-5
        assert bool(((answered[:, :, 0] == classes) | unsure).all())


def test_the_detector_takes_images_of_different_sizes_in_one_batch(ask: Ask) -> None:
    sizes = [(40, 30), (30, 40), (40, 30), (7, 5), (1, 1), (64, 64)]
    bright = [as_file(Image.new("L" if width < 10 else "RGB", (width, height), "white")) for width, height in sizes]
    answers = asked_together(ask, "frames", bright)
    for response, (width, height) in zip(answers, sizes, strict=True):
        assert response.json() == [{"1": [0.0, 0.0, float(width), float(height)], "score": 1.0}]


def test_every_text_of_a_batch_is_classified(ask: Ask, models: dict[str, Any]) -> None:
    texts = {
        "A GOOD film!": [1, 2, 3, 5, 6],
        "<b>bad film</b>": [4, 3, 7],
        "film": [3],
        "unheard-of": [0],
        "a good good film": [1, 2, 2, 3, 5, 0, 6],
    }
    *answers, refused = asked_together(ask, "texts", [*texts, b"\xff"])
    for response, numbers in zip(answers, texts.values(), strict=True):
        with torch.inference_mode():
            expected = torch.softmax(models["texts"](torch.tensor(numbers), torch.tensor([0])), 1)[0].tolist()
        assert same(response.json(), {"0": expected[0], "1": expected[1]})
    assert refused.status_code == 400
    assert 'The input "body" should be text in UTF-8' in refused.json()["message"]


def test_a_text_is_explained(ask: Ask, models: dict[str, Any]) -> None:
    response = ask("texts", "A good film", verb="explanations")
    model = models["texts"]
    with torch.inference_mode():
        way = model.embedding(torch.tensor([1, 2, 3, 5, 6]), torch.tensor([0])) - model.embedding.weight[0]
        expected = torch.softmax(way * model.scores.weight[0], 1)
    assert response.json()["words"] == ["a", "good", "film"]
    torch.testing.assert_close(torch.tensor(response.json()["importances"]), expected, atol=1e-5, rtol=0)

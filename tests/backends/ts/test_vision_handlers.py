"""The handlers of vision models, called as the worker calls them, with models small enough to compute by hand."""

import base64
import io
import json
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ringserve.backends.contract import LoadedModel, Request
from ringserve.backends.handler_backend import HandlerBackend, make_context
from ringserve.backends.ts.handler_utils import explanations
from ringserve.backends.ts.handler_utils.preprocess.images import imagenet_steps
from ringserve.backends.ts.torch_handler.densenet_handler import DenseNetHandler
from ringserve.backends.ts.torch_handler.image_classifier import ImageClassifier
from ringserve.backends.ts.torch_handler.image_segmenter import ImageSegmenter
from ringserve.backends.ts.torch_handler.object_detector import ObjectDetector
from ringserve.backends.ts.torch_handler.vision_handler import VisionHandler
from ringserve.backends.ts.utils.util import PredictionException

MODEL_FILE = """
import torch

class Means(torch.nn.Module):
    # A score per class: the means of the three channels, times something per class.
    def __init__(self):
        super().__init__()
        self.weights = torch.nn.Parameter(torch.zeros({classes}, 3))

    def forward(self, images):
        return images.mean((2, 3)) @ self.weights.T
"""

MakeModel = Callable[..., LoadedModel]


def image_of(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


@pytest.fixture(autouse=True)
def the_limit_on_pixels_is_put_back() -> Iterator[None]:
    before = Image.MAX_IMAGE_PIXELS
    yield
    Image.MAX_IMAGE_PIXELS = before


@pytest.fixture
def classes() -> int:
    return 7


@pytest.fixture
def weights(classes: int) -> torch.Tensor:
    return torch.arange(classes * 3, dtype=torch.float32).reshape(classes, 3).sin()


@pytest.fixture
def model(make_model: MakeModel, weights: torch.Tensor) -> Callable[..., LoadedModel]:
    """An archive of the classifier, and of labels if there are any."""

    def make(handler: str = "image_classifier", labels: Any = None, **changes: Any) -> LoadedModel:
        state = io.BytesIO()
        torch.save({"weights": weights}, state)
        files = {"means.py": MODEL_FILE.format(classes=len(weights)), "means.pt": state.getvalue()}
        if labels is not None:
            files["index_to_name.json"] = json.dumps(labels)
        manifest = {"serializedFile": "means.pt", "modelFile": "means.py"}
        return make_model({**files, **changes.pop("files", {})}, handler, manifest=manifest, **changes)

    return make


@pytest.fixture
def started(model: Callable[..., LoadedModel], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """A handler that has loaded the classifier."""

    def start(kind: type = ImageClassifier, **changes: Any) -> Any:
        archive = model(**changes)
        monkeypatch.syspath_prepend(archive.model_dir)
        handler = kind()
        handler.initialize(make_context(archive))
        return handler

    return start


def likeliest(image: Image.Image, weights: torch.Tensor, count: int = 5) -> dict[str, float]:
    scores = torch.softmax(imagenet_steps()(image).mean((1, 2)) @ weights.T, 0)
    best, classes = scores.topk(min(count, len(weights)))
    return {str(number): value for number, value in zip(classes.tolist(), best.tolist(), strict=True)}


def answer(handler: Any, *rows: Any) -> Any:
    return handler.handle(list(rows), handler.context)


def test_the_classifier_answers_the_five_likeliest_classes_in_their_order(
    started: Callable[..., Any], weights: torch.Tensor
) -> None:
    handler, image = started(), image_of()
    (answered,) = answer(handler, {"body": bytearray(png(image))})
    expected = likeliest(image, weights)
    assert list(answered) == list(expected)
    assert answered == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("classes", [1, 3])
def test_a_model_with_fewer_than_five_classes_is_answered_with_all_of_them(
    started: Callable[..., Any], weights: torch.Tensor
) -> None:
    image = image_of()
    (answered,) = answer(started(), {"body": png(image)})
    assert len(answered) == len(weights)
    assert answered == pytest.approx(likeliest(image, weights), abs=1e-6)


def test_a_handler_may_set_how_many_classes_it_answers(started: Callable[..., Any], weights: torch.Tensor) -> None:
    handler = started()
    handler.set_max_result_classes(2)
    assert handler.get_max_result_classes() == 2
    assert list(answer(handler, {"body": png(image_of())})[0]) == list(likeliest(image_of(), weights, 2))


def test_classes_have_the_names_of_the_archive(started: Callable[..., Any], weights: torch.Tensor) -> None:
    handler = started(labels={str(number): ["n0", f"cat {number}"] for number in range(7)})
    assert list(answer(handler, {"data": png(image_of())})[0]) == [
        f"cat {each}" for each in likeliest(image_of(), weights)
    ]


def test_an_image_comes_as_bytes_as_base64_or_as_lists_under_data_or_as_the_body(started: Callable[..., Any]) -> None:
    image = image_of()
    data, lists = png(image), imagenet_steps()(image).tolist()
    ways = [data, bytearray(data), base64.b64encode(data).decode(), lists]
    answers = answer(started(), *({"data": way} for way in ways), *({"body": way} for way in ways), *ways)
    assert len(answers) == 12
    for each in answers[1:]:
        assert each == pytest.approx(answers[0], abs=1e-6)


def test_data_goes_before_the_body_unless_it_is_empty(started: Callable[..., Any]) -> None:
    first, second = png(image_of(1)), png(image_of(2))
    rows = [{"data": first, "body": second}, {"data": bytearray(), "body": second}, {"data": None, "body": second}]
    answers = answer(started(), *rows, {"body": first}, {"body": second})
    assert answers[0] == answers[3]
    assert answers[1] == answers[2] == answers[4]


def test_images_of_all_kinds_and_sizes_share_a_batch(started: Callable[..., Any], weights: torch.Tensor) -> None:
    images = [
        (png(image_of(0, (31, 200))), image_of(0, (31, 200))),
        (png(image_of(1).convert("L")), image_of(1).convert("L").convert("RGB")),
        (png(image_of(2).quantize(9)), image_of(2).quantize(9).convert("RGB")),
        (png(image_of(3), "BMP"), image_of(3)),
        (png(image_of(4).convert("RGBA")), image_of(4)),
    ]
    answers = answer(started(), *({"body": data} for data, _ in images))
    for answered, (_, image) in zip(answers, images, strict=True):
        assert answered == pytest.approx(likeliest(image, weights), abs=1e-6)


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        (
            {"body": b"no image"},
            'The input "body" is no image that can be used: its 8 bytes are in none of the formats',
        ),
        ({"data": png(image_of())[:200]}, 'The input "data" is no image that can be used: .*truncated'),
        ({"data": "abc"}, "base64: .*padding"),
        ({"data": "e30="}, "its 2 bytes are in none"),
        ({"body": bytearray()}, "its 0 bytes are in none of the formats that Pillow reads"),
        ({}, "nested lists of numbers were expected, nothing came"),
        ({"body": {"url": "http://x"}}, "a dict came"),
        ({"body": [[1.0, 2.0], [3.0]]}, "as lists it should be numbers in the shape of a tensor"),
        ({"body": ["a"]}, "as lists it should be numbers"),
        ({"body": [[10**400]]}, "as lists it should be numbers in the shape of a tensor: int too large"),
        (
            {"body": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"},
            "it is a program in PostScript",
        ),
        ({"body": struct.pack("<7I", 0xC6D3D0C5, 30, 50, 0, 0, 0, 0)}, "it is a program in PostScript"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[-30:],
)
def test_what_is_no_image_is_a_bad_request_that_says_why(
    started: Callable[..., Any], row: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(PredictionException, match=sentence) as refused:
        answer(started(), row)
    assert refused.value.error_code == 400


def test_the_handler_runs_by_its_name_and_refuses_by_status(
    model: Callable[..., LoadedModel], ask: Callable[..., Any], request_of: Callable[..., Request]
) -> None:
    backend = HandlerBackend()
    backend.load(model())
    (good,) = ask(backend, [request_of(png(image_of()), content_type="image/png")])
    assert json.loads(good.body)
    with pytest.raises(Exception, match='"body" is no image') as failed:
        ask(backend, [request_of(b"broken", content_type="image/png")])
    assert getattr(failed.value, "http_status", None) == 400


def test_the_error_of_a_handlers_own_processing_is_not_blamed_on_the_image(started: Callable[..., Any]) -> None:
    class Mine(ImageClassifier):
        def image_processing(self, image: Any) -> Any:
            raise ZeroDivisionError("mine")

    handler = started(Mine)
    with pytest.raises(ZeroDivisionError, match="mine"):
        answer(handler, {"body": png(image_of())})
    with pytest.raises(PredictionException, match="in none of the formats"):
        answer(handler, {"body": b"?"})


def test_a_subclass_gets_the_image_as_it_was_opened(started: Callable[..., Any]) -> None:
    seen = []

    def processing(image: Image.Image) -> torch.Tensor:
        seen.append((image.mode, image.size))
        return torch.ones(3, 2, 2)

    class Mine(ImageClassifier):
        image_processing = staticmethod(processing)

    answer(started(Mine), {"body": png(image_of().convert("L"))}, {"body": png(image_of().convert("RGBA"))})
    assert seen == [("L", (40, 30)), ("RGBA", (40, 30))]


@pytest.mark.parametrize("limited", [True, False])
def test_the_limit_on_pixels_is_the_servers_decision(started: Callable[..., Any], limited: bool) -> None:
    Image.MAX_IMAGE_PIXELS = 500  # an image of 1200 is above twice that
    handler = started(limit_max_image_pixels=limited)
    if limited:
        with pytest.raises(PredictionException, match="exceeds limit of 1000 pixels") as refused:
            answer(handler, {"body": png(image_of())})
        assert refused.value.error_code == 400
    else:
        assert len(answer(handler, {"body": png(image_of())})) == 1


def context_that_explains(handler: Any) -> Any:
    return SimpleNamespace(
        get_request_header=lambda row, name: "True" if name == "explain" else None,
        metrics=None,
        model_yaml_config={},
        manifest=handler.manifest,
    )


@pytest.mark.parametrize("installed", [True, False], ids=["captum", "ours"])
def test_an_explanation_has_the_shape_of_the_tensor_and_adds_up(
    started: Callable[..., Any], weights: torch.Tensor, monkeypatch: pytest.MonkeyPatch, installed: bool
) -> None:
    if not installed:
        monkeypatch.setattr(explanations, "find_spec", lambda name: None)
    handler = started()
    rows = [{"data": png(image_of(1)), "target": b"2"}, {"data": png(image_of(2)), "target": 5}]
    insights = torch.tensor(handler.handle(rows, context_that_explains(handler)))
    tensors = torch.stack([imagenet_steps()(image_of(1)), imagenet_steps()(image_of(2))])
    assert insights.shape == (2, 3, 224, 224)
    # The model is linear: a number accounts for itself times its weight.
    expected = tensors * weights[[2, 5], :, None, None] / 224**2
    torch.testing.assert_close(insights, expected, atol=1e-5 / 224, rtol=1e-4)


def test_get_insights_takes_the_arguments_handlers_give_it(started: Callable[..., Any]) -> None:
    handler = started()
    tensors = torch.randn(2, 3, 4, 4)
    for insights in (handler.get_insights(tensors, b"raw"), handler.get_insights(tensors, None, target=1)):
        assert torch.tensor(insights).shape == tensors.shape
    assert torch.equal(handler.ig.attribute(tensors, target=1, n_steps=15), torch.tensor(insights))


@pytest.mark.parametrize("installed", [True, False], ids=["captum", "ours"])
@pytest.mark.parametrize("target", [7, -8])
def test_a_class_that_the_model_does_not_have_is_a_bad_request(
    started: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, installed: bool, target: int
) -> None:
    if not installed:
        monkeypatch.setattr(explanations, "find_spec", lambda name: None)
    with pytest.raises(PredictionException, match=f"The model has no class {target} to explain: ") as refused:
        started().get_insights(torch.ones(1, 3, 4, 4), None, target)
    assert refused.value.error_code == 400


def test_an_explainer_of_a_handlers_own_is_used(started: Callable[..., Any]) -> None:
    handler = started()
    handler.ig = SimpleNamespace(attribute=lambda tensors, target, n_steps: tensors * target)
    assert handler.get_insights(torch.ones(1, 2), None, 3) == [[3.0, 3.0]]


class Halves(torch.nn.Module):
    """Two classes: the left half of every image is the first, the right the second, by different margins."""

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        rows, _, height, width = images.shape
        scores = torch.zeros(rows, 2, height, width)
        scores[:, 0, :, : width // 2] = 2.0
        scores[:, 1, :, width // 2 :] = 1.0
        return {"out": scores, "aux": scores}


def test_the_segmenter_answers_class_and_probability_of_every_pixel() -> None:
    handler = ImageSegmenter()
    handler.model, handler.device = Halves(), torch.device("cpu")
    context = SimpleNamespace(get_request_header=lambda row, name: None, metrics=None, model_yaml_config={})
    answers = torch.tensor(handler.handle([{"body": png(image_of())}, {"body": png(image_of(1))}], context))
    assert answers.shape == (2, 224, 224, 2)
    assert answers[1, 10, 0].tolist() == pytest.approx([0.0, 1 / (1 + np.exp(-2))])
    assert answers[1, 10, 223].tolist() == pytest.approx([1.0, 1 / (1 + np.exp(-1))])


class Corners(torch.nn.Module):
    """Finds in each image a thing as large as it, of the class that its height is, and doubts half of it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> list[dict[str, torch.Tensor]]:
        self.calls.append(tuple(images.shape))
        height, width = images.shape[2:]
        box = torch.tensor([[0, 0, width, height], [0, 0, 1, 1], [0, 0, 2, 2]], dtype=torch.float32)
        scores = torch.tensor([float(images[0].max()), 0.4999, 0.5])
        return [{"boxes": box, "labels": torch.tensor([height, 1, 2]), "scores": scores} for _ in images]


@pytest.fixture
def detector() -> ObjectDetector:
    handler = ObjectDetector()
    handler.model, handler.device = Corners(), torch.device("cpu")
    return handler


def white(width: int, height: int, mode: str = "RGB") -> dict[str, bytes]:
    return {"body": png(Image.new(mode, (width, height), "white"))}


CONTEXT = SimpleNamespace(get_request_header=lambda row, name: None, metrics=None, model_yaml_config={})


def test_the_detector_answers_what_it_is_sure_enough_of(detector: ObjectDetector) -> None:
    detector.mapping = {"3": "dog", "2": "cat"}
    (found,) = detector.handle([white(4, 3)], CONTEXT)
    assert found == [{"dog": [0.0, 0.0, 4.0, 3.0], "score": 1.0}, {"cat": [0.0, 0.0, 2.0, 2.0], "score": 0.5}]


def test_without_labels_the_detector_answers_class_numbers(detector: ObjectDetector) -> None:
    detector.threshold = 0.6
    assert detector.handle([white(4, 3)], CONTEXT) == [[{"3": [0.0, 0.0, 4.0, 3.0], "score": 1.0}]]


def test_images_of_different_sizes_are_detected_in_one_batch_per_size(detector: ObjectDetector) -> None:
    detector.threshold = 0.6
    answers = detector.handle([white(4, 3), white(5, 6, "L"), white(4, 3)], CONTEXT)
    assert [list(found[0]) for found in answers] == [["3", "score"], ["6", "score"], ["3", "score"]]
    assert detector.model.calls == [(2, 3, 3, 4), (1, 3, 6, 5)]


def saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


@pytest.fixture
def densenet() -> DenseNetHandler:
    handler = DenseNetHandler()
    handler.model, handler.device = torch.nn.Flatten(), torch.device("cpu")
    return handler


def test_the_densenet_handler_takes_saved_tensors_and_answers_tensors(densenet: DenseNetHandler) -> None:
    first, second = torch.randn(2, 3), torch.randn(2, 3)
    one = densenet.handle([{"body": saved(first)}], CONTEXT)
    assert torch.equal(one[0], first.reshape(1, 6))
    both = densenet.handle([{"data": saved(second)}, {"body": bytearray(saved(first))}], CONTEXT)
    assert [each.shape for each in both] == [(1, 6), (1, 6)]
    assert torch.equal(both[1], one[0])


class Program:
    """What a pickle may do when it is opened."""

    def __reduce__(self) -> Any:
        return warnings.warn, ("the pickle of a client has run",)


def deflated(file: bytes) -> bytes:
    """The same zip file with its entries compressed, as torch does not write them and reads them all the same."""
    smaller = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(file)) as given, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as made:
        for entry in given.namelist():
            made.writestr(entry, given.read(entry))
    return smaller.getvalue()


@pytest.mark.parametrize(
    "body",
    [b"", b"text", saved(Program()), saved({"a": 1}), saved(torch.ones(1))[:-20], 5, [1.0], b"\x80\x02."],
    ids=["nothing", "text", "a program", "a dict", "truncated", "a number", "a list", "half a pickle"],
)
def test_what_is_no_saved_tensor_is_a_bad_request_and_is_not_run(densenet: DenseNetHandler, body: Any) -> None:
    with pytest.raises(
        PredictionException, match=r'"body" should be a dense tensor as torch\.save writes it'
    ) as refused:
        densenet.handle([{"body": body}], CONTEXT)
    assert refused.value.error_code == 400


@pytest.mark.parametrize(
    ("body", "came"),
    [
        (saved(torch.zeros(1).expand(2**20, 2**20)), "a saved tensor of 4398046511104 bytes in a file of"),
        (deflated(saved(torch.zeros(10**6))), "bytes of something else"),
        (saved(torch.ones(3, device="meta")), "a saved tensor without values"),
        (saved(torch.eye(3).to_sparse()), "a saved tensor that is not dense"),
    ],
    ids=["repeated", "compressed", "without values", "sparse"],
)
def test_a_tensor_larger_than_its_file_or_of_another_kind_is_refused(
    densenet: DenseNetHandler, body: bytes, came: str
) -> None:
    with pytest.raises(PredictionException, match=rf"a dense tensor as torch\.save writes it; .*{came}") as refused:
        densenet.handle([{"body": body}], CONTEXT)
    assert refused.value.error_code == 400


def test_a_vision_handler_without_processing_takes_tensors_alone() -> None:
    handler = VisionHandler()
    handler.device = torch.device("cpu")
    assert torch.equal(handler.preprocess([{"data": [[1, 2]]}, [[3, 4]]]), torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]))

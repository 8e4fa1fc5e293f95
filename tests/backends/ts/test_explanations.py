"""Our integrated gradients against captum's, and what chooses between them."""

import subprocess
import sys
from typing import Any

import captum.attr
import pytest
import torch

from ringserve.backends.ts.handler_utils import explanations
from ringserve.backends.ts.handler_utils.explanations import (
    IntegratedGradients,
    LayerIntegratedGradients,
    as_one_target,
    integrated_gradients,
    layer_integrated_gradients,
    row_targets,
)
from ringserve.backends.ts.utils.util import PredictionException


class Bag(torch.nn.Module):
    """A classifier of texts as TorchServe's example has it."""

    def __init__(self, summed: bool = True) -> None:
        super().__init__()
        self.embedding: Any = torch.nn.EmbeddingBag(50, 8) if summed else torch.nn.Embedding(50, 8)
        self.hidden = torch.nn.Linear(8, 6)
        self.out = torch.nn.Linear(6, 4)

    def forward(self, words: torch.Tensor, begins: torch.Tensor) -> torch.Tensor:
        found = (
            self.embedding(words, begins)
            if isinstance(self.embedding, torch.nn.EmbeddingBag)
            else self.embedding(words)
        )
        answer: torch.Tensor = self.out(torch.tanh(self.hidden(found)))
        return answer


@pytest.fixture
def convolution() -> Any:
    torch.manual_seed(5)
    layers = [
        torch.nn.Conv2d(3, 6, 3),
        torch.nn.GELU(),
        torch.nn.Flatten(),
        torch.nn.Linear(6 * 36, 7),
        torch.nn.Softmax(1),
    ]
    return torch.nn.Sequential(*layers).eval()


@pytest.mark.parametrize("target", [0, 5, [4, 0, 6]], ids=str)
@pytest.mark.parametrize("n_steps", [1, 15, 50])
def test_ours_are_captums_numbers(convolution: Any, target: Any, n_steps: int) -> None:
    images = torch.randn(3, 3, 8, 8)
    ours = IntegratedGradients(convolution).attribute(images, target=target, n_steps=n_steps)
    captums = captum.attr.IntegratedGradients(convolution).attribute(images, target=target, n_steps=n_steps)
    assert ours.shape == images.shape
    torch.testing.assert_close(ours, captums, atol=1e-5, rtol=0)


def test_a_baseline_and_further_arguments_go_to_the_model_at_every_step() -> None:
    def model(rows: torch.Tensor, factors: torch.Tensor, power: int) -> torch.Tensor:
        return (rows**power * factors).sum(1)

    rows, factors = torch.randn(4, 3), torch.randn(4, 3)
    ours = IntegratedGradients(model).attribute(rows, 0.5, additional_forward_args=(factors, 3), n_steps=4)
    captums = captum.attr.IntegratedGradients(model).attribute(
        rows, 0.5, additional_forward_args=(factors, 3), n_steps=4
    )
    torch.testing.assert_close(ours, captums, atol=1e-5, rtol=1e-5)


def test_attributions_add_up_to_the_difference_that_the_input_makes(convolution: Any) -> None:
    image = torch.randn(1, 3, 8, 8)
    total = IntegratedGradients(convolution).attribute(image, target=2).sum()
    with torch.no_grad():
        difference = convolution(image)[0, 2] - convolution(torch.zeros_like(image))[0, 2]
    torch.testing.assert_close(total, difference, atol=1e-4, rtol=0)


def test_a_model_with_several_outputs_needs_a_target(convolution: Any) -> None:
    with pytest.raises(ValueError, match=r"several outputs, \[7\]: a target is needed"):
        IntegratedGradients(convolution).attribute(torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize("summed", [True, False], ids=["a bag of words", "word by word"])
def test_ours_of_a_layer_are_captums_numbers(summed: bool) -> None:
    torch.manual_seed(6)
    model = Bag(summed).eval()
    words, zeros, begins = torch.tensor([7, 3, 49, 7]), torch.zeros(4, dtype=torch.int64), torch.tensor([0])
    ours, captums = (
        kind(model, model.embedding).attribute(words, zeros, additional_forward_args=begins, target=3)
        for kind in (LayerIntegratedGradients, captum.attr.LayerIntegratedGradients)
    )
    assert ours.shape == (1 if summed else 4, 8)
    torch.testing.assert_close(ours, captums, atol=1e-5, rtol=0)


def test_an_explanation_leaves_no_hook_and_no_gradient_behind() -> None:
    model = Bag().eval()
    with pytest.raises(IndexError):
        LayerIntegratedGradients(model, model.embedding).attribute(
            torch.tensor([1]), additional_forward_args=torch.tensor([0]), target=99
        )
    assert not model.embedding._forward_hooks
    assert all(weights.grad is None for weights in model.parameters())


def test_a_layer_that_the_answer_does_not_go_through_is_named_as_the_reason() -> None:
    model = Bag()
    with pytest.raises(ValueError, match="does not go through the layer"):
        LayerIntegratedGradients(model, torch.nn.Linear(2, 2)).attribute(
            torch.tensor([1]), additional_forward_args=torch.tensor([0]), target=0
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_layers_of_a_torchscript_model_cannot_be_explained() -> None:
    jit: Any = torch.jit
    scripted = jit.script(torch.nn.Sequential(torch.nn.Linear(2, 2)))
    with pytest.raises(TypeError, match="only an eager one can be explained"):
        layer_integrated_gradients(scripted, scripted)


def test_captum_explains_where_it_is_installed_and_we_do_where_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Bag()
    assert isinstance(integrated_gradients(model), captum.attr.IntegratedGradients)
    assert isinstance(layer_integrated_gradients(model, model.embedding), captum.attr.LayerIntegratedGradients)
    monkeypatch.setattr(explanations, "find_spec", lambda name: None)
    assert type(integrated_gradients(model)) is IntegratedGradients
    assert type(layer_integrated_gradients(model, model.embedding)) is LayerIntegratedGradients


def test_captum_is_not_imported_by_a_handler_that_is_loaded() -> None:
    handlers = ["image_classifier", "image_segmenter", "object_detector", "text_classifier", "densenet_handler"]
    imports = "; ".join(f"import ringserve.backends.ts.torch_handler.{name}" for name in handlers)
    script = f"{imports}; import sys; assert not {{'captum', 'torchvision'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", script], check=True, timeout=120)


def test_every_row_names_the_class_it_wants_explained() -> None:
    rows = [
        {"body": b"x"},
        {"target": bytearray(b"3")},
        {"target": 2},
        {"target": "1"},
        {"target": 4.0},
        "an envelope's",
    ]
    assert row_targets(rows) == [0, 3, 2, 1, 4, 0]


@pytest.mark.parametrize(
    "target", [b"cat", 1.5, [1], {"class": 1}, b"9" * 5000, 2**63], ids=lambda target: f"{target!r:.10}"
)
def test_a_target_that_is_no_class_number_is_a_bad_request(target: object) -> None:
    with pytest.raises(PredictionException, match="number of the class to explain, a whole number") as refused:
        row_targets([{"target": target}])
    assert refused.value.error_code == 400


def test_rows_that_want_the_same_class_ask_for_one() -> None:
    assert as_one_target([3, 3]) == 3
    assert as_one_target([3, 1]) == [3, 1]

"""From what requests bring to tensors, and from what models return to answers."""

from typing import Any

import numpy as np
import pytest
import torch

from ringserve.backends.ts.utils.rows import rows_of, tensors_of
from ringserve.backends.ts.utils.util import PredictionException


@pytest.mark.parametrize(
    ("rows", "tensor"),
    [
        ([{"body": [1.0, 2.0]}, {"data": [3.0, 4.0]}], torch.tensor([[1.0, 2.0], [3.0, 4.0]])),
        ([{"body": 3}], torch.tensor([3])),
        ([{"data": [0, 1], "body": [7.5]}], torch.tensor([[0, 1]])),
        ([{"body": [[True, False]]}], torch.tensor([[[True, False]]])),
        ([{"body": []}], torch.empty(1, 0)),
    ],
)
def test_what_requests_bring_is_one_tensor_with_a_row_for_each(rows: list[Any], tensor: torch.Tensor) -> None:
    torch.testing.assert_close(tensors_of(rows, "cpu"), tensor)


@pytest.mark.parametrize(
    "rows",
    [
        [{"body": {"x": [1.0], "y": 2}}, {"body": {"y": 4, "x": [3.0]}}],
        [{"x": [1.0], "y": 2}, {"x": [3.0], "y": 4}],
    ],
)
def test_named_inputs_are_a_tensor_each(rows: list[Any]) -> None:
    """Named in a JSON object, or by the parts of a form."""
    expected = {"x": torch.tensor([[1.0], [3.0]]), "y": torch.tensor([2, 4])}
    torch.testing.assert_close(tensors_of(rows, "cpu"), expected)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"body": b"\xff\xd8"}], "the request brought bytes as its data"),
        ([{"body": bytearray(b"abc")}], "the request brought bytearray as its data"),
        ([{"body": "abc"}], "the request brought str as its data"),
        ([{"body": None}], "the request brought NoneType as its data"),
        ([{}], "an object of one such list for each input"),
        ([{"body": {}}], "an object of one such list for each input"),
        ([{"body": {"x": 1}}, {"body": {"y": 1}}], "an object of one such list for each input"),
        ([{"body": {"x": 1}}, {"body": [1]}], "an object of one such list for each input"),
        ([{"body": {"x": "no"}}], 'the request brought str as its input "x"'),
        ([{"body": ["a"]}], "as its data makes no tensor"),
        ([{"body": [[1.0], [1.0, 2.0]]}], "as its data makes no tensor"),
        ([{"body": [{"x": 1}]}], "as its data makes no tensor"),
        ([{"body": [1]}, {"body": {"x": 1}}], "as its data makes no tensor"),
        ([{"body": [2**70]}], "as its data makes no tensor"),
        ([{"body": [1.0, 10**400]}], "as its data makes no tensor"),
        ([{"body": [[], [1.0]]}], "as its data makes no tensor"),
        ([{"body": []}, {"body": [1.0]}], "as its data makes no tensor"),
        ([{"body": {"x": [[], []]}}, {"body": {"x": [[], [2.0]]}}], 'as its input "x" makes no tensor'),
    ],
)
def test_what_makes_no_tensor_is_the_clients_mistake(rows: list[Any], message: str) -> None:
    with pytest.raises(PredictionException) as refusal:
        tensors_of(rows, "cpu")
    assert message in refusal.value.message
    assert refusal.value.error_code == 400


@pytest.mark.parametrize(
    ("output", "answers"),
    [
        (torch.tensor([[1.0], [2.0]]), [[1.0], [2.0]]),
        (np.array([1, 2]), [1, 2]),
        ({"a": torch.tensor([1, 2]), "b": torch.tensor([[3.0], [4.0]])}, [{"a": 1, "b": [3.0]}, {"a": 2, "b": [4.0]}]),
        (
            {"label": np.array(["x", "y"]), "map": [{"x": 1.0}, {"y": 1.0}]},
            [{"label": "x", "map": {"x": 1.0}}, {"label": "y", "map": {"y": 1.0}}],
        ),
        ((torch.tensor([1, 2]), torch.tensor([[3], [4]])), [[1, [3]], [2, [4]]]),
    ],
)
def test_an_answer_has_the_rows_of_every_output(output: Any, answers: list[Any]) -> None:
    assert rows_of(output) == answers


@pytest.mark.parametrize("output", [None, "text", [1, 2], [[1], [2]]])
def test_what_is_no_output_of_a_model_raises_as_in_torchserve(output: Any) -> None:
    with pytest.raises(AttributeError):
        rows_of(output)

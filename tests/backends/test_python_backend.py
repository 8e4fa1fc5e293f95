"""Python classes between arrays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ringserve.backends.contract import Batch, ContractBroken, LoadedModel
from ringserve.backends.python_backend import PythonBackend
from ringserve.protocol.errors import InvalidModel, PredictionFailed
from ringserve.protocol.tensor import Signature, TensorSpec

SIGNATURE = Signature((TensorSpec("x", "float32", (2,)),), (TensorSpec("y", "float32", (2,)),))

Run = Callable[..., Any]


def model_class(*lines: str, name: str = "Model", load: str = "pass") -> str:
    """A model whose `predict` has this body."""
    body = "\n".join(f"        {line}" for line in lines)
    head = f"import numpy as np\nclass {name}:\n    def load(self, model):\n        {load}\n"
    return f"{head}    def predict(self, inputs, outputs):\n{body}\n"


@pytest.fixture
def run(make_model: Callable[..., LoadedModel], typed_batch: Callable[..., Batch]) -> Run:
    """Load this source and run a batch of two rows, [0, 1] and [2, 3]; the output."""

    def answer(source: str, handler: str = "handler.py", **changes: Any) -> Any:
        backend = PythonBackend()
        backend.load(make_model({"handler.py": source}, handler, **{"signature": SIGNATURE, **changes}))
        batch = typed_batch(SIGNATURE, 2, x=np.arange(4, dtype=np.float32).reshape(2, 2))
        backend.execute(batch)
        return batch.outputs["y"].tolist()

    return answer


@pytest.mark.parametrize(
    "line",
    [
        "outputs['y'][:] = inputs['x'] + 1",
        "np.add(inputs['x'], 1, out=outputs['y'])",
        "outputs['y'] = inputs['x'] + 1",
        "return inputs['x'] + 1",
        "return {'y': inputs['x'] + 1, 'extra': 3}",
    ],
)
def test_an_answer_may_be_written_or_returned(run: Run, line: str) -> None:
    """In place, as an array, as a dict, and by the slip of assigning into the dict."""
    assert run(model_class(line)) == [[1, 2], [3, 4]]


def test_rows_that_the_model_leaves_alone_are_zero(run: Run) -> None:
    """Never what an earlier batch left in the slab."""
    assert run(model_class("outputs['y'][0] = 5")) == [[5, 5], [0, 0]]


def test_the_class_loads_before_it_predicts(run: Run) -> None:
    """With the model's description, and with its own folder importable."""
    assert run(model_class("return inputs['x'] * self.factor", load="self.factor = len(model.name)")) == [
        [0, 1],
        [2, 3],
    ]


def test_a_class_may_be_named(run: Run) -> None:
    """`module:Class` chooses among several."""
    source = model_class("return inputs['x']") + model_class("return -inputs['x']", name="Other")
    assert run(source, "handler:Other") == [[0, -1], [-2, -3]]


def test_inputs_cannot_be_written(run: Run) -> None:
    """They are the server's memory."""
    with pytest.raises(PredictionFailed):
        run(model_class("inputs['x'][:] = 0"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("return inputs['x'].astype('float64')", r'Output "y": expected float32\[2, 2\], got float64\[2, 2\]'),
        ("return inputs['x'][:1]", r'Output "y": expected float32\[2, 2\], got float32\[1, 2\]'),
        ("outputs['y'] = None", r'Output "y": expected float32\[2, 2\], got object\[\]'),
        ("return {'z': 1}", r"the outputs y; got a dict of \['z'\]"),
        ("return 'text'", "the outputs y; got one str"),
        ("return [[1.0, 2.0]]", "the outputs y; got one list"),
    ],
)
def test_an_answer_that_is_not_as_declared_is_named(run: Run, line: str, message: str) -> None:
    """Nothing is broadcast or converted silently."""
    with pytest.raises(PredictionFailed, match=message):
        run(model_class(line))


def test_a_model_that_exits_does_not_end_the_worker(run: Run) -> None:
    """`sys.exit()` is a failure of the model."""
    with pytest.raises(PredictionFailed, match="Prediction failed"):
        run(model_class("raise SystemExit(0)"))


@pytest.mark.parametrize(
    ("source", "handler", "message"),
    [
        ("", "gone.py", 'no module "gone"'),
        ("", "handler.py", r"should define one class, found \[\]"),
        ("class A: pass", "handler:B", 'has no class "B"'),
        ("class A: pass", "handler", "A in handler has no method predict"),
    ],
)
def test_a_model_that_is_not_there_is_named(run: Run, source: str, handler: str, message: str) -> None:
    """The sentence says what was looked for."""
    with pytest.raises(InvalidModel, match=message):
        run(source, handler)


def test_a_declaration_is_required(run: Run) -> None:
    """Arrays need a type and a shape."""
    with pytest.raises(InvalidModel, match='"python" needs the inputs and outputs'):
        run(model_class("pass"), signature=Signature())


def test_a_generator_is_told_that_arrays_do_not_stream(run: Run) -> None:
    """Its code has not run."""
    with pytest.raises(ContractBroken, match="does not stream"):
        run(model_class("yield inputs['x']"))

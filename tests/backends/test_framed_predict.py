"""Python classes whose tensors are not of one fixed size, or whose answers are any number."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from ringserve.backends.contract import Batch, BatchControl, ContractBroken, LoadedModel, TensorCall, TensorResult
from ringserve.backends.python_backend import PythonBackend
from ringserve.protocol.errors import InvalidModel, PredictionFailed, RingServeError
from ringserve.protocol.request import Scalar
from ringserve.protocol.tensor import Signature, TensorSpec

VARIABLE = Signature((TensorSpec("x", "float32", (-1,)),), (TensorSpec("y", "float32", (-1,)),))
FIXED = Signature((TensorSpec("x", "float32", (2,)),), (TensorSpec("y", "float32", (2,)),))
TEXTS = Signature((TensorSpec("x", "bytes", (-1,)),), (TensorSpec("y", "bytes", (-1,)),))
DECOUPLED = Signature(VARIABLE.inputs, VARIABLE.outputs, decoupled=True)

Run = Callable[..., Any]


class Sent(BatchControl):
    """Keeps what is sent, and has these clients leave after so many answers."""

    def __init__(self, leave_after: Mapping[int, int] | None = None) -> None:
        self.answers: list[tuple[int, Any, dict[str, Scalar], bool]] = []
        self._leave_after = leave_after or {}

    def cancelled(self, row: int) -> bool:
        had = sum(1 for each in self.answers if each[0] == row)
        return row in self._leave_after and had >= self._leave_after[row]

    def send(
        self,
        row: int,
        answer: Mapping[str, np.ndarray] | RingServeError | None,
        parameters: Mapping[str, Scalar] | None = None,
        *,
        final: bool = False,
    ) -> bool:
        said = {name: array.tolist() for name, array in answer.items()} if isinstance(answer, Mapping) else answer
        self.answers.append((row, said, dict(parameters or {}), final))
        return not self.cancelled(row)


def model_class(signature: str, *lines: str) -> str:
    """A model whose `predict` takes these and has this body."""
    body = "\n".join(f"        {line}" for line in lines)
    return f"import numpy as np\nclass Model:\n    def predict(self, {signature}):\n{body}\n"


def call(x: Any, **fields: Any) -> TensorCall:
    """A request; texts where `x` has some."""
    array = np.array(x, object if isinstance(x[0][0], bytes) else np.float32)
    array.flags.writeable = False
    return TensorCall("id", {"x": array}, len(array), **fields)


@pytest.fixture
def run(make_model: Callable[..., LoadedModel]) -> Run:
    """Load this source and run these calls as the worker would; their results, or what they were sent."""

    def answer(source: str, signature: Signature, *calls: TensorCall, control: Sent | None = None) -> Any:
        backend = PythonBackend()
        taken = backend.load(make_model({"handler.py": source}, signature=signature))
        batch = Batch(len(calls), calls=calls, control=control or Sent())
        if len(calls) == 1 or not taken.ragged:
            batch.inputs = {"x": np.concatenate([each.inputs["x"] for each in calls])}
        backend.execute(batch)
        return batch.results

    return answer


def values(results: Sequence[Any]) -> list[Any]:
    """What is in the output of each."""
    return [each.outputs["y"].tolist() if isinstance(each, TensorResult) else each for each in results]


@pytest.mark.parametrize(
    ("signature", "line"),
    [
        ("inputs", "return inputs['x'] * 2"),
        ("inputs", "return {'y': inputs['x'] * 2}"),
        ("inputs, outputs", "outputs['y'] = inputs['x'] * 2"),
        ("inputs, outputs, context", "outputs['y'] = inputs['x'] * len(context.requests)"),
        ("inputs, context", "return inputs['x'] * len(context.requests)"),
        ("inputs, outputs, asked", "return inputs['x'] * len(asked.requests)"),
        ("*arguments", "return arguments[0]['x'] * len(arguments)"),
    ],
)
def test_predict_takes_what_it_names(run: Run, signature: str, line: str) -> None:
    """Inputs alone, with outputs to fill, with the context: two requests are one call of two rows."""
    results = run(model_class(signature, line), VARIABLE, call([[1, 2, 3]]), call([[4, 5, 6]]))
    assert values(results) == [[[2, 4, 6]], [[8, 10, 12]]]


def test_requests_of_several_rows_are_divided_again(run: Run) -> None:
    """As they came."""
    results = run(model_class("inputs", "return inputs['x'] + 1"), VARIABLE, call([[1], [2]]), call([[3]]))
    assert values(results) == [[[2], [3]], [[4]]]


def test_a_ragged_model_sees_equal_shapes_together(run: Run) -> None:
    """And other shapes in a call of their own; every answer is in its place."""
    ragged = Signature(VARIABLE.inputs, VARIABLE.outputs, ragged=True)
    source = model_class("inputs", "return inputs['x'] * 0 + len(inputs['x'])")
    assert values(run(source, ragged, call([[1, 2]]), call([[3]]), call([[4, 5]]))) == [[[2, 2]], [[1]], [[2, 2]]]


def test_one_group_that_fails_leaves_the_others(run: Run) -> None:
    """They were other calls of the model."""
    ragged = Signature(VARIABLE.inputs, VARIABLE.outputs, ragged=True)
    source = model_class("inputs", "assert inputs['x'].shape[1] == 1", "return inputs['x']")
    failed, answered = values(run(source, ragged, call([[1, 2]]), call([[3]])))
    assert isinstance(failed, PredictionFailed)
    assert answered == [[3]]


def test_a_model_of_fixed_rows_gets_requests_when_it_asks_for_the_context(run: Run) -> None:
    """The rows of a slab know nothing of requests."""
    source = model_class("inputs, outputs, context", "outputs['y'] = inputs['x'] + context.requests[0].sequence_id")
    assert values(run(source, FIXED, call([[1, 2]], sequence_id=7))) == [[[8, 9]]]


def test_the_context_knows_the_requests(run: Run) -> None:
    """Their rows, ids, parameters, sequences and wishes; and takes parameters for their answers."""
    source = model_class(
        "inputs, context",
        "for each in context.requests:",
        "    said = [each.request_id, each.rows.start, each.rows.stop, each.sequence_id, each.sequence_start, each.sequence_end]",
        "    each.response_parameters['said'] = str(said + [dict(each.parameters), list(each.outputs)])",
        "    each.response_parameters['gone'] = context.cancelled(1)",
        "return inputs['x']",
    )
    first = call([[1]], parameters={"a": 1}, sequence_id="s", sequence_start=True)
    results = run(source, VARIABLE, first, call([[2], [3]], outputs=("y",)), control=Sent({1: 0}))
    assert results[0].parameters == {"said": "['id', 0, 1, 's', True, False, {'a': 1}, []]", "gone": True}
    assert results[1].parameters["said"] == "['id', 1, 3, 0, False, False, {}, ['y']]"


@pytest.mark.parametrize(
    "line", ["return [[b'a', 'b\\xe9']]", "return np.array([['a', 'b\\xe9']])", "return {'y': [['a', 'bé']]}"]
)
def test_texts_may_be_given_as_lists_and_as_bytes(run: Run, line: str) -> None:
    """They arrive as bytes."""
    assert values(run(model_class("inputs", line), TEXTS, call([[b"x", b"y"]]))) == [[[b"a", "bé".encode()]]]


@pytest.mark.parametrize(
    ("signature", "line", "message"),
    [
        (VARIABLE, "return inputs['x'].astype(np.int32)", r'Output "y": expected float32\[1, 2\], got int32\[1, 2\]'),
        (VARIABLE, "return inputs['x'][0]", r'Output "y": expected float32\[1, -1\], got float32\[2\]'),
        (VARIABLE, "return np.zeros((3, 2), np.float32)", r"expected float32\[1, 2\], got float32\[3, 2\]"),
        (VARIABLE, "return {'z': 1}", r"must answer the outputs y; got a dict of \['z'\]"),
        (VARIABLE, "return None", r"must answer the outputs y; got a dict of \[\]"),
        (VARIABLE, "return 5", "got one int"),
        (VARIABLE, "return (each for each in ())", "is not declared decoupled does not stream"),
        (TEXTS, "return [[1]]", "expected bytes or texts, got a int among them"),
        (TEXTS, "return np.zeros((1, 1))", "expected bytes or texts, got float64"),
    ],
)
def test_an_answer_out_of_contract_is_named(run: Run, signature: Signature, line: str, message: str) -> None:
    """What was declared, and what came."""
    asked = [[b"a", b"b"]] if signature is TEXTS else [[1, 2]]
    with pytest.raises(ContractBroken, match=message):
        run(model_class("inputs", line), signature, call(asked))


def test_bits_of_bfloat16_count_as_it(run: Run) -> None:
    """numpy has no such type."""
    brain = Signature((TensorSpec("x", "bfloat16", (-1,)),), (TensorSpec("y", "bfloat16", (-1,)),))
    asked = TensorCall("id", {"x": np.array([[0x3F80]], np.uint16)})
    assert values(run(model_class("inputs", "return inputs['x']"), brain, asked)) == [[[0x3F80]]]


def test_outputs_that_nobody_wants_may_be_missing(run: Run) -> None:
    """A model may look what is asked for."""
    both = Signature(VARIABLE.inputs, (*VARIABLE.outputs, TensorSpec("z", "float32", (-1,))))
    source = model_class("inputs", "return {'y': inputs['x']}")
    assert values(run(source, both, call([[1]], outputs=("y",)))) == [[[1]]]
    with pytest.raises(ContractBroken, match="must answer the outputs y, z"):
        run(source, both, call([[1]], outputs=("y",)), call([[1]]))


# ---- any number of answers

COUNT = (
    "for at in range(int(inputs['x'][0, 0])):",
    "    yield {'y': inputs['x'][0] + at}",
)


def test_a_generator_answers_each_request_by_itself_and_in_turn(run: Run) -> None:
    """One answer per dict, then the end; a request may have none."""
    flat = Signature(VARIABLE.inputs, VARIABLE.outputs, batches=False, decoupled=True)
    sent = Sent()
    run(model_class("inputs", *COUNT), flat, call([[2]]), call([[0]]), call([[1]]), control=sent)
    answers = [(row, answer and answer["y"], final) for row, answer, _, final in sent.answers]
    assert answers == [
        (0, [2], False),
        (1, None, True),
        (2, [1], False),
        (0, [3], False),
        (2, None, True),
        (0, None, True),
    ]


def test_a_client_that_leaves_ends_its_generator(run: Run) -> None:
    """Which learns of it as Python's do."""
    sent = Sent({0: 2})
    source = model_class(
        "inputs",
        "try:",
        "    while True: yield {'y': inputs['x']}",
        "finally:",
        "    print('closed')",
    )
    run(source, DECOUPLED, call([[1]]), control=sent)
    assert len(sent.answers) == 2


@pytest.mark.parametrize("ending", ["raise SystemExit", "yield {'y': inputs['x']}"])
def test_a_generator_that_fails_as_it_is_closed_leaves_the_other_requests(run: Run, ending: str) -> None:
    sent = Sent({0: 1})
    lines = (
        "try:",
        "    for _ in range(3): yield {'y': inputs['x']}",
        "finally:",
        f"    if inputs['x'][0, 0]: {ending}",
    )
    run(model_class("inputs", *lines), DECOUPLED, call([[1]]), call([[0]]), control=sent)
    assert [final for row, _, _, final in sent.answers if row == 1] == [False, False, False, True]


def test_a_generator_that_raises_ends_its_request_only(run: Run) -> None:
    """After what it has said before."""
    sent = Sent()
    source = model_class("inputs", "yield {'y': inputs['x']}", "if inputs['x'][0, 0]: raise ValueError('x')")
    run(source, DECOUPLED, call([[0]]), call([[1]]), control=sent)
    last = {row: (answer, final) for row, answer, _, final in sent.answers}
    assert last[0] == (None, True)
    assert isinstance(last[1][0], PredictionFailed)


def test_parameters_go_with_the_answer_that_they_were_set_for(run: Run) -> None:
    """And not with the next."""
    sent = Sent()
    source = model_class(
        "inputs, context",
        "context.requests[0].response_parameters['at'] = 1",
        "yield {'y': inputs['x']}",
        "yield {'y': inputs['x']}",
    )
    run(source, DECOUPLED, call([[0]]), control=sent)
    assert [parameters for _, _, parameters, _ in sent.answers] == [{"at": 1}, {}, {}]


@pytest.mark.parametrize("line", ["yield {'y': 1}", "yield 5"])
def test_an_answer_out_of_contract_ends_its_request(run: Run, line: str) -> None:
    """The client is told, and not the other requests."""
    sent = Sent()
    run(model_class("inputs", line), DECOUPLED, call([[0]]), control=sent)
    ((row, answer, _, final),) = sent.answers
    assert (row, final) == (0, True)
    assert isinstance(answer, ContractBroken)


def test_a_decoupled_model_must_be_a_generator(run: Run) -> None:
    """Which is said when it is loaded."""
    with pytest.raises(InvalidModel, match="its predict must be a generator"):
        run(model_class("inputs", "return inputs['x']"), DECOUPLED, call([[0]]))

"""Envelopes: TorchServe's results for one request, and each request its own in a batch."""

import copy
import json
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ringserve.backends.contract import ContractBroken
from ringserve.backends.envelope import BUILT_IN, find_envelope
from ringserve.backends.ts.context import Context, RequestProcessor
from ringserve.backends.ts.torch_handler.base_handler import BaseHandler
from ringserve.backends.ts.torch_handler.request_envelope.base import BaseEnvelope
from ringserve.backends.ts.torch_handler.request_envelope.kservev2 import LISTS_MAX
from ringserve.backends.ts.torch_handler.request_envelope.rows import RowsRefused
from ringserve.backends.ts.utils.util import PredictionException

Handle = Callable[[Any, Any], Any]
HANDLERS: dict[str, Handle] = {
    "echo": lambda data, context: data,
    "sum": lambda data, context: [sum(row) for row in data],
    "decode": lambda data, context: [row.decode() for row in data],
    "column": lambda data, context: [row["image"].decode() for row in data],
    "one": lambda data, context: [5],
    "three": lambda data, context: [1, 2, 3],
    "data": lambda data, context: [row["data"] for row in data],
    "keys": lambda data, context: [sorted(row) for row in data],
    "half": lambda data, context: [row["data"][0] / 2 for row in data],
    "true": lambda data, context: [[True, False] for _ in data],
    "words": lambda data, context: [["x", "yy"] for _ in data],
    "nested": lambda data, context: [[[1, 2], [3, 4]] for _ in data],
    "object": lambda data, context: [{"a": 1} for _ in data],
    "tensor": lambda data, context: [torch.tensor([1.5, 2.5]) for _ in data],
    "names": lambda data, context: [context.input_names for _ in data],
}
EXPLAIN = {"explain": "True"}


def a_tensor(data: Any, shape: Any, datatype: str, name: str = "a") -> dict[str, Any]:
    return {"name": name, "shape": shape, "datatype": datatype, "data": data}


def asked(*inputs: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"body": {"inputs": list(inputs), **more}}


def answered(*outputs: tuple[str, str, list[Any]], request_id: str = "request-0") -> dict[str, Any]:
    described = [
        {"name": name, "datatype": datatype, "data": data, "shape": [len(data)]} for name, datatype, data in outputs
    ]
    return {"id": request_id, "model_name": "m", "model_version": "1.5", "outputs": described}


X, Y = a_tensor([1], [1], "INT8", "x"), a_tensor([2], [1], "INT8", "y")
# Envelope, handler, data, headers, and what the class of TorchServe 0.12 returned.
TORCHSERVE: list[tuple[str, str, list[dict[str, Any]], dict[str, str], list[Any]]] = [
    ("body", "echo", [{"body": [1.0, 2.0]}], {}, [[1.0, 2.0]]),
    ("body", "echo", [{"data": "x", "body": "y"}, {"body": "z"}], {}, ["x", "z"]),
    ("body", "echo", [{"body": ""}], {}, [""]),
    ("json", "sum", [{"body": {"instances": [[1, 2]]}}], {}, ['{"predictions": [3]}']),
    (
        "json",
        "sum",
        [{"body": {"instances": [[1, 2]]}}, {"data": {"instances": [[3, 4], [5, 6]]}}],
        {},
        ['{"predictions": [3]}', '{"predictions": [7, 11]}'],
    ),
    ("json", "decode", [{"instances": [{"b64": "YQ=="}, {"b64": "YmM="}]}], {}, ['{"predictions": ["a", "bc"]}']),
    ("json", "column", [{"body": {"instances": [{"image": {"b64": "YQ=="}}]}}], {}, ['{"predictions": ["a"]}']),
    (
        "json",
        "echo",
        [{"body": {"instances": [{"image": "x", "n": [1]}]}}],
        {},
        ['{"predictions": [{"image": "x", "n": [1]}]}'],
    ),
    ("json", "echo", [{"body": {"instances": ["é"]}}], EXPLAIN, ['{"predictions": ["\\u00e9"]}']),
    ("kserve", "sum", [{"body": {"instances": [[1, 2], [3, 4]]}}], {}, [{"predictions": [3, 7]}]),
    ("kserve", "sum", [{"data": {"instances": [[1, 2]]}}], EXPLAIN, [{"explanations": [3]}]),
    ("kserve", "sum", [{"body": bytearray(b'{"instances": [[1, 2]]}')}], {}, [{"predictions": [3]}]),
    ("kserve", "one", [{"body": {"instances": [1, 2, 3]}}], {}, [{"predictions": [5]}]),
    ("kserve", "echo", [{"body": {"instances": {"a": 1}}}], {}, [{"predictions": {"a": 1}}]),
    ("kserve", "three", [{"body": {"instances": [1]}}], {}, [{"predictions": [1, 2, 3]}]),
    ("json", "three", [{"body": {"instances": [1]}}], {}, ['{"predictions": [1]}']),
    ("kservev2", "data", [asked(a_tensor(["x", "y"], [2], "BYTES"))], {}, [answered(("a", "BYTES", ["x"]))]),
    (
        "kservev2",
        "data",
        [asked(a_tensor([1, 2, 3, 4], [2, 2], "INT64"))],
        {},
        [answered(("a", "INT64", [1, 2, 3, 4]))],
    ),
    (
        "kservev2",
        "data",
        [asked(a_tensor([1, 2.5], [1, 2], "FP32"), id="mine")],
        {},
        [answered(("a", "FP64", [1.0, 2.5]), request_id="mine")],
    ),
    ("kservev2", "data", [asked(a_tensor(["text"], [1], "BYTES"), id=" ")], {}, [answered(("a", "BYTES", ["text"]))]),
    (
        "kservev2",
        "half",
        [{"data": asked(a_tensor([1, 2], [2], "FP64"))["body"]}],
        {},
        [answered(("a", "FP64", [0.5]))],
    ),
    ("kservev2", "true", [asked(a_tensor([1], [1], "BOOL"))], {}, [answered(("a", "BOOL", [True, False]))]),
    (
        "kservev2",
        "words",
        [asked(a_tensor([[1, 2], [3, 4]], [4], "UINT8"))],
        {},
        [answered(("a", "BYTES", ["x", "yy"]))],
    ),
    ("kservev2", "nested", [asked(a_tensor([1, 2], [-1], "INT32"))], EXPLAIN, [answered(("a", "INT64", [1, 2, 3, 4]))]),
    ("kservev2", "object", [asked(a_tensor(["a"], -1, "BYTES"))], {}, [answered(("a", "BYTES", [{"a": 1}]))]),
    ("kservev2", "tensor", [asked(a_tensor([1], [1], "INT8"))], {}, [answered(("a", "FP32", [1.5, 2.5]))]),
    (
        "kservev2",
        "keys",
        [{"body": bytearray(json.dumps(asked(a_tensor([1], [1], "INT8"), parameters={})["body"]).encode())}],
        {},
        [answered(("a", "BYTES", ["data", "datatype", "name", "shape"]))],
    ),
    ("kservev2", "one", [asked(X, Y)], {}, [answered(("x", "INT64", [5]))]),
    ("kservev2", "names", [asked(X, Y)], {}, [answered(("x", "BYTES", ["x", "y"]), ("y", "BYTES", ["x", "y"]))]),
]


def context_of(rows: int, headers: dict[str, str] | None = None) -> Context:
    manifest = {"model": {"modelName": "m", "modelVersion": "1.5"}}
    context = Context("registered", "/models/m", manifest, rows, None, "0.12.0")
    processors = [RequestProcessor(headers or {}) for _ in range(rows)]
    context.begin_batch([f"request-{row}" for row in range(rows)], processors)
    return context


def ask(name: str, handle: Handle, data: list[dict[str, Any]], headers: dict[str, str] | None = None) -> Any:
    return find_envelope(name)(handle).handle(copy.deepcopy(data), context_of(len(data), headers))


@pytest.mark.parametrize(("name", "handler", "data", "headers", "result"), TORCHSERVE)
def test_it_answers_as_torchserves_does(
    name: str, handler: str, data: list[dict[str, Any]], headers: dict[str, str], result: list[Any]
) -> None:
    assert ask(name, HANDLERS[handler], data, headers) == result


@pytest.mark.parametrize("name", BUILT_IN)
def test_its_module_has_it_under_torchserves_name(name: str) -> None:
    module = import_module(f"ringserve.backends.ts.torch_handler.request_envelope.{name}")
    assert issubclass(getattr(module, BUILT_IN[name]), BaseEnvelope)
    assert find_envelope(name) is getattr(module, BUILT_IN[name])


@pytest.mark.parametrize("name", ["json", "kserve"])
@given(rows=st.lists(st.lists(st.integers(), max_size=4), min_size=1, max_size=6))
def test_each_request_of_a_batch_gets_the_answers_to_its_own_instances(name: str, rows: list[list[int]]) -> None:
    calls: list[list[int]] = []

    def double(data: list[int], context: Any) -> list[int]:
        calls.append(data)
        return [2 * number for number in data]

    answers = ask(name, double, [{"body": {"instances": row}} for row in rows])
    bodies = [json.loads(answer) if name == "json" else answer for answer in answers]
    assert bodies == [{"predictions": [2 * number for number in row]} for row in rows]
    everything = [number for row in rows for number in row]
    assert calls == ([everything] if everything else []), "one call for the batch, and none for nothing"


@given(rows=st.lists(st.lists(st.integers(-100, 100), min_size=1, max_size=4), min_size=1, max_size=6))
def test_each_v2_request_of_a_batch_gets_outputs_named_after_its_own_inputs(rows: list[list[int]]) -> None:
    def inputs(row: int) -> list[dict[str, Any]]:
        return [a_tensor([number], [1], "INT8", f"{row}.{place}") for place, number in enumerate(rows[row])]

    data = [asked(*inputs(row), id=f"mine-{row}") for row in range(len(rows))]
    assert ask("kservev2", HANDLERS["data"], data) == [
        answered(
            *((f"{row}.{place}", "INT64", [number]) for place, number in enumerate(rows[row])), request_id=f"mine-{row}"
        )
        for row in range(len(rows))
    ]


@pytest.mark.parametrize("name", ["json", "kserve"])
def test_what_is_told_apart_by_counting_must_have_the_right_count(name: str) -> None:
    data = [{"body": {"instances": [1]}}, {"body": {"instances": [2, 3]}}]
    with pytest.raises(ContractBroken, match=r"^number of batch response mismatched, expect: 3, got: 1\.$"):
        ask(name, HANDLERS["one"], data)
    with pytest.raises(ContractBroken, match=r"^Invalid model predict output$"):
        ask(name, lambda data, context: {"a": 1}, data)


def test_more_outputs_than_inputs_have_no_name() -> None:
    with pytest.raises(ContractBroken, match=r"^number of outputs mismatched, expect: 1, got: 2\.$"):
        ask("kservev2", lambda data, context: [1, 2], [asked(X)])


NO_INSTANCES = 'The request has no "instances": the envelope {} expects {{"instances": [...]}}.'
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    *((name, {"body": {"inputs": []}}, NO_INSTANCES.format(name)) for name in ("json", "kserve")),
    *((name, {"body": [1, 2]}, "The request's body is no JSON object: ") for name in ("json", "kserve", "kservev2")),
    *((name, {"body": bytearray(b"{")}, "The request's body is not JSON: ") for name in ("json", "kserve", "kservev2")),
    *((name, {"body": bytearray(b"\xff")}, "The request's body is not JSON: ") for name in ("kserve", "kservev2")),
    ("kserve", {"body": bytearray()}, "The request's body is "),
    ("kserve", {}, "The request's body is no JSON object: "),
    ("kserve", {"body": {"instances": None}}, NO_INSTANCES.format("kserve")),
    ("json", {"body": {"instances": {"a": 1}}}, "instances: expected a list, got {'a': 1}."),
    ("json", {"body": {"instances": [{"b64": "a"}]}}, "instances[0].b64: expected base64: "),
    ("json", {"body": {"instances": [1, {"x": {"b64": 5}}]}}, "instances[1].x.b64: expected base64: "),
    ("kservev2", {"body": {"instances": []}}, "inputs: expected a list of at least one input, got none."),
    ("kservev2", asked(), "inputs: expected a list of at least one input, got []."),
    ("kservev2", asked(X, id=5), "id: expected a string, got 5."),
    ("kservev2", {"body": {"inputs": [5]}}, "inputs[0]: expected an object, got 5."),
    *(
        (
            "kservev2",
            asked(X, {key: value for key, value in Y.items() if key != left_out}),
            f"inputs[1]: {left_out} is missing.",
        )
        for left_out in ("name", "datatype", "data")
    ),
    ("kservev2", asked(a_tensor([1], [1], "INT8", 5)), "inputs[0].name: expected a string, got 5."),  # type: ignore[arg-type]
    ("kservev2", asked(a_tensor([1], [1], "FLOAT")), "inputs[0].datatype: expected one of BOOL, UINT8, "),
    ("kservev2", asked(a_tensor([1], [1], [])), "inputs[0].datatype: expected one of BOOL, UINT8, "),  # type: ignore[arg-type]
    ("kservev2", asked(a_tensor(5, [1], "INT8")), "inputs[0].data: expected a list, got 5."),
    ("kservev2", asked(a_tensor([1], 1, "INT8")), "inputs[0].shape: expected a list of whole numbers, got 1."),
    (
        "kservev2",
        asked(a_tensor([1], [True], "INT8")),
        "inputs[0].shape: expected a list of whole numbers, got [True].",
    ),
    ("kservev2", asked(a_tensor([1, 2, 3], [2, 2], "INT8")), "inputs[0].shape: 3 values do not have the shape [2, 2]."),
    ("kservev2", asked(a_tensor([1], [-1, -1], "INT8")), "inputs[0].shape: 1 values do not have the shape [-1, -1]."),
    ("kservev2", asked(a_tensor([1], [2**70], "INT8")), "inputs[0].shape: 1 values do not have the shape ["),
    ("kservev2", asked(a_tensor([1], [1] * 100, "INT8")), "inputs[0].shape: 1 values do not have the shape ["),
    ("kservev2", asked(a_tensor([], [LISTS_MAX + 1, 0], "INT8")), "inputs[0].shape: [4097, 0] puts 0 values into too"),
    (
        "kservev2",
        asked(a_tensor([1] * 4096, [-1] + [1] * 20, "INT8")),
        "inputs[0].shape: [-1, 1, 1, 1, 1, 1, ...] puts",
    ),
    ("kservev2", asked(a_tensor([[1], [2, 3]], [3], "INT8")), "inputs[0].data: its lists differ in length."),
    ("kservev2", asked(a_tensor(["a"], [1], "FP32")), "inputs[0].data: expected values of FP32, got ['a']."),
    ("kservev2", asked(a_tensor([None], [1], "FP32")), "inputs[0].data: expected values of FP32, got [None]."),
    ("kservev2", asked(a_tensor([10**400], [1], "FP64")), "inputs[0].data: expected values of FP64, got [1000"),
    ("kservev2", asked(a_tensor([2**64], [1], "UINT64")), "inputs[0].data: expected values of UINT64, got [1844"),
    ("kservev2", asked(a_tensor([{"a": 1}], [1], "INT8")), "inputs[0].data: expected values of INT8, got [{'a': 1}]."),
    # Were each of the numbers given as much room as the text, they would take petabytes.
    (
        "kservev2",
        asked(a_tensor(["a" * 2**20] + [1] * 2**20, [-1], "INT8")),
        "inputs[0].data: expected values of INT8, got ['aaa",
    ),
    ("kservev2", asked(a_tensor([128], [1], "INT8")), "inputs[0].data: expected values of INT8, got [128]."),
    ("kservev2", asked(a_tensor([-1], [1], "UINT64")), "inputs[0].data: expected values of UINT64, got [-1]."),
    ("kservev2", asked(a_tensor([1.5], [1], "INT8")), "inputs[0].data: expected values of INT8, got [1.5]."),
    ("kservev2", asked(a_tensor([float("nan")], [1], "INT8")), "inputs[0].data: expected values of INT8, got [nan]."),
    ("kservev2", asked(a_tensor([float("inf")], [1], "INT8")), "inputs[0].data: expected values of INT8, got [inf]."),
    ("kservev2", asked(a_tensor([2], [1], "BOOL")), "inputs[0].data: expected values of BOOL, got [2]."),
    ("kservev2", asked(a_tensor([], [0], "BYTES")), "inputs[0].data: expected a list of strings for BYTES, got []."),
    ("kservev2", asked(a_tensor([5], [1], "BYTES")), "inputs[0].data: expected a list of strings for BYTES, got [5]."),
]


@pytest.mark.parametrize(("name", "request_", "sentence"), REFUSED)
def test_a_request_that_does_not_parse_is_named_with_what_is_wrong(
    name: str, request_: dict[str, Any], sentence: str
) -> None:
    usable = asked(X) if name == "kservev2" else {"body": {"instances": [1]}}
    with pytest.raises(RowsRefused) as caught:
        ask(name, HANDLERS["echo"], [usable, request_, usable])
    (number, failure), *others = caught.value.rows.items()
    assert (number, others) == (1, [])
    assert failure.message.startswith(sentence), failure.message
    assert (caught.value.message, caught.value.error_code) == (failure.message, 400)


@pytest.mark.parametrize(
    ("tensor", "value"),
    [
        (a_tensor([1.0, 2], [2], "INT8"), [1.0, 2]),
        (a_tensor([True, 0], [2], "BOOL"), [True, 0]),
        (a_tensor([2**53 + 1, 1.0], [2, 1], "INT64"), [[2**53 + 1], [1.0]]),
        (a_tensor([2**64, 0.5], [2], "FP32"), [2.0**64, 0.5]),
        (a_tensor([[1.5, 2], [3, 4]], [2, 2], "FP64"), [[1.5, 2.0], [3.0, 4.0]]),
        (a_tensor([], [0, 3], "FP32"), []),
        (a_tensor([], [2, 0], "FP32"), [[], []]),
        (a_tensor([], [0, 2**40], "FP32"), []),
        (a_tensor([1, 2], [2, 1, 1, 1], "FP32"), [[[[1]]], [[[2]]]]),
        (a_tensor([float("inf")], [1], "FP32"), [float("inf")]),
        (a_tensor([2**64 - 1], [1], "UINT64"), [2**64 - 1]),
        (a_tensor([5], [], "INT8"), 5),
        (a_tensor(["a", "b"], [2], "BYTES"), "a"),
        (a_tensor([["a"]], [1, 1], "BYTES"), ["a"]),
    ],
)
def test_a_v2_input_is_given_as_its_shape_says_and_keeps_its_numbers(tensor: dict[str, Any], value: Any) -> None:
    seen: list[Any] = []

    def handle(data: list[Any], context: Any) -> list[Any]:
        seen.extend(data)
        return [0]

    ask("kservev2", handle, [asked(tensor)])
    assert repr(seen) == repr([{**tensor, "data": value}])  # 1 and 1.0 and True are equal otherwise


def test_a_long_text_among_the_answers_does_not_make_the_others_long() -> None:
    texts = ["a" * 2**20, *["b"] * 2**16]  # as an array of numpy's texts 256 GiB
    (response,) = ask("kservev2", lambda data, context: [texts], [asked(X)])
    assert response["outputs"] == [{"name": "x", "datatype": "BYTES", "data": texts, "shape": [len(texts)]}]


def test_the_type_of_an_output_that_v2_does_not_have_is_named() -> None:
    with pytest.raises(ContractBroken, match="An output has the type complex128"):
        ask("kservev2", lambda data, context: [1j], [asked(X)])


def test_json_answers_say_that_they_are_json_unless_the_handler_says_something_else() -> None:
    context = context_of(2)

    def handle(data: Any, context: Context) -> Any:
        context.set_response_content_type(1, "text/html")
        return data

    find_envelope("json")(handle).handle([{"body": {"instances": [1]}}] * 2, context)
    assert [context.get_response_content_type(row) for row in range(2)] == ["application/json", "text/html"]


def test_base_handler_takes_the_instances_of_several_requests() -> None:
    """What TorchServe's own unit tests of envelopes do."""

    class Sums(BaseHandler):
        def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
            return data.sum(1)

    handler = Sums()
    handler.device = torch.device("cpu")
    data = [{"body": {"instances": [[1.0, 2.0]]}}, {"body": {"instances": [[4.0, 3.0], [5.0, 6.0]]}}]
    assert ask("kserve", handler.handle, data) == [{"predictions": [3.0]}, {"predictions": [7.0, 11.0]}]


# ---- the base class


class Shouting(BaseEnvelope):
    def parse_input(self, data: list[dict[str, Any]]) -> Any:
        return [row["body"].upper() for row in data]

    def format_output(self, data: Any) -> Any:
        return [f"{answer}!" for answer in data]


def test_a_class_of_ones_own_says_how_to_parse_and_how_to_format() -> None:
    context = context_of(1)
    envelope = Shouting(lambda data, context: data)
    assert envelope.handle([{"body": "a"}], context) == ["A!"]
    assert envelope.context is context
    with pytest.raises(TypeError, match="abstract"):
        BaseEnvelope(lambda data, context: data)  # type: ignore[abstract]


def test_nothing_is_neither_parsed_nor_formatted() -> None:
    assert Shouting(lambda data, context: data).handle(None, context_of(1)) is None
    assert Shouting(lambda data, context: None).handle([{"body": "a"}], context_of(1)) is None


def test_of_a_generator_what_it_yields_is_left_alone_and_what_it_returns_is_formatted() -> None:
    def handle(data: Any, context: Any) -> Any:
        yield ["part"]
        return data

    def silent(data: Any, context: Any) -> Any:
        yield ["part"]

    for generator, last in ((handle, ["A!"]), (silent, None)):
        running = Shouting(generator).handle([{"body": "a"}], context_of(1))
        assert next(running) == ["part"]
        with pytest.raises(StopIteration) as ended:
            next(running)
        assert ended.value.value == last


def test_what_parsing_raises_answers_the_batch() -> None:
    def refuse(self: Any, data: Any) -> Any:
        raise PredictionException("no", 422)

    kind = type("Refusing", (Shouting,), {"parse_input": refuse})
    with pytest.raises(PredictionException, match="no : 422"):
        kind(HANDLERS["echo"]).handle([{"body": "a"}], context_of(1))

"""A call that is not what its model declares is refused in the protocol's words, before anything is allocated."""

import struct
from collections.abc import Mapping

import pytest

from ringserve.protocol.datatypes import join_elements
from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import Scalar
from ringserve.protocol.tensor import Signature, TensorSpec
from ringserve.server.open_inference.call import CallInput, CallOutput, InferCall, RegionPlace
from ringserve.server.open_inference.checks import NOTHING_RESERVED, Declaration, Reserved, element_fault, take_reserved
from ringserve.server.served_model import ServedModel

A, B = TensorSpec("A", "int32", (4,)), TensorSpec("B", "float32", (4,))
OUT = (TensorSpec("OA", "int32", (4,)), TensorSpec("OB", "float32", (4,)))
TWO = Declaration("two", Signature((A, B), OUT), ServedModel(b"{}", "", 8))
OPTIONAL = Declaration(
    "opt",
    Signature((A, *(TensorSpec(name, "int32", (2,), optional=True) for name in ("B", "C"))), OUT, batches=False),
    ServedModel(),
)
ALL_OPTIONAL = Declaration(
    "all", Signature(tuple(TensorSpec(name, "int32", (2,), optional=True) for name in "AB"), OUT), ServedModel()
)
ANY_SIZE = Declaration("any", Signature((TensorSpec("A", "float64", (-1, 2)),), (), batches=False), ServedModel())
TEXTS = Declaration("str", Signature((TensorSpec("S", "bytes", (-1,)),), (), batches=False), ServedModel())
SEQUENCE = Declaration(
    "seq", Signature((A, TensorSpec("START", "int32", (1,), optional=True)), ()), ServedModel(), ("START",)
)

GOOD_A, GOOD_B = CallInput("A", "INT32", (1, 4), bytes(16)), CallInput("B", "FP32", (1, 4), bytes(16))
UNKNOWN, MARK = "[request id: <id_unknown>] ", "[request id: q] "
NOTE = "NOTE: Setting a non-zero max_batch_size"


def call(*inputs: CallInput, outputs: tuple[CallOutput, ...] = (), id: str = "q") -> InferCall:
    return InferCall("m", "", id, inputs, outputs)


def refusal(declaration: Declaration, asked: InferCall) -> str:
    with pytest.raises(BadRequest) as caught:
        declaration.check(asked)
    return caught.value.message


def rows(name: str, datatype: str, *shape: int, nbytes: int = 0) -> CallInput:
    return CallInput(name, datatype, shape, bytes(nbytes))


def test_what_fits_has_as_many_items_as_its_batch_dimension() -> None:
    assert TWO.check(call(GOOD_A, GOOD_B)) == 1
    assert TWO.check(call(GOOD_B, GOOD_A)) == 1
    assert TWO.check(call(rows("A", "INT32", 8, 4, nbytes=128), rows("B", "FP32", 8, 4, nbytes=128))) == 8
    assert OPTIONAL.check(call(rows("A", "INT32", 4, nbytes=16), rows("C", "INT32", 2, nbytes=8))) == 1
    assert ANY_SIZE.check(call(rows("A", "FP64", 3, 2, nbytes=48))) == 1
    assert ANY_SIZE.check(call(rows("A", "FP64", 0, 2))) == 1
    assert TWO.check(call(GOOD_A, GOOD_B, outputs=(CallOutput("OB"), CallOutput("OA")))) == 1
    elsewhere = CallInput("A", "INT32", (1, 4), place=RegionPlace("r", 0, 16))
    assert TWO.check(call(elsewhere, GOOD_B)) == 1


@pytest.mark.parametrize(
    ("declaration", "asked", "text"),
    [
        (
            TWO,
            call(GOOD_A),
            MARK + "expected 2 inputs but got 1 inputs for model 'two'. Got input(s) ['A'], but missing",
        ),
        (TWO, call(GOOD_A, id=""), UNKNOWN + "expected 2 inputs but got 1 inputs"),
        (TWO, call(), "required input(s) ['A','B']. Please provide all required input(s)."),
        (
            TWO,
            call(GOOD_A, GOOD_B, rows("C", "INT32", 1)),
            MARK + "expected 2 inputs but got 3 inputs for model 'two'.",
        ),
        (TWO, call(GOOD_A, GOOD_A), MARK + "input 'A' already exists in request"),
        (TWO, call(GOOD_A, rows("C", "INT32", 1)), "unexpected inference input 'C' for model 'two'"),
        (OPTIONAL, call(), MARK + "expected number of inputs between 1 and 3 but got 0 inputs for model 'opt'."),
        (ALL_OPTIONAL, call(), MARK + "expected number of inputs between 1 and 2 but got 0 inputs for model 'all'."),
        (
            OPTIONAL,
            call(rows("A", "INT32", 4, nbytes=16), rows("X", "INT32", 4)),
            "unexpected inference input 'X' for model 'opt'",
        ),
        (
            TWO,
            call(GOOD_A, rows("B", "FP64", 1, 4, nbytes=32)),
            MARK + "inference input 'B' data-type is 'FP64', but model 'two' expects 'FP32'",
        ),
        (
            TWO,
            call(rows("A", "INT32", 1, 5, nbytes=20), GOOD_B),
            MARK + "unexpected shape for input 'A' for model 'two'. Expected [-1,4], got [1,5]. " + NOTE,
        ),
        (
            TWO,
            call(GOOD_A, rows("B", "FP32", 4, nbytes=16)),
            MARK + "unexpected shape for input 'B' for model 'two'. Expected [-1,4], got [4]. " + NOTE,
        ),
        (TWO, call(rows("A", "INT32")), MARK + "expected 2 inputs but got 1 inputs"),
        (
            TWO,
            call(GOOD_A, rows("B", "FP32")),
            MARK + "input 'B' has no shape but model requires batch dimension for 'two'",
        ),
        (
            ANY_SIZE,
            call(rows("A", "FP64", 2, 3)),
            MARK + "unexpected shape for input 'A' for model 'any'. Expected [-1,2], got [2,3]. ",
        ),
        (
            TWO,
            call(rows("A", "INT32", 9, 4, nbytes=144), rows("B", "FP32", 9, 4, nbytes=144)),
            MARK + "inference request batch-size must be <= 8 for 'two'",
        ),
        (
            TWO,
            call(rows("A", "INT32", 2, 4, nbytes=32), GOOD_B),
            MARK + "input 'A' batch size does not match other inputs for 'two'",
        ),
        (TWO, call(rows("A", "INT32", 0, 4), rows("B", "FP32", 0, 4)), "batch-size must be >= 1 for 'two'"),
        (
            TWO,
            call(rows("A", "INT32", 1, -1), GOOD_B),
            MARK + "All input dimensions should be specified for input 'A' for model 'two', got [1,-1]",
        ),
        (TWO, call(rows("A", "INT32", -1, 4), GOOD_B), "All input dimensions should be specified for input 'A'"),
        (
            TWO,
            call(rows("A", "INT32", 1, 4, nbytes=15), GOOD_B),
            MARK + "input byte size mismatch for input 'A' for model 'two'. Expected 16, got 15",
        ),
        (
            TWO,
            call(CallInput("A", "INT32", (1, 4), place=RegionPlace("r", 0, 17)), GOOD_B),
            "input byte size mismatch for input 'A' for model 'two'. Expected 16, got 17",
        ),
        (ANY_SIZE, call(rows("A", "FP64", 2**60, 2)), "byte size overflow for input 'A' for model 'any'"),
        (ANY_SIZE, call(rows("A", "FP64", 2**62, 2)), "causes total element count to exceed maximum size of"),
        (TWO, call(GOOD_A, GOOD_B, outputs=(CallOutput("X"),)), "unexpected inference output 'X' for model 'two'"),
        (
            TWO,
            call(GOOD_A, GOOD_B, outputs=(CallOutput("OA"), CallOutput("OA"))),
            MARK + "output 'OA' already exists in request",
        ),
        (
            TWO,
            call(GOOD_A, GOOD_B, outputs=(CallOutput("OA", 2, RegionPlace("r", 0, 4)),)),
            "shared memory can not be used for the classification of output 'OA'",
        ),
        (
            TEXTS,
            call(CallInput("S", "BYTES", (2,), join_elements([b"a"]))),
            MARK + "expected 2 string elements for inference input 'S' for model 'str', got 1",
        ),
        (
            SEQUENCE,
            call(GOOD_A, rows("START", "INT32", 1, 1, nbytes=4)),
            MARK + "expected 1 inputs but got 2 inputs for model 'seq'.",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_the_words_of_the_protocol(
    declaration: Declaration, asked: InferCall, text: str
) -> None:
    found = refusal(declaration, asked)
    assert found.startswith(text) if text[0] == "[" or text.startswith("unexpected") else text in found, found


@pytest.mark.parametrize(
    ("data", "elements", "text"),
    [
        (b"", 0, ""),
        (join_elements([b"", b"a", b"bc"]), 3, ""),
        (join_elements([b"abc"] * 20), 20, ""),
        (join_elements([b"abc"] * 19 + [b"ab", b"abcd"]), 21, ""),
        (join_elements([b"abc"] * 20), 19, "unexpected number of string elements 20"),
        (join_elements([b"abc"] * 20), 21, "expected 21 string elements"),
        (join_elements([b"a"]), 0, "unexpected number of string elements 1"),
        (b"", 1, "expected 1 string elements"),
        (
            b"ab",
            1,
            "incomplete string length indicator for inference input '{name}' for model '{model}', expecting 4 bytes",
        ),
        (
            struct.pack("<I", 5) + b"ab",
            1,
            "incomplete string data for inference input '{name}', expecting string of length 5",
        ),
        (struct.pack("<I", 2**32 - 1) * 12, 12, "incomplete string data"),
    ],
)
def test_the_elements_of_bytes_are_counted(data: bytes, elements: int, text: str) -> None:
    assert element_fault(data, elements).startswith(text)
    assert element_fault(memoryview(data), elements) == element_fault(bytearray(data), elements)
    assert bool(text) == bool(element_fault(data, elements))


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [
        ({}, NOTHING_RESERVED),
        ({"a": 1, "b": "x", "c": True, "d": 1.5}, Reserved({"a": 1, "b": "x", "c": True, "d": 1.5})),
        ({"priority": 3, "timeout": 7, "a": 1}, Reserved({"a": 1}, 3, 7)),
        ({"sequence_id": 5, "sequence_start": True}, Reserved({}, sequence_id=5, sequence_start=True)),
        ({"sequence_id": "5", "sequence_end": True}, Reserved({}, sequence_id="5", sequence_end=True)),
        ({"sequence_id": ""}, NOTHING_RESERVED),
        ({"triton_enable_empty_final_response": True}, NOTHING_RESERVED),
    ],
)
def test_reserved_parameters_are_the_servers(parameters: Mapping[str, Scalar], expected: Reserved) -> None:
    before = dict(parameters)
    assert take_reserved(parameters) == expected
    assert parameters == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("priority", -1),
        ("priority", "x"),
        ("priority", True),
        ("timeout", 1.5),
        ("timeout", 2**64),
        ("sequence_id", -1),
        ("sequence_id", 1.5),
        ("sequence_id", True),
        ("sequence_start", 1),
        ("sequence_end", "true"),
        ("triton_x", 1),
    ],
)
def test_a_reserved_parameter_of_another_kind_is_refused(name: str, value: Scalar) -> None:
    with pytest.raises(BadRequest, match=name if name != "triton_x" else "reserved for Triton usage"):
        take_reserved({name: value})

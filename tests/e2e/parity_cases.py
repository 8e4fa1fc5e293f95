"""What the same client may ask over REST and over gRPC, told without either: tests/e2e/test_open_inference_grpc.py asks both.

The models are those of tests/e2e/triton/models.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ringserve.protocol.datatypes import BYTES, DATATYPE_BYTES, join_elements
from ringserve.protocol.request import Scalar


class Given(NamedTuple):
    """One input, its bytes as they travel in binary."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes


class Case(NamedTuple):
    """One request, or several of a sequence, and which status over HTTP its last one gets. `outputs` are names with how many classes
    are wanted. `says` is the error's sentence, or what it begins with where it ends in an ellipsis; `rest_says` where the protocol words it
    otherwise over REST."""

    title: str
    model: str
    inputs: tuple[Given, ...]
    outputs: tuple[tuple[str, int], ...] = ()
    id: str = ""
    parameters: Mapping[str, Scalar] = {}
    version: str = ""
    status: int = 200
    says: str = ""
    before: tuple["Case", ...] = ()
    rest_says: str = ""


NUMERIC = tuple(name for name in DATATYPE_BYTES if name != "BF16")
TEXTS = [b"a", b"", "é".encode(), b"\x00\x01"]
NO_ID = "[request id: <id_unknown>] "


def numbers(datatype: str, *shape: int) -> bytes:
    """As many elements, of every value that so many bytes can have in turn; no two floats are as far from each other as NaN is."""
    count = int(np.prod(shape))
    if datatype == BYTES:
        return join_elements([TEXTS[at % len(TEXTS)] for at in range(count)])
    if datatype == "BOOL":
        return bytes(at % 2 for at in range(count))
    dtype = {"FP16": "f2", "FP32": "f4", "FP64": "f8"}.get(datatype, datatype.lower())
    return (np.arange(count) % 100 - (0 if datatype[0] == "U" else 50)).astype(dtype).tobytes()


def given(name: str, datatype: str, *shape: int, data: bytes | None = None) -> Given:
    return Given(name, datatype, shape, numbers(datatype, *shape) if data is None else data)


def pair(*shape: int, datatype: str = "INT32") -> tuple[Given, ...]:
    return given("INPUT0", datatype, *shape), given("INPUT1", datatype, *shape)


def identity(model: str, datatype: str, *shape: int) -> Case:
    return Case(f"{model} of {datatype} {list(shape)}", model, (given(f"INPUT_{datatype}", datatype, *shape),))


def _valid() -> Iterator[Case]:
    for datatype in (*NUMERIC, BYTES):
        yield identity("identity", datatype, 5)
        yield identity("identity_batched", datatype, 2, 3)
    yield Case("BF16", "halves", (given("INPUT_BF16", "BF16", 2, 3, data=bytes(range(12))),))
    yield identity("identity", "INT32", 0)
    yield identity("identity", BYTES, 0)
    yield identity("identity", "FP32", 40_000)
    yield Case("two inputs of many", "identity", (given("INPUT_INT8", "INT8", 2), given("INPUT_BYTES", BYTES, 3)))
    yield Case("an id", "simple", pair(1, 16), id="an id, é")
    yield Case("a whole batch", "simple", pair(8, 16))
    yield Case("a version", "simple", pair(1, 16), version="1")
    yield Case("one output", "simple", pair(1, 16), (("OUTPUT1", 0),))
    yield Case("outputs in another order", "simple", pair(1, 16), (("OUTPUT1", 0), ("OUTPUT0", 0)))
    yield Case("inputs in another order", "simple", pair(1, 16)[::-1])
    yield Case("without the optional ones", "optional", (given("INPUT0", "INT32", 1, 2),))
    yield Case("with an optional one", "optional", (given("INPUT2", "INT32", 1, 2), given("INPUT0", "INT32", 1, 2)))
    yield Case("a priority", "simple", pair(1, 16), parameters={"priority": 1})
    yield Case("a timeout", "simple", pair(1, 16), parameters={"timeout": 30_000_000})
    for value in (1, -1, "é", True, False, ""):  # one at a time: gRPC's have no order
        given_one = (given("INPUT", "INT32", 1),)
        yield Case(f"parameter {value!r}", "echo_parameters", given_one, parameters={"a": value})


def _classes() -> Iterator[Case]:
    scores = (Given("INPUT", "FP32", (2, 3), np.array([[0.1, 0.7, 0.2], [3, 2, 1]], "f4").tobytes()),)
    for count in (1, 2, 3, 10):
        yield Case(f"{count} classes with labels", "scores", scores, (("SCORES", count),))
    yield Case("classes of whole numbers", "scores", scores, (("WHOLE", 2),))
    yield Case("classes beside a tensor", "scores", scores, (("WHOLE", 2), ("SCORES", 0)))
    yield Case(
        "classes of texts",
        "identity",
        (given("INPUT_BYTES", BYTES, 2),),
        (("OUTPUT_BYTES", 1),),
        status=400,
        says="class result not available for output due to unsupported type 'BYTES'",
    )


def _sequences() -> Iterator[Case]:
    def step(value: int, **marks: Scalar) -> Case:
        data = np.array([[value]], "<i4").tobytes()
        return Case(f"step {value}", "oldest", (given("INPUT", "INT32", 1, 1, data=data),), parameters=marks)

    first, last = step(5, sequence_start=True), step(7, sequence_end=True)
    yield last._replace(title="a sequence", before=(first, step(6)))
    yield first._replace(title="a sequence that begins again", before=(first, step(6)))
    yield step(1)._replace(title="a sequence without its beginning", status=400, says="...")
    yield step(1)._replace(
        title="a request outside of any sequence", parameters={"sequence_id": 0}, status=400, says="..."
    )


def bad(title: str, says: str, *inputs: Given, model: str = "simple", status: int = 400, **more: object) -> Case:
    """One that is refused; of the model with two inputs, unless another is named."""
    return Case(title, model, inputs, status=status, says=says, **more)  # type: ignore[arg-type]


def _wrong_names() -> Iterator[Case]:
    whole = given("INPUT1", "INT32", 1, 16)
    unknown = "Request for unknown model: "
    yield bad("an unknown model", f"{unknown}'none' is not found", *pair(1, 16), model="none", status=404)
    version = f"{unknown}'simple' version 7 is not found"
    yield bad("an unknown version", version, *pair(1, 16), status=404, version="7")
    missing = (
        "expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['INPUT1'], but missing required input(s) ['INPUT0']."
        " Please provide all required input(s)."
    )
    yield bad("a missing input", NO_ID + missing, whole)
    yield bad("a missing input of a request with an id", f"[request id: 7] {missing}", whole, id="7")
    yield bad(
        "no required input",
        f"{NO_ID}expected number of inputs between 1 and 3 but got 0 inputs for model 'optional'...",
        model="optional",
    )
    yield bad("an unknown input", "...", given("NONE", "INT32", 1, 16), whole)
    yield bad("an input too many", "...", *pair(1, 16), given("NONE", "INT32", 1, 16))
    yield bad("an input twice", "...", whole, whole)
    yield bad(
        "an unknown output",
        "unexpected inference output 'NONE' for model 'simple'",
        *pair(1, 16),
        outputs=(("NONE", 0),),
    )
    yield bad("an output twice", "...", *pair(1, 16), outputs=(("OUTPUT0", 0), ("OUTPUT0", 0)))


def _wrong_tensors() -> Iterator[Case]:
    data = bytes(64)
    whole = given("INPUT1", "INT32", 1, 16)
    yield bad(
        "another datatype",
        f"{NO_ID}inference input 'INPUT0' data-type is 'FP32', but model 'simple' expects 'INT32'",
        given("INPUT0", "FP32", 1, 16),
        whole,
    )
    yield bad(
        "no datatype at all",
        "...",
        given("INPUT0", "NONE", 1, 16, data=data),
        whole,
        rest_says="invalid datatype for input INPUT0",
    )
    for shape in ((1, 15), (1, 16, 1), (1, 4, 4)):
        yield bad(
            f"shape {list(shape)}",
            f"{NO_ID}unexpected shape for input 'INPUT0' for model 'simple'. Expected [-1,16], got"
            f" [{','.join(map(str, shape))}]...",
            given("INPUT0", "INT32", *shape),
            whole,
        )
    yield bad("a batch too large", f"{NO_ID}inference request batch-size must be <= 8 for 'simple'", *pair(9, 16))
    yield bad("no batch", "...", *pair(0, 16))
    yield bad("a shape without a batch", "...", given("INPUT0", "INT32", 16), whole)
    yield bad(
        "unequal batches",
        f"{NO_ID}input 'INPUT...",
        given("INPUT0", "INT32", 2, 16),
        whole,
    )
    for length in (60, 68):
        says = f"{NO_ID}input byte size mismatch for input 'INPUT0' for model 'simple'. Expected 64, got {length}"
        yield bad(f"{length} bytes for 64", says, given("INPUT0", "INT32", 1, 16, data=bytes(length)), whole)
    huge = given("INPUT0", "INT32", 1, 2**62, data=data)
    yield bad("a shape of 2^62 elements", "...", huge, whole)
    yield bad("a shape of 2^126 elements", "...", given("INPUT0", "INT32", 2**63 - 1, 2**63 - 1, data=data), whole)


def _wrong_texts() -> Iterator[Case]:
    def texts(body: bytes, title: str, says: str) -> Case:
        return bad(title, says, given("INPUT_BYTES", BYTES, 2, data=body), model="identity")

    about = "for inference input 'INPUT_BYTES'"
    yield texts(join_elements([b"a"]), "a text too few", f"{NO_ID}expected 2 string elements {about}...")
    yield texts(
        join_elements([b"a"] * 3), "a text too many", f"{NO_ID}unexpected number of string elements 3 {about}..."
    )
    yield texts(
        join_elements([b"a"]) + b"\x01\0", "a cut length", f"{NO_ID}incomplete string length indicator {about}..."
    )
    yield texts(join_elements([b"a", b"bc"])[:-1], "a cut text", f"incomplete string data {about}...")


def _wrong_parameters() -> Iterator[Case]:
    kept = "parameter keys starting with 'triton_' are reserved for Triton usage"
    only = f"{kept}. Only the following keys starting with 'triton_' are allowed: triton_enable_empty_final_response"
    not_at_all = f"{kept} and should not be specified."
    yield bad("a kept parameter", only, *pair(1, 16), parameters={"triton_x": 1}, rest_says=not_at_all)
    flag, number = "non-boolean as boolean", "non-unsigned-integer as unsigned-integer"
    kinds: tuple[tuple[str, Scalar, str, str], ...] = (
        ("sequence_start", 1, "bool_param", flag),
        ("sequence_end", "x", "bool_param", flag),
        ("priority", "x", "int64_param or uint64_param", number),
        ("timeout", "x", "int64_param", number),
    )
    for name, value, kind, access in kinds:
        yield bad(
            f"{name} {value!r}",
            f"invalid value type for '{name}' parameter, expected {kind}.",
            *pair(1, 16),
            parameters={name: value},
            rest_says=f"Unable to parse '{name}': attempt to access JSON {access}",
        )
    yield bad(
        "a negative priority",
        "invalid value for 'priority', expected value >= 0.",
        *pair(1, 16),
        parameters={"priority": -1},
        rest_says=f"Unable to parse 'priority': attempt to access JSON {number}",
    )


def _failures() -> Iterator[Case]:
    for code, status, says in (
        (1, 500, "the model does not like this"),
        (2, 400, "an invalid argument"),
        (3, 500, "..."),
    ):
        body = np.array([[code]], "<i4").tobytes()
        one = given("CODE", "INT32", 1, 1, data=body)
        yield bad(f"a model that fails with code {code}", says, one, model="failing", status=status)


CASES = (
    *_valid(),
    *_classes(),
    *_sequences(),
    *_wrong_names(),
    *_wrong_tensors(),
    *_wrong_texts(),
    *_wrong_parameters(),
    *_failures(),
)

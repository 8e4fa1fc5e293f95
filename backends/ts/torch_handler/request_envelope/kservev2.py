"""The envelope `kservev2`: the second version of KServe's protocol, which is the Open Inference Protocol in JSON.

Requests are `{"id": ..., "inputs": [{"name", "shape", "datatype", "data"}]}`; answers name the model and have an output for
each input.
"""

import sys
from collections.abc import Mapping, Sequence
from itertools import accumulate
from operator import mul
from typing import Any, NamedTuple

import numpy as np

from ringserve.backends.contract import ContractBroken
from ringserve.backends.ts.handler_utils.preprocess.rows import refusal
from ringserve.backends.ts.torch_handler.request_envelope.rows import CountedEnvelope, shown, value_of

BYTES = "BYTES"
NUMPY_NAMES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
}
DATATYPES = {name: datatype for datatype, name in NUMPY_NAMES.items()}
# A shape of a few bytes could ask for any number of lists by its zeros and ones.
LISTS_MAX, LISTS_PER_VALUE_MAX = 4096, 8
WHOLE_FLOAT_MAX = int(sys.float_info.max)


class _Asked(NamedTuple):
    """What of a request its answer repeats."""

    id: str | None
    names: Sequence[str]


class KServev2Envelope(CountedEnvelope):
    """The handler is given the inputs of all requests in one list, each a dict whose `data` is nested as its shape says, or the
    first element of a BYTES input. Their names are `context.input_names` meanwhile."""

    def __init__(self, handle_fn: Any) -> None:
        super().__init__(handle_fn)
        self._asked: dict[int, _Asked] = {}

    def parse_input(self, data: list[dict[str, Any]]) -> list[Any]:
        """The inputs of all requests. Raises `RowsRefused`."""
        self._asked = {}
        inputs: list[Any] = super().parse_input(data)
        if self.context is not None:
            self.context.input_names = [name for asked in self._asked.values() for name in asked.names]
        return inputs

    def format_output(self, data: Any) -> list[dict[str, Any]]:
        """One object for each request."""
        return [self._response(row, answers) for row, answers in enumerate(self._split(data))]

    def _inputs_of(self, row: int, data: dict[str, Any]) -> list[Any]:
        request = value_of(data)
        if not isinstance(request, dict):
            raise refusal('The request\'s body is no JSON object: the envelope kservev2 expects {"inputs": [...]}.')
        inputs = request.get("inputs")
        if not isinstance(inputs, list) or not inputs:
            got = shown(inputs) if "inputs" in request else "none"
            raise refusal(f"inputs: expected a list of at least one input, got {got}.")
        request_id = request.get("id")
        if not isinstance(request_id, str | None):
            raise refusal(f"id: expected a string, got {shown(request_id)}.")
        parsed = [_parsed(each, f"inputs[{number}]") for number, each in enumerate(inputs)]
        self._asked[row] = _Asked(request_id, [each["name"] for each in parsed])
        return parsed

    def _response(self, row: int, answers: Any) -> dict[str, Any]:
        asked, context = self._asked[row], self.context
        model = (context.manifest or {}).get("model") or {}
        given_id = asked.id if asked.id and asked.id.strip() else None
        return {
            "id": given_id or context.get_request_id(row),
            "model_name": model.get("modelName"),
            "model_version": model.get("modelVersion"),
            "outputs": self._outputs(asked.names, answers),
        }

    def _outputs(self, names: Sequence[str], answers: Any) -> list[dict[str, Any]]:
        if len(answers) > len(names):
            raise ContractBroken(f"number of outputs mismatched, expect: {len(names)}, got: {len(answers)}.")
        return [self._to_json(answer, name) for answer, name in zip(answers, names, strict=False)]

    def _to_json(self, data: Any, input_name: str) -> dict[str, Any]:
        """The output to the input of this name: what the handler answered, flat."""
        texts = isinstance(data, list) and bool(data) and all(isinstance(each, str) for each in data)
        flat = np.asarray(
            data, dtype=object if texts else None
        ).flatten()  # numpy's own texts are all as long as the longest
        return {
            "name": input_name,
            "datatype": _datatype_of(flat.dtype),
            "data": flat.tolist(),
            "shape": list(flat.shape),
        }


def _datatype_of(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "OU":
        return BYTES
    if dtype.name not in DATATYPES:
        raise ContractBroken(f"An output has the type {dtype.name}, which the envelope kservev2 cannot say.")
    return DATATYPES[dtype.name]


def _parsed(given: Any, where: str) -> dict[str, Any]:
    """An input as the handler sees it. Raises `PredictionException`."""
    if not isinstance(given, Mapping):
        raise refusal(f"{where}: expected an object, got {shown(given)}.")
    for key in ("name", "datatype", "data"):
        if key not in given:
            raise refusal(f"{where}: {key} is missing.")
    name, datatype, data = given["name"], given["datatype"], given["data"]
    if not isinstance(name, str):
        raise refusal(f"{where}.name: expected a string, got {shown(name)}.")
    if datatype != BYTES and (not isinstance(datatype, str) or datatype not in NUMPY_NAMES):
        accepted = ", ".join((*NUMPY_NAMES, BYTES))
        raise refusal(f"{where}.datatype: expected one of {accepted}, got {shown(datatype)}.")
    if not isinstance(data, list):
        raise refusal(f"{where}.data: expected a list, got {shown(data)}.")
    value = _element(data, where) if datatype == BYTES else _nested(data, given.get("shape"), datatype, where)
    return {**given, "data": value}


def _element(data: list[Any], where: str) -> Any:
    """The first element of a BYTES input, as in TorchServe, whatever its shape says."""
    if not data or not all(isinstance(each, str | list) for each in data):
        raise refusal(f"{where}.data: expected a list of strings for {BYTES}, got {shown(data)}.")
    return data[0]


def _nested(data: list[Any], shape: Any, datatype: str, where: str) -> Any:
    """The numbers of an input, nested as its shape says. Beside a float of an FP input whole numbers become floats, as numpy makes
    them; otherwise nothing is converted."""
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise refusal(f"{where}.shape: expected a list of whole numbers, got {shown(shape)}.")
    # Of objects: numpy's numbers lose digits beside others, and a text among them takes its own size for each of them.
    array = np.array(data, dtype=object)
    values = array.ravel().tolist()
    kinds = set(map(type, values))
    if list in kinds:
        raise refusal(f"{where}.data: its lists differ in length.")
    if not kinds <= {bool, int, float} or not _fits(values, datatype):
        raise refusal(f"{where}.data: expected values of {datatype}, got {shown(data)}.")
    if float in kinds and len(kinds) > 1 and datatype.startswith("FP"):
        array = array.astype(float).astype(object)
    try:
        array = array.reshape(shape)
    except (ValueError, OverflowError):
        raise refusal(f"{where}.shape: {array.size} values do not have the shape {shown(shape)}.") from None
    if sum(accumulate(array.shape[:-1], mul)) > LISTS_MAX + LISTS_PER_VALUE_MAX * array.size:
        raise refusal(f"{where}.shape: {shown(shape)} puts {array.size} values into too many lists.")
    return array.tolist()


def _fits(values: list[Any], datatype: str) -> bool:
    """Whether the datatype has these numbers. JSON does not tell 1 from 1.0, and neither does this."""
    wanted = np.dtype(NUMPY_NAMES[datatype])
    whole = [value for value in values if type(value) is not float or value.is_integer()]
    if wanted.kind == "f":
        low, high = -WHOLE_FLOAT_MAX, WHOLE_FLOAT_MAX
    elif len(whole) < len(values):
        return False
    else:
        low, high = (0, 1) if wanted.kind == "b" else (np.iinfo(wanted).min, np.iinfo(wanted).max)
    return not whole or (low <= min(whole) and max(whole) <= high)

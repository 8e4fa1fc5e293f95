"""A call, compared with what its model declares. What passes here is well formed in every respect that can be known before the model
looks at it: names, datatypes, shapes, sizes, what is asked for.

Sizes are Python's integers, and compared before anything is allocated: [16, 2**60 + 2] is not a small tensor.
"""

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

import numpy as np

from ringserve.protocol.datatypes import DATATYPE_BYTES, DATATYPE_OF
from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import Scalar
from ringserve.protocol.tensor import ANY, Signature, TensorSpec
from ringserve.server.open_inference.call import CallInput, InferCall
from ringserve.server.open_inference.errors import request_mark
from ringserve.server.served_model import ServedModel

ELEMENTS_MAX = 2**63 - 1
CLASSES_MAX = 1_000_000
# The one parameter beginning with triton_ that clients may send, over gRPC.
EMPTY_FINAL = "triton_enable_empty_final_response"
_BATCH_NOTE = (
    " NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each input shape. If you"
    " want to specify the full shape including the batch dim in your input dims config, try setting max_batch_size to zero. See the"
    " model configuration docs for more info on max_batch_size."
)


class Reserved(NamedTuple):
    """The parameters of a call that the server itself understands, and the rest, which is the model's."""

    rest: Mapping[str, Scalar]
    priority: int = 0
    timeout_us: int = 0
    sequence_id: int | str = 0
    sequence_start: bool = False
    sequence_end: bool = False


NOTHING_RESERVED = Reserved({})


def take_reserved(parameters: Mapping[str, Scalar]) -> Reserved:
    """Raises `BadRequest` for one of another type, and for names that are kept for the server."""
    if not parameters:
        return NOTHING_RESERVED
    rest = dict(parameters)
    found = Reserved(
        rest,
        _whole(rest, "priority"),
        _whole(rest, "timeout"),
        _sequence_id(rest.pop("sequence_id", 0)),
        _flag(rest, "sequence_start"),
        _flag(rest, "sequence_end"),
    )
    rest.pop(EMPTY_FINAL, None)
    for name in rest:
        if name.startswith("triton_"):
            raise BadRequest(
                "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified."
            )
    return found


def _whole(parameters: dict[str, Scalar], name: str) -> int:
    value = parameters.pop(name, 0)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        raise BadRequest(f"parameter '{name}' has invalid value: expected a whole number from 0 on, got {value!r:.64}.")
    return value


def _flag(parameters: dict[str, Scalar], name: str) -> bool:
    value = parameters.pop(name, False)
    if not isinstance(value, bool):
        raise BadRequest(f"parameter '{name}' has invalid type: expected a boolean, got {value!r:.64}.")
    return value


def _sequence_id(value: Scalar) -> int | str:
    if isinstance(value, str):
        return value or 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**64:
        text = f"{value!r:.64}"
        raise BadRequest(
            f"parameter 'sequence_id' has invalid value: expected a string or a whole number of 64 bits, got {text}."
        )
    return value


class _Declared:
    """One declared tensor, ready to be compared with."""

    __slots__ = ("datatype", "element_bytes", "fixed", "optional", "shape")

    def __init__(self, spec: TensorSpec) -> None:
        self.datatype = DATATYPE_OF[spec.dtype]
        self.element_bytes = DATATYPE_BYTES.get(self.datatype, 0)
        self.shape = tuple(spec.shape)
        self.fixed = ANY not in self.shape
        self.optional = spec.optional

    def fits(self, dims: tuple[int, ...]) -> bool:
        shape = self.shape
        return dims == shape or (
            len(dims) == len(shape) and all(mine in (ANY, its) for mine, its in zip(shape, dims, strict=True))
        )


class Declaration:
    """What one version takes and gives, as clients of the protocol see it."""

    __slots__ = ("batches", "inputs", "model", "outputs", "required", "served", "signature")

    def __init__(self, model: str, signature: Signature, served: ServedModel, hidden: Collection[str] = ()) -> None:
        """`hidden` inputs are the server's to give: clients neither see nor send them."""
        self.model = model
        self.signature, self.served = signature, served
        self.batches = signature.batches
        self.inputs = {spec.name: _Declared(spec) for spec in signature.inputs if spec.name not in hidden}
        self.outputs = {spec.name: _Declared(spec) for spec in signature.outputs}
        self.required = [name for name, spec in self.inputs.items() if not spec.optional]

    def check(self, call: InferCall) -> int:
        """Returns how many items the call has: its batch size, 1 for a model without. Raises `BadRequest`."""
        declared = self.inputs
        if len(call.inputs) != len(declared) or len({each.name for each in call.inputs}) != len(declared):
            self._check_names(call)
        if call.outputs:
            self._check_outputs(call)
        items = -1
        for each in reversed(call.inputs):  # as Triton does, for whoever compares which of two is to blame
            spec = declared.get(each.name)
            if spec is None:
                self._check_names(call)
                raise BadRequest(f"unexpected inference input '{each.name:.256}' for model '{self.model}'")
            if each.datatype != spec.datatype:
                self._refuse(
                    call,
                    f"inference input '{each.name}' data-type is '{each.datatype:.64}', but model '{self.model}' expects"
                    f" '{spec.datatype}'",
                )
            items = self._check_shape(call, each, spec, items)
        self._check_items(call, items)
        for each in call.inputs:
            self._check_bytes(call, each, declared[each.name])
        return items if self.batches else 1

    def _check_shape(self, call: InferCall, given: CallInput, spec: _Declared, items: int) -> int:
        shape = given.shape
        dims = shape[1:] if self.batches else shape
        if spec.fixed and dims == spec.shape:  # nearly always
            if not self.batches:
                return items
            if shape and shape[0] >= 0 and (items < 0 or items == shape[0]):
                return shape[0]
        if any(dim < 0 for dim in shape):
            shown = _listed(shape)
            self._refuse(
                call,
                f"All input dimensions should be specified for input '{given.name}' for model '{self.model}', got {shown}",
            )
        if math.prod(shape) > ELEMENTS_MAX:
            self._refuse(
                call,
                f"input '{given.name}' shape {_listed(shape)} causes total element count to exceed maximum size of"
                f" {ELEMENTS_MAX}",
            )
        if self.batches and shape and 0 <= items != shape[0]:
            self._refuse(call, f"input '{given.name}' batch size does not match other inputs for '{self.model}'")
        if self.batches and not shape:
            self._refuse(
                call, f"input '{given.name}' has no shape but model requires batch dimension for '{self.model}'"
            )
        if not spec.fits(dims):
            expected = _listed((ANY, *spec.shape) if self.batches else spec.shape)
            self._refuse(
                call,
                f"unexpected shape for input '{given.name}' for model '{self.model}'. Expected {expected}, got"
                f" {_listed(shape)}.{_BATCH_NOTE if self.batches else ' '}",
            )
        return shape[0] if self.batches else items

    def _check_items(self, call: InferCall, items: int) -> None:
        if not self.batches or items < 0:
            return
        most = self.served.max_batch_size
        if items > most > 0:
            self._refuse(call, f"inference request batch-size must be <= {most} for '{self.model}'")
        if not items:
            self._refuse(call, f"inference request batch-size must be >= 1 for '{self.model}'")

    def _check_bytes(self, call: InferCall, given: CallInput, spec: _Declared) -> None:
        got = len(given.data) if given.place is None else given.place.nbytes
        elements = math.prod(given.shape)
        if spec.element_bytes:
            if got != elements * spec.element_bytes:
                expected = elements * spec.element_bytes
                if expected > ELEMENTS_MAX:
                    self._refuse(call, f"byte size overflow for input '{given.name}' for model '{self.model}'")
                self._refuse(
                    call,
                    f"input byte size mismatch for input '{given.name}' for model '{self.model}'. Expected {expected},"
                    f" got {got}",
                )
        elif given.place is None:  # what lies elsewhere is looked at where it is read
            fault = element_fault(given.data, elements)
            if fault:
                # Clients look for this sentence at the beginning.
                mark = "" if fault.startswith("incomplete string data") else request_mark(call.id)
                raise BadRequest(mark + fault.format(name=given.name, model=self.model))

    def _check_names(self, call: InferCall) -> None:
        """Raises where the inputs are too many, too few, or the same twice. One that is not known is found later."""
        names = [each.name for each in call.inputs]
        twice = next((name for at, name in enumerate(names) if name in names[:at]), None)
        if twice is not None:
            self._refuse(call, f"input '{twice:.256}' already exists in request")
        missing = [name for name in self.required if name not in names]
        alone = not names and self.batches and bool(self.inputs)  # nobody could say how many items that is
        if not missing and len(names) <= len(self.inputs) and not alone:
            return
        most, least = len(self.inputs), max(len(self.required), int(alone))
        unknown = next((name for name in names if name not in self.inputs), None)
        if unknown is not None and least <= len(names) <= most:
            raise BadRequest(f"unexpected inference input '{unknown:.256}' for model '{self.model}'")
        expected = f"{most} inputs" if most == least else f"number of inputs between {least} and {most}"
        self._refuse(
            call,
            f"expected {expected} but got {len(names)} inputs for model '{self.model}'. Got input(s) {_quoted(names[::-1])}, but"
            f" missing required input(s) {_quoted(missing)}. Please provide all required input(s).",
        )

    def _check_outputs(self, call: InferCall) -> None:
        seen = set()
        for each in call.outputs:
            if each.name not in self.outputs and self.outputs:
                raise BadRequest(f"unexpected inference output '{each.name:.256}' for model '{self.model}'")
            if each.name in seen:
                self._refuse(call, f"output '{each.name}' already exists in request")
            if each.classification and each.place is not None:
                self._refuse(call, f"shared memory can not be used for the classification of output '{each.name}'")
            seen.add(each.name)

    @staticmethod
    def _refuse(call: InferCall, text: str) -> None:
        raise BadRequest(request_mark(call.id) + text)


def element_fault(data: bytes | bytearray | memoryview, elements: int) -> str:
    """What is wrong with the bytes of a BYTES tensor of so many elements, "" for nothing; a sentence to be told `name` and `model`."""
    nbytes = len(data)
    if nbytes < 4 * elements or not elements:
        if not nbytes and not elements:
            return ""
        return _walk(data, elements)
    first = int.from_bytes(data[:4], "little")
    if nbytes == elements * (4 + first) and elements > 8:  # all are as long, nearly always
        lengths = np.frombuffer(data, np.uint8).reshape(elements, 4 + first)[:, :4]
        if (lengths == lengths[0]).all():
            return ""
    return _walk(data, elements)


def _walk(data: bytes | bytearray | memoryview, elements: int) -> str:
    at, end, found = 0, len(data), 0
    while at < end:
        if found == elements:
            return f"unexpected number of string elements {found + 1} for inference input '{{name}}' for model '{{model}}', expecting {elements}"
        if at + 4 > end:
            return (
                "incomplete string length indicator for inference input '{name}' for model '{model}', expecting 4 bytes but only "
                + (f"{end - at} bytes available. Please make sure the string length indicator is in one buffer.")
            )
        length = int.from_bytes(data[at : at + 4], "little")
        at += 4 + length
        if at > end:
            return "incomplete string data for inference input '{name}', expecting string of length " + (
                f"{length} but only {end - at + length} bytes available"
            )
        found += 1
    if found != elements:
        return f"expected {elements} string elements for inference input '{{name}}' for model '{{model}}', got {found}"
    return ""


def _listed(shape: tuple[int, ...]) -> str:
    return f"[{','.join(map(str, shape[:64]))}]"


def _quoted(names: list[str]) -> str:
    shown = ",".join(f"'{name[:256]}'" for name in names[:64])
    return f"[{shown}]"

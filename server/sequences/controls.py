"""The inputs that the server adds to the requests of sequences, by which the model knows them: that a sequence begins or ends, which one
it is, and whether there is a request at all."""

import struct
from collections.abc import Sequence

from ringserve.protocol.datatypes import BYTES, DATATYPE_BYTES, join_elements
from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import InferRequest, Tensor, TensorRequest
from ringserve.protocol.tensor import Signature
from ringserve.server.scheduling.rules import CORRID, END, READY, START, Control

ID_CHARACTERS_MAX = 128  # Triton's
_PACKERS = {"INT32": struct.Struct("<i"), "FP32": struct.Struct("<f"), "BOOL": struct.Struct("<?")}


def key_of(sequence_id: int | str) -> str:
    """A name that no other sequence has: 5 and "5" are two."""
    return str(sequence_id) if isinstance(sequence_id, int) else f'"{sequence_id}"'


def check_id(sequence_id: int | str, model: str, controls: Sequence[Control]) -> None:
    """Raises `BadRequest` where a request names no sequence, or one by another kind of id than the model is to be told."""
    if not sequence_id:
        raise BadRequest(f"inference request to model '{model}' must specify a non-zero or non-empty correlation ID")
    if isinstance(sequence_id, str):
        if len(sequence_id) > ID_CHARACTERS_MAX:
            raise BadRequest(f"string correlation ID cannot be longer than {ID_CHARACTERS_MAX} characters")
    elif not -(1 << 63) <= sequence_id < 1 << 64:
        raise BadRequest("sequence_id: expected an integer of 64 bits, got a larger one.")
    for control in controls:
        said = BYTES if isinstance(sequence_id, str) else "UINT64"
        if control.kind == CORRID and (control.datatype == BYTES) != (said == BYTES):
            raise BadRequest(
                f"sequence batching control '{control.name}' data-type is '{said}', but model '{model}' expects"
                f" '{control.datatype}'"
            )


class ControlTensors:
    """Those of one version."""

    def __init__(self, controls: Sequence[Control]) -> None:
        self._controls = controls
        self._values = {
            each.name: (_packed(each.datatype, each.false), _packed(each.datatype, each.true))
            for each in controls
            if each.kind != CORRID
        }

    def added(self, tensors: TensorRequest, signature: Signature, *, ready: bool = True) -> tuple[Tensor, ...]:
        """The inputs of a request, with those of the server behind them; one item each, in the batch of one where there are batches."""
        if not self._controls:
            return tensors.inputs
        shape = (1, 1) if signature.batches else (1,)
        said = {START: tensors.sequence_start, END: tensors.sequence_end, READY: ready}
        own = []
        for control in self._controls:
            if control.kind == CORRID:
                data = _corrid(control.datatype, tensors.sequence_id)
            else:
                data = self._values[control.name][said[control.kind]]
            own.append(Tensor(control.name, control.datatype, shape, data))
        return (*tensors.inputs, *own)

    def blank(self, request: InferRequest, tensors: TensorRequest, signature: Signature) -> InferRequest:
        """A request of nobody, in the shapes of this one."""
        inputs = tuple(each._replace(data=bytes(_zero_bytes(each))) for each in tensors.inputs)
        nobody = "" if isinstance(tensors.sequence_id, str) else 0
        nothing = TensorRequest(inputs, sequence_id=nobody)
        added = nothing._replace(inputs=self.added(nothing, signature, ready=False))
        return request._replace(request_id="", headers={}, tensors=added, deadline_ns=0)


def _packed(datatype: str, value: float) -> bytes:
    packer = _PACKERS[datatype]
    return packer.pack(value if datatype == "FP32" else int(value))


def _corrid(datatype: str, sequence_id: int | str) -> bytes:
    """Where it has fewer bits than the id, those that are too many are cut off, as by Triton."""
    if isinstance(sequence_id, str):
        return join_elements([sequence_id.encode()])
    size = DATATYPE_BYTES[datatype]
    return (sequence_id & (1 << 8 * size) - 1).to_bytes(size, "little")


def _zero_bytes(tensor: Tensor) -> int:
    """As long as the same number of zeros, or of empty elements."""
    count = 1
    for each in tensor.shape:
        count *= each
    return count * (4 if tensor.datatype == BYTES else DATATYPE_BYTES[tensor.datatype])

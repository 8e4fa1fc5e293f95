"""Which encoder makes rows of a version's requests."""

from collections.abc import Sequence

from ringserve.protocol.datatypes import BYTES
from ringserve.protocol.request import InferRequest
from ringserve.protocol.tensor import Signature
from ringserve.server.payloads import BytesEncoder, TypedEncoder
from ringserve.server.plain_bodies import refuse_explanation, request_of_spool
from ringserve.server.tensor_bodies import tensors_of_body
from ringserve.server.tensor_payloads import Coming, FramePayload, frame_of
from ringserve.shm.spool import Spool


class FramedEncoder:
    """For framed models: tensors, or plain bodies of which tensors can be made."""

    def __init__(self, signature: Signature) -> None:
        assert signature.framed
        self._signature = signature

    def encode(self, request: InferRequest) -> FramePayload:
        """Raises `BadRequest`."""
        tensors = request.tensors
        if tensors is None:
            refuse_explanation(request)
            tensors = tensors_of_body(self._signature, request)
        return frame_of(request, tensors)

    def expect(self, request: InferRequest, body_bytes: int) -> FramePayload | None:
        """None: a plain body must be read before it is a row. Raises `BadRequest`."""
        refuse_explanation(request)
        return None

    def expect_tensors(self, request: InferRequest, lengths: Sequence[int]) -> FramePayload | None:
        """The payload of a request in tensors some of which are still to come: those whose `lengths` are not negative. Elements of
        BYTES are looked at before they are a row. Raises `BadRequest`."""
        assert request.tensors is not None
        told = [
            each._replace(data=Coming(length)) if length >= 0 else each
            for each, length in zip(request.tensors.inputs, lengths, strict=True)
        ]
        if any(each.datatype == BYTES for each in told if isinstance(each.data, Coming)):
            return None
        return frame_of(request, request.tensors._replace(inputs=tuple(told)))

    def encode_spooled(self, request: InferRequest, spool: Spool) -> FramePayload:
        return self.encode(request_of_spool(request, spool))


Encoder = TypedEncoder | FramedEncoder | BytesEncoder


def encoder_for(signature: Signature) -> Encoder:
    """What makes rows of the requests of a model with this declaration."""
    if signature.typed:
        return TypedEncoder(signature)
    return FramedEncoder(signature) if signature.framed else BytesEncoder()

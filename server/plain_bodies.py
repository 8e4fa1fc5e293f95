"""What encoders of declared models share about requests that are no tensors."""

from ringserve.protocol.errors import BadRequest
from ringserve.protocol.request import InferRequest
from ringserve.server.forms import cut
from ringserve.shm.spool import Spool, Windows


def refuse_explanation(request: InferRequest) -> None:
    """Raises `BadRequest` where an explanation is asked for: those are made by handlers."""
    if request.headers.get("explain") == "True":
        raise BadRequest(
            "Explanation: expected a model with a handler, got one that declares its inputs and outputs, which gives predictions only."
        )


def request_of_spool(request: InferRequest, spool: Spool) -> InferRequest:
    """The request with its body, or its form's parts, out of the spool that they came in, which is closed."""
    windows = Windows(spool.fd, 0, spool.written)
    body = b"".join(map(bytes, iter(windows.next, None)))
    spool.close()
    if request.placed is not None:
        return request._replace(parts=cut(request.placed, body))
    return request._replace(body=body)

"""`pb_utils.InferenceResponse`, and the sender by which a model answers when it likes, from any thread."""

import json
from collections.abc import Mapping, Sequence
from typing import Final

from ringserve.backends.contract import TensorResult
from ringserve.backends.triton.answering import Claim
from ringserve.backends.triton.errors import TritonError, TritonModelException, answer_of
from ringserve.backends.triton.tensor import Tensor
from ringserve.protocol.errors import RingServeError
from ringserve.protocol.request import Scalar

TRITONSERVER_RESPONSE_COMPLETE_FINAL: Final = 1


class InferenceResponse:
    """`InferenceResponse(output_tensors, error, parameters)`: with an error, the tensors are not sent."""

    __slots__ = ("_error", "_parameters", "_tensors")

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: TritonError | None = None,
        parameters: Mapping[str, Scalar] | None = None,
    ) -> None:
        """Raises `TypeError` for what are no tensors or no `TritonError`, `TritonModelException` for parameters that cannot travel."""
        if not isinstance(output_tensors, (list, tuple)) or not all(
            isinstance(each, Tensor) for each in output_tensors
        ):
            raise TypeError(f"output_tensors must be a list of pb_utils.Tensor, got {output_tensors!r}.")
        if error is not None and not isinstance(error, TritonError):
            raise TypeError(f"error must be a pb_utils.TritonError, got {type(error).__name__}.")
        self._tensors = list(output_tensors)
        self._error = error
        self._parameters = checked_parameters(parameters or {})

    def output_tensors(self) -> list[Tensor]:
        return self._tensors

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError | None:
        return self._error

    def parameters(self) -> str:
        """As JSON."""
        return json.dumps(self._parameters, separators=(",", ":"))

    def result(self) -> TensorResult | RingServeError:
        """As our backends say it. The tensors are brought to this machine's memory."""
        if self._error is not None:
            return answer_of(self._error)
        return TensorResult({each.name(): each.in_memory() for each in self._tensors}, self._parameters)


def checked_parameters(parameters: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Raises `TritonModelException` unless they are numbers, texts and truths by name."""
    if not isinstance(parameters, Mapping):
        raise TritonModelException(f"parameters must be a dict, got {type(parameters).__name__}.")
    for name, value in parameters.items():
        if not isinstance(name, str) or not isinstance(value, (bool, int, float, str)):
            wanted = "parameters are bool, int, float or str by name"
            raise TritonModelException(f"{wanted}; {name!r} is {type(value).__name__}.")
    return dict(parameters)


class InferenceResponseSender:
    """What `request.get_response_sender()` gives: `send` as many as the model likes, the last with FINAL."""

    __slots__ = ("_claim",)

    def __init__(self, claim: Claim) -> None:
        self._claim = claim

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Send one response now, `flags` FINAL with the last or after it. Raises `TypeError`, and `TritonModelException` after the last."""
        if response is not None and not isinstance(response, InferenceResponse):
            raise TypeError(f"send expects a pb_utils.InferenceResponse, got {type(response).__name__}.")
        if flags not in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if response is None and not flags:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        self._claim.answering.send(None if response is None else response.result, final=bool(flags))

    def is_cancelled(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return self._claim.answering.cancelled()

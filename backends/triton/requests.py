"""`pb_utils.InferenceRequest`: one request, as `execute` is given it."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Final, NoReturn

import numpy as np

from ringserve.backends.contract import TensorCall
from ringserve.backends.triton.answering import Claim
from ringserve.backends.triton.errors import TritonModelException
from ringserve.backends.triton.responses import InferenceResponseSender, checked_parameters
from ringserve.backends.triton.tensor import Tensor
from ringserve.protocol.request import Scalar

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START: Final = 1
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END: Final = 2
TRITONSERVER_REQUEST_RELEASE_ALL: Final = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE: Final = 2

NO_CALLS = "A model cannot ask another one here (BLS): have its client ask both, or put both into one model."


class MemoryType(Enum):
    TRITONSERVER_MEMORY_GPU = 0
    TRITONSERVER_MEMORY_CPU = 1


class PreferredMemory:
    """Where a model wants the answer of another model: taken, and without effect."""

    def __init__(self, preferred_memory_type: MemoryType, preferred_device_id: int = 0) -> None:
        self.preferred_memory_type = preferred_memory_type
        self.preferred_device_id = preferred_device_id


class InferenceTrace:
    """Requests are not traced into models: it has no context."""

    def get_context(self) -> None:
        return None


class InferenceRequest:
    """One request. Its tensors are views of the server's memory: copy what is to outlive the answer."""

    __slots__ = (
        "_claim",
        "_correlation_id",
        "_flags",
        "_inputs",
        "_model_name",
        "_model_version",
        "_parameters",
        "_preferred_memory",
        "_request_id",
        "_requested",
        "_timeout",
        "_trace",
    )

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] = (),
        requested_output_names: Sequence[str] = (),
        model_name: str = "",
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: InferenceTrace | None = None,
        parameters: Mapping[str, Scalar] | None = None,
    ) -> None:
        """A model makes one to ask another model, which `exec` then refuses."""
        self._request_id = request_id
        self._correlation_id = correlation_id
        self._inputs = list(inputs)
        self._requested = requested_output_names
        self._model_name = model_name
        self._model_version = model_version
        self._flags = flags
        self._timeout = timeout
        self._preferred_memory = preferred_memory
        self._trace = trace
        self._parameters: Mapping[str, Scalar] = checked_parameters(parameters or {})
        self._claim: Claim | None = None

    @classmethod
    def of_call(
        cls,
        call: TensorCall,
        claim: Claim,
        tensor_of: Callable[[str, np.ndarray], Tensor],
        model: tuple[str, int, Sequence[str]],
    ) -> "InferenceRequest":
        """A client's. `model` is its name, its version and the names of all its outputs."""
        request = cls.__new__(cls)
        request._request_id = call.request_id
        request._correlation_id = call.sequence_id
        request._inputs = [tensor_of(name, array) for name, array in call.inputs.items()]
        request._model_name, request._model_version, all_outputs = model
        request._requested = call.outputs or all_outputs
        start = TRITONSERVER_REQUEST_FLAG_SEQUENCE_START if call.sequence_start else 0
        request._flags = start | (TRITONSERVER_REQUEST_FLAG_SEQUENCE_END if call.sequence_end else 0)
        request._timeout = max(0, call.deadline_ns - time.monotonic_ns()) // 1000 if call.deadline_ns else 0
        request._preferred_memory = request._trace = None
        request._parameters = call.parameters
        request._claim = claim
        return request

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def request_id(self) -> str:
        return self._request_id

    def correlation_id(self) -> int | str:
        """Of its sequence; 0 for none."""
        return self._correlation_id

    def flags(self) -> int:
        """Whether it begins a sequence, or ends one."""
        return self._flags

    def set_flags(self, flags: int) -> None:
        self._flags = flags

    def timeout(self) -> int:
        """Microseconds until the client waits no longer, 0 for any time."""
        return self._timeout

    def model_name(self) -> str:
        return self._model_name

    def model_version(self) -> int:
        return self._model_version

    def preferred_memory(self) -> PreferredMemory | None:
        return self._preferred_memory

    def requested_output_names(self) -> set[str]:
        return set(self._requested)

    def parameters(self) -> str:
        """The client's own, as JSON."""
        return json.dumps(dict(self._parameters), separators=(",", ":"))

    def trace(self) -> InferenceTrace:
        return self._trace or InferenceTrace()

    def is_cancelled(self) -> bool:
        """Whether nobody waits for its answer any more."""
        return self._claim is not None and self._claim.answering.cancelled()

    def get_response_sender(self) -> InferenceResponseSender:
        """Raises `TritonModelException` for a request that is the model's own."""
        if self._claim is None:
            raise TritonModelException("Only a request that a client sent has a response sender.")
        return InferenceResponseSender(self._claim)

    def set_release_flags(self, flags: int) -> None:
        """Raises `TritonModelException` where the request is to come back: iterative sequences are not served."""
        if flags != TRITONSERVER_REQUEST_RELEASE_ALL:
            raise TritonModelException("A request cannot be rescheduled here: iterative sequences are not served.")

    def exec(self, decoupled: bool = False) -> NoReturn:
        """Raises `TritonModelException`, always."""
        raise TritonModelException(NO_CALLS)

    async def async_exec(self, decoupled: bool = False) -> NoReturn:
        """Raises `TritonModelException`, always."""
        raise TritonModelException(NO_CALLS)

"""What a `predict(inputs, outputs, context)` may ask about the requests of its batch, and say to them beside its outputs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ringserve.backends.contract import Batch, TensorCall
from ringserve.protocol.request import Scalar


@dataclass(frozen=True, slots=True)
class RequestContext:
    """One request. `rows` are its own in the arrays of the batch; `parameters` are the client's, `outputs` the names that it wants (empty:
    all). What is put into `response_parameters` (bool, int, float or str by name) goes with the answer."""

    request_id: str
    rows: slice
    parameters: Mapping[str, Scalar]
    outputs: Sequence[str]
    sequence_id: int | str
    sequence_start: bool
    sequence_end: bool
    response_parameters: dict[str, Scalar] = field(default_factory=dict)


class PredictContext:
    """The requests of one call of `predict`, in the order of their rows."""

    def __init__(self, batch: Batch, places: Sequence[int]) -> None:
        """`places` are those of the batch's calls that are asked about."""
        self._batch = batch
        self._places = places
        self.requests: list[RequestContext] = []
        first = 0
        for place in places:
            call = batch.calls[place]
            self.requests.append(_context_of(call, slice(first, first + call.rows)))
            first += call.rows

    def cancelled(self, request: int = 0) -> bool:
        """Whether the client of this request, counted from 0, waits no longer."""
        return self._batch.control.cancelled(self._places[request])

    @property
    def response_parameters(self) -> list[dict[str, Any]]:
        """Of each request."""
        return [each.response_parameters for each in self.requests]


def _context_of(call: TensorCall, rows: slice) -> RequestContext:
    return RequestContext(
        call.request_id,
        rows,
        call.parameters,
        call.outputs,
        call.sequence_id,
        call.sequence_start,
        call.sequence_end,
    )

"""What the envelopes of this package share: every request of a batch is parsed by itself, counted, and answered with its own.

TorchServe's envelopes for KServe take the first request of a batch only, and one request that does not parse fails all.
"""

import reprlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from ringserve.backends.contract import ContractBroken, check_count
from ringserve.backends.inputs import decode_json
from ringserve.backends.ts.context import CONTENT_TYPE, Context
from ringserve.backends.ts.handler_utils.preprocess.rows import refusal
from ringserve.backends.ts.torch_handler.request_envelope.base import BaseEnvelope
from ringserve.backends.ts.utils.util import PredictionException

JSON = "application/json"


def shown(value: object) -> str:
    """A client's value in a sentence, of any size."""
    return reprlib.repr(value)


class RowsRefused(PredictionException):
    """These requests of the batch do not parse; the handler has not been called. Whoever has called the envelope may call it
    again with the others."""

    def __init__(self, rows: Mapping[int, PredictionException]) -> None:
        first = next(iter(rows.values()))
        super().__init__(first.message, first.error_code)
        self.rows = rows


class RowsApart(Exception):
    """Each of these requests of the batch is for a call of the handler of its own, which has not been called. Whoever has called
    the envelope calls it again with each, and with the others."""

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__("requests that cannot be put together")
        self.rows = rows


class CountedEnvelope(BaseEnvelope):
    """For requests that bring several inputs each. The handler is given the inputs of all of them in one list, and returns as
    many answers, of which each request gets its own. Where there are none, it is not called."""

    _counts: Sequence[int] = ()

    @abstractmethod
    def _inputs_of(self, row: int, data: dict[str, Any]) -> Any:
        """The inputs of one request: a list, or what the handler is given as it is. Raises `PredictionException`."""

    def parse_input(self, data: list[dict[str, Any]]) -> Any:
        """All inputs of the batch. Raises `RowsRefused` or `RowsApart`."""
        rows: list[Any] = []
        refused = {}
        for row, request in enumerate(data):
            try:
                rows.append(self._inputs_of(row, request))
            except PredictionException as error:
                refused[row] = error
        if refused:
            raise RowsRefused(refused)
        apart = [row for row, inputs in enumerate(rows) if not isinstance(inputs, list)]
        if apart:
            if len(rows) > 1:
                raise RowsApart(apart)
            self._counts = (1,)
            return rows[0]
        self._counts = [len(inputs) for inputs in rows]
        return [each for inputs in rows for each in inputs]

    def _ask(self, inputs: Any) -> Any:
        return [] if self._counts and inputs == [] else super()._ask(inputs)

    def _split(self, answers: Any) -> list[Any]:
        """The answers to each request; to a request that is alone, whatever the handler returned, as in TorchServe. Raises
        `ContractBroken` when several requests cannot be told apart."""
        counts, self._counts = self._counts, ()
        if len(counts) == 1:
            return [answers]
        if not isinstance(answers, list):
            raise ContractBroken("Invalid model predict output")
        check_count(sum(counts), len(answers))
        return [answers[start:end] for start, end in pairwise(accumulate(counts, initial=0))]

    def _say_json(self, rows: int) -> None:
        """The bodies are JSON, though the answers are text, unless the handler has said something else."""
        context = self.context
        if isinstance(context, Context) and len(context.request_processor) == rows:
            for processor in context.request_processor:
                if processor.get_response_header(CONTENT_TYPE) is None:
                    processor.add_response_property(CONTENT_TYPE, JSON)


def value_of(data: Mapping[str, Any]) -> Any:
    """The request's input `data`, or else its body; binary ones are taken for JSON. Raises `PredictionException`."""
    return json_value(data.get("data") or data.get("body"))


def json_value(value: Any) -> Any:
    """`value`, decoded if it arrived as bytes or text. Raises `PredictionException`."""
    if isinstance(value, str):
        value = value.encode(errors="surrogatepass")
    if not isinstance(value, bytes | bytearray):
        return value
    try:
        return decode_json(memoryview(value))
    except (ValueError, RecursionError) as error:
        raise refusal(f"The request's body is not JSON: {error}") from None


def instances_of(value: Any, envelope: str) -> Any:
    """`instances` of a request, which should be a list. Raises `PredictionException` when there are none."""
    expected = f'the envelope {envelope} expects {{"instances": [...]}}'
    if not isinstance(value, Mapping):
        raise refusal(f"The request's body is no JSON object: {expected}.")
    if value.get("instances") is None:
        raise refusal(f'The request has no "instances": {expected}.')
    return value["instances"]

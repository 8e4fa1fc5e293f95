"""Calls a Python class' `predict` with requests whose tensors are not of one fixed size, or that have any number of answers."""

import inspect
from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ringserve.backends.contract import Batch, ContractBroken, TensorResult
from ringserve.backends.failures import LOGGER, prediction_failure
from ringserve.backends.framed_model import checked_outputs, groups_of, results_of, wanted_outputs
from ringserve.backends.predict_context import PredictContext
from ringserve.backends.typed_model import refuse_outputs
from ringserve.protocol.errors import InvalidModel, RingServeError
from ringserve.protocol.request import Scalar
from ringserve.protocol.tensor import Signature, TensorSpec

Arrays = dict[str, np.ndarray]
_NOTHING: Mapping[str, Scalar] = {}


class Takes(NamedTuple):
    """What a `predict` is given beside its inputs."""

    outputs: bool
    context: bool


def taken_by(predict: Callable[..., Any]) -> Takes:
    """`predict(inputs)`, `(inputs, outputs)`, `(inputs, context)` or `(inputs, outputs, context)`: the last by its name or its place."""
    try:
        parameters = list(inspect.signature(predict).parameters.values())
    except (TypeError, ValueError):  # of a compiled one nobody can tell
        return Takes(outputs=True, context=False)
    names = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    if any(each.kind is each.VAR_POSITIONAL for each in parameters):
        return Takes(outputs=True, context="context" in names)
    context = len(names) > 2 or "context" in names[1:]
    return Takes(outputs=len(names) > 1 + context, context=context)


class FramedPredict:
    """Of one loaded model. A decoupled one's `predict` is a generator: called for each request by itself, each dict that it yields is
    one answer."""

    def __init__(self, predict: Callable[..., Any], signature: Signature, model_name: str) -> None:
        """Raises `InvalidModel` for a decoupled model whose `predict` is no generator."""
        if signature.decoupled and not inspect.isgeneratorfunction(predict):
            raise InvalidModel(
                f"The model {model_name} is decoupled: its predict must be a generator, and yield one dict for each answer."
            )
        self._predict = predict
        self._takes = taken_by(predict)
        self._signature = signature
        self._name = model_name

    def execute(self, batch: Batch) -> None:
        """Raises `PredictionFailed` or `OutOfResources`; what fails one group of requests only is the result of those."""
        if self._signature.decoupled:
            self._stream(batch)
            return
        results: list[TensorResult | RingServeError | None] = [None] * len(batch.calls)
        groups = list(groups_of(batch, self._signature))
        for places, inputs in groups:
            try:
                answers = self._answers(batch, places, inputs)
            except RingServeError as failure:
                if len(groups) == 1:
                    raise
                for place in places:
                    results[place] = failure
                continue
            for place, answer in zip(places, answers, strict=True):
                results[place] = answer
        batch.results = [each for each in results if each is not None]

    def _answers(self, batch: Batch, places: Sequence[int], inputs: Mapping[str, np.ndarray]) -> list[TensorResult]:
        context = PredictContext(batch, places) if self._takes.context else None
        said = self._called(inputs, context, logged=batch.is_retry)
        calls = [batch.calls[place] for place in places]
        wanted = wanted_outputs(calls, self._signature)
        rows = sum(call.rows for call in calls) if self._signature.batches else None
        outputs = checked_outputs(self._by_name(said), wanted, rows)
        if context is None:
            return list(results_of(outputs, calls, [_NOTHING] * len(calls)))
        return list(results_of(outputs, calls, [_scalars(each) for each in context.response_parameters]))

    def _called(self, inputs: Mapping[str, np.ndarray], context: PredictContext | None, *, logged: bool) -> Any:
        outputs: Arrays = {}
        failure: RingServeError
        try:
            said = self._predict(*self._arguments(inputs, outputs, context))
            return outputs if said is None else said
        except BaseException as error:  # noqa: BLE001 - sys.exit() in a model must not end the worker either
            failure = prediction_failure(error, self._name, logged=logged)
        raise failure

    def _arguments(
        self, inputs: Mapping[str, np.ndarray], outputs: Arrays, context: PredictContext | None
    ) -> list[Any]:
        arguments: list[Any] = [dict(inputs)]
        if self._takes.outputs:
            arguments.append(outputs)
        if self._takes.context:
            arguments.append(context)
        return arguments

    def _by_name(self, said: Any) -> Mapping[str, Any]:
        names = [spec.name for spec in self._signature.outputs]
        if isinstance(said, Mapping):
            return said
        if isinstance(said, (np.ndarray, list)) and len(names) == 1:
            return {names[0]: said}
        if inspect.isgenerator(said):
            raise ContractBroken("predict is a generator: a model that is not declared decoupled does not stream.")
        return refuse_outputs(names, f"one {type(said).__name__}")

    # ---- any number of answers

    def _stream(self, batch: Batch) -> None:
        """One answer of each request in turn, so that none waits for the end of another's."""
        live: deque[_Stream] = deque()
        for place, call in enumerate(batch.calls):
            context = PredictContext(batch, [place])
            parts = self._predict(*self._arguments(call.inputs, {}, context))
            rows = call.rows if self._signature.batches else None
            live.append(_Stream(place, parts, context, wanted_outputs([call], self._signature), rows))
        while live:
            stream = live.popleft()
            if self._send_next(batch, stream):
                live.append(stream)
            else:
                self._end(stream)

    def _end(self, stream: "_Stream") -> None:
        """What the model raises while it clears up is nobody's answer any more, and not the end of the other requests."""
        try:
            stream.parts.close()
        except BaseException:  # noqa: BLE001 - as in `_called`
            LOGGER.exception("The model %s raised while its generator was closed", self._name)

    def _send_next(self, batch: Batch, stream: "_Stream") -> bool:
        """Returns whether there may be another."""
        control = batch.control
        failure: RingServeError | None = None
        if control.cancelled(stream.place):
            return False
        try:
            part = next(stream.parts, None)
            if part is None:
                control.send(stream.place, None, final=True)
                return False
            outputs = checked_outputs(self._by_name(part), stream.wanted, stream.rows)
            parameters = stream.context.response_parameters[0]
            said = _scalars(parameters)
            parameters.clear()  # they are this answer's
        except RingServeError as error:
            failure = error
        except BaseException as error:  # noqa: BLE001 - as in `_called`
            failure = prediction_failure(error, self._name, logged=batch.is_retry)
        if failure is not None:
            control.send(stream.place, failure, final=True)
            return False
        try:
            return control.send(stream.place, outputs, said)
        except RingServeError:  # it cannot be sent: the worker has told the client
            return False


class _Stream(NamedTuple):
    """The answers to one request, as the model makes them."""

    place: int
    parts: Generator[Any, None, None]
    context: PredictContext
    wanted: list[TensorSpec]
    rows: int | None


def _scalars(parameters: Mapping[str, Any]) -> dict[str, Scalar]:
    """A copy. Raises `ContractBroken` for what no parameter can be."""
    for name, value in parameters.items():
        if not isinstance(name, str) or not isinstance(value, (bool, int, float, str)):
            raise ContractBroken(f"Response parameters are bool, int, float or str by name; {name!r} is {value!r}.")
    return dict(parameters)

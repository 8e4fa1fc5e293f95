"""Runs a Python class between arrays.

    class Model:
        def load(self, model: LoadedModel) -> None: ...                     # optional, once
        def predict(self, inputs, outputs) -> None: ...                     # both: {name: array [rows, *shape]}
        def describe(self) -> dict | None: ...                              # optional: what it says of itself

`predict` writes into `outputs` in place, or returns an array (for one output) or a dict of arrays. Where rows are of one fixed size,
the arrays are those of the slab. Where they are not, `outputs` is empty, and what is put into it is the answer. `predict(inputs)` and
`predict(inputs, outputs, context)` are taken too; the context (predict_context.py) knows the requests. The `predict` of a decoupled
model is a generator of dicts (framed_predict.py).
"""

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
import numpy as np

from ringserve.backends.contract import Batch, ContractBroken, LoadedModel
from ringserve.backends.entry_point import classes_of, import_if_there, put_model_on_path, split_handler
from ringserve.backends.failures import prediction_failure
from ringserve.backends.framed_predict import FramedPredict, taken_by
from ringserve.backends.typed_model import (
    check_output,
    declared_signature,
    describe_typed,
    on_usable_device,
    refuse_outputs,
)
from ringserve.protocol.errors import InvalidModel, RingServeError
from ringserve.protocol.tensor import Signature

Predict = Callable[..., Any]


class PythonBackend:
    """The manifest's handler: `module`, which defines one class, or `module:Class`."""

    def __init__(self) -> None:
        self._predict: Predict | None = None
        self._framed: FramedPredict | None = None  # instead of arrays of the slab
        self._with_outputs = True
        self._describe: Callable[[], object] | None = None
        self._name = ""
        self._signature = Signature()

    def load(self, model: LoadedModel) -> Signature:
        """Import the class, make one and let it load. Raises `InvalidModel`, and whatever the model's code raises."""
        self._signature = declared_signature(model, "python")
        self._name = model.name
        put_model_on_path(model.model_dir, model.handler)
        kind = _find_class(model.handler)
        model = on_usable_device(model)  # now that the model has imported what it needs
        instance = kind()
        predict = getattr(instance, "predict", None)
        if not callable(predict):
            raise InvalidModel(f"{type(instance).__name__} in {model.handler} has no method predict(inputs, outputs).")
        if hasattr(instance, "load"):
            instance.load(model)
        self._take(predict)
        said = getattr(instance, "describe", None)
        self._describe = said if callable(said) else partial(describe_typed, "python", model)
        return self._signature

    def execute(self, batch: Batch) -> None:
        """One call of `predict` for all rows. Raises `PredictionFailed` or `OutOfResources`."""
        assert self._predict is not None, "load comes before execute"
        if self._framed is not None:
            self._framed.execute(batch)
            return
        outputs = dict(batch.outputs)
        for array in outputs.values():
            array.fill(0)  # a slab is reused: rows that the model leaves alone must not show an earlier client's answer
        failure: RingServeError | None = None
        try:
            inputs = dict(batch.inputs)
            result = self._predict(inputs, outputs) if self._with_outputs else self._predict(inputs)
        except BaseException as error:  # noqa: BLE001 - sys.exit() in a model must not end the worker either
            failure = prediction_failure(error, self._name, logged=batch.is_retry)
        if failure is not None:
            raise failure
        # `outputs["y"] = array` replaces the slab's array in the dict instead of writing into it: take that as meant.
        self._copy_outputs(outputs if result is None else self._by_name(result), batch.outputs)

    def describe(self) -> object:
        """What the class' own `describe` returns; without one, its inputs and outputs."""
        assert self._describe is not None, "load comes before describe"
        failure: RingServeError
        try:
            return self._describe()
        except BaseException as error:  # noqa: BLE001 - as in execute
            failure = prediction_failure(error, self._name)
        raise failure

    def close(self) -> None:
        """Let go of the model."""
        self._predict = self._framed = self._describe = None

    def _take(self, predict: Predict) -> None:
        self._predict = predict
        takes = taken_by(predict)
        self._with_outputs = takes.outputs
        if takes.context and self._signature.typed:
            # The rows of a slab know nothing of the requests that they came in: those are handed over one by one then.
            self._signature = msgspec.structs.replace(self._signature, ragged=True)
        if self._signature.framed:
            self._framed = FramedPredict(predict, self._signature, self._name)

    def _by_name(self, result: Any) -> Mapping[str, Any]:
        names = [spec.name for spec in self._signature.outputs]
        if isinstance(result, Mapping):
            if not result.keys() >= set(names):
                refuse_outputs(names, f"a dict of {sorted(map(str, result))}")
            return result
        if isinstance(result, np.ndarray) and len(names) == 1:
            return {names[0]: result}
        if inspect.isgenerator(result):
            raise ContractBroken("predict is a generator: a model that is not declared decoupled does not stream.")
        return refuse_outputs(names, f"one {type(result).__name__}")

    def _copy_outputs(self, answers: Mapping[str, Any], targets: Mapping[str, np.ndarray]) -> None:
        for spec in self._signature.outputs:
            target, answer = targets[spec.name], answers.get(spec.name)
            if answer is target:
                continue
            array = np.asarray(answer)
            check_output(spec.name, (spec.dtype, target.shape), (array.dtype.name, array.shape))
            np.copyto(target, array)


def _find_class(handler: str) -> type[Any]:
    name, entry = split_handler(handler)
    module = import_if_there(name)
    if module is None:
        raise InvalidModel(f'The archive holds no module "{name}", which its handler "{handler}" names.')
    if entry:
        found = getattr(module, entry, None)
        if not inspect.isclass(found):
            raise InvalidModel(f'The module "{name}" has no class "{entry}".')
        return found
    classes = classes_of(module)
    if len(classes) != 1:
        names = [kind.__name__ for kind in classes]
        raise InvalidModel(f'The module "{name}" should define one class, found {names}; or say "{name}:Class".')
    return classes[0]

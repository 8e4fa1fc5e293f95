"""Runs Triton's Python models as they are: a `model.py` with a class `TritonPythonModel`.

Each request of a batch is handed over by itself, its arrays being views of the slab. The model answers by the list that `execute`
returns, or by response senders, from any thread. A batch is over when every request of it has had its last response: until then its
memory is the model's, and the next one waits. What was tried out on Triton 2.51 is said in docs/backends.md.
"""

import inspect
import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ringserve.backends.contract import Batch, ContractBroken, LoadedModel, TensorCall, TensorResult
from ringserve.backends.entry_point import import_if_there, put_model_on_path, split_handler
from ringserve.backends.failures import LOGGER, prediction_failure
from ringserve.backends.triton import pb_utils
from ringserve.backends.triton.answering import Answering, Claim, Result, wait_until_over
from ringserve.backends.triton.event_loop import EventLoop
from ringserve.backends.triton.model_config import ModelConfig, signature_of
from ringserve.backends.triton.requests import InferenceRequest
from ringserve.backends.triton.reshaping import reshaped, reshapes_of
from ringserve.backends.triton.responses import InferenceResponse
from ringserve.backends.triton.tensor import Tensor
from ringserve.backends.typed_model import describe_typed, on_usable_device
from ringserve.protocol.datatypes import DATATYPE_OF
from ringserve.protocol.errors import InvalidModel, OutOfResources, RingServeError
from ringserve.protocol.tensor import Signature

CLASS = "TritonPythonModel"


class TritonBackend:
    """`config["triton"]` is the configuration, as Triton prints it; `completed` is what the model made of it, None for nothing."""

    def __init__(self) -> None:
        self.completed: dict[str, Any] | None = None
        self._model: Any = None
        self._event_loop = EventLoop()
        self._name = self._instance = ""
        self._identity: tuple[str, int, Sequence[str]] = ("", 1, ())
        self._signature = Signature()
        self._datatypes: dict[str, str] = {}
        self._reshapes: dict[str, dict[str, Any]] = {"input": {}, "output": {}}
        self._described: dict[str, Any] = {}

    def load(self, model: LoadedModel) -> Signature:
        """Import model.py, let it complete its configuration, make one and let it initialize. Raises `InvalidModel`, and whatever
        the model's code raises."""
        self._name, self._instance = model.name, f"{model.name}_0"
        folder = (model.model_dir / model.handler.partition(":")[0]).resolve().parent
        pb_utils.install(str(folder))
        put_model_on_path(model.model_dir, model.handler)
        kind = _find_class(model)
        model = on_usable_device(model)  # now that the model has imported what it needs
        config = dict(model.config.get("triton") or {})
        if "EXECUTION_ENV_PATH" in (config.get("parameters") or {}):
            LOGGER.warning("The model %s names an EXECUTION_ENV_PATH: it has no effect here", model.name)
        config = self._complete(kind, config, strict=bool(model.config.get("triton_strict")))
        self._take_signature(model, config)
        instance = kind()
        if not callable(getattr(instance, "execute", None)):
            raise InvalidModel(f"{CLASS} in {model.handler} has no method execute(requests).")
        if hasattr(instance, "initialize"):
            instance.initialize(_arguments(model, config, self._instance))
        self._model = instance
        return self._signature

    def execute(self, batch: Batch) -> None:
        """One call of the model's `execute`; without a batch dimension, one for each request. Raises `PredictionFailed` or
        `OutOfResources`."""
        assert self._model is not None, "load comes before execute"
        changed = threading.Condition()
        answerings = [self._answering(batch, row, call, changed) for row, call in enumerate(batch.calls)]
        rows = range(len(answerings))
        for group in [rows] if self._signature.batches else [[row] for row in rows]:
            asked = [answerings[row] for row in group]
            failure = self._ask([batch.calls[row] for row in group], asked, logged=batch.is_retry)
            if failure is None:
                continue
            if self._signature.batches and not self._signature.decoupled:
                raise failure  # the worker finds out which request it is
            for each in asked:
                each.fail(failure)
        if not all(each.closed for each in answerings):
            wait_until_over(answerings, changed)
        for each in answerings:
            each.end()
        if not self._signature.decoupled:
            batch.results = [each.result or self._nothing_said() for each in answerings]

    def describe(self) -> object:
        """Its inputs and outputs: such models have no words for more."""
        return self._described

    def close(self) -> None:
        """Let the model finalize, and let go of it."""
        model, self._model = self._model, None
        if callable(getattr(model, "finalize", None)):
            model.finalize()
        self._event_loop.stop()

    # ---- loading

    def _complete(self, kind: Any, config: dict[str, Any], *, strict: bool) -> dict[str, Any]:
        complete = getattr(kind, "auto_complete_config", None)
        if strict or not callable(complete):
            return config
        before = json.dumps(config, sort_keys=True)
        said = complete(ModelConfig(json.loads(before)))
        if not isinstance(said, ModelConfig):
            raise InvalidModel(
                f"auto_complete_config function in model '{self._name}' must return a valid pb.ModelConfig object."
            )
        completed = said.as_dict()
        if json.dumps(completed, sort_keys=True) != before:
            self.completed = completed
        return completed

    def _take_signature(self, model: LoadedModel, config: Mapping[str, Any]) -> None:
        if self.completed is not None or not model.signature.declared:
            try:
                declared = signature_of(config)
            except ValueError as error:
                raise InvalidModel(f"The configuration of {model.name} is not complete. {error}") from None
            # Inputs that the server adds are in its declaration only: the controls of a sequence.
            known = {spec.name for spec in declared.inputs}
            added = tuple(spec for spec in model.signature.inputs if spec.name not in known)
            self._signature = msgspec.structs.replace(declared, inputs=declared.inputs + added)
        else:
            self._signature = msgspec.structs.replace(model.signature, ragged=True)
        for word in ("inputs", "outputs"):
            if not getattr(self._signature, word):
                raise InvalidModel(f"The configuration of {model.name} declares no {word}, and the model adds none.")
        names = [spec.name for spec in self._signature.outputs]
        version = int(model.version) if model.version.isdecimal() else 1
        self._identity = (model.name, version, names)
        self._datatypes = {spec.name: DATATYPE_OF[spec.dtype] for spec in self._signature.inputs}
        self._reshapes = {word: reshapes_of(config, word) for word in ("input", "output")}
        self._described = describe_typed("triton", replace(model, signature=self._signature))

    # ---- executing

    def _answering(self, batch: Batch, row: int, call: TensorCall, changed: threading.Condition) -> Answering:
        finish = partial(self._finish, call.outputs or self._identity[2])
        return Answering(batch, row, changed, finish, decoupled=self._signature.decoupled)

    def _ask(
        self, calls: Sequence[TensorCall], answerings: Sequence[Answering], *, logged: bool
    ) -> RingServeError | None:
        """Returns what the calls are answered with when the model raises, or returns what it may not."""
        requests = [
            InferenceRequest.of_call(call, Claim(answering), self._tensor, self._identity)
            for call, answering in zip(calls, answerings, strict=True)
        ]
        try:
            responses = self._model.execute(requests)
            if inspect.iscoroutine(responses):
                responses = self._event_loop.run(responses)
        except BaseException as error:  # noqa: BLE001 - sys.exit() in a model must not end the worker either
            return self._failure(error, logged=logged)
        if self._signature.decoupled:
            return None if responses is None else self._broken(DECOUPLED.format(self._instance))
        return self._take(responses, answerings)

    def _take(self, responses: Any, answerings: Sequence[Answering]) -> RingServeError | None:
        if responses is None:  # the senders answer
            responses = [None] * len(answerings)
        if not isinstance(responses, list):
            return self._broken(f"Expected a list in the execute return, found type '{type(responses)}'.")
        if len(responses) != len(answerings):
            counts = f"InferenceRequest(s) size is:{len(answerings)}, and InferenceResponse(s) size is:{len(responses)}"
            return self._broken(
                "Number of InferenceResponse objects do not match the number of InferenceRequest objects. " + counts
            )
        for response in responses:
            if response is not None and not isinstance(response, InferenceResponse):
                place = "an 'InferenceResponse' object in the execute function return list"
                return self._broken(f"Expected {place}, found type '{type(response)}'.")
        for response, answering in zip(responses, answerings, strict=True):
            if response is not None:
                self._give(response, answering)
        return None

    def _give(self, response: InferenceResponse, answering: Answering) -> None:
        failure: RingServeError
        try:
            answering.send(response.result, final=True)
            return
        except Exception as error:  # noqa: BLE001 - a tensor that cannot be copied here, or a second answer
            failure = self._failure(error, logged=False)
        answering.fail(failure)

    def _finish(self, wanted: Sequence[str], answer: Result) -> Result:
        """Of the model's outputs those that the client asks for, in the shape that clients see."""
        if not isinstance(answer, TensorResult):
            return answer
        outputs, shapes = {}, self._reshapes["output"]
        for name in wanted:
            array = answer.outputs.get(name)
            if array is None:
                continue
            if name in shapes:
                before, after = shapes[name]
                array = reshaped(array, after, before, batches=self._signature.batches)
            outputs[name] = _elements(array) if array.dtype.kind in "OS" else array
        return TensorResult(outputs, answer.parameters)

    def _tensor(self, name: str, array: np.ndarray) -> Tensor:
        shapes = self._reshapes["input"]
        if name in shapes:
            array = reshaped(array, *shapes[name], batches=self._signature.batches)
        return Tensor.of_request(name, array, self._datatypes[name])

    def _failure(self, error: BaseException, *, logged: bool) -> RingServeError:
        failure = prediction_failure(error, self._name, logged=logged)
        if isinstance(failure, OutOfResources):
            return failure
        return self._broken(f"{type(error).__name__}: {error}", kind=type(failure))

    def _nothing_said(self) -> RingServeError:
        return self._broken("The model let go of the request without a response.")

    def _broken(self, what: str, kind: Callable[..., RingServeError] = ContractBroken) -> RingServeError:
        return kind(f"Failed to process the request(s) for model '{self._instance}', message: {what}", status=500)


DECOUPLED = "Python model '{}' is using the decoupled mode and the execute function must return None."


def _elements(array: np.ndarray) -> np.ndarray:
    """Elements of BYTES as Triton sends them: bytes as they are, anything else as its text."""
    found = np.empty(array.shape, np.object_)
    flat = [each if isinstance(each, bytes) else str(each).encode() for each in array.ravel().tolist()]
    found.reshape(-1)[:] = flat
    return found


def _find_class(model: LoadedModel) -> Any:
    name, _ = split_handler(model.handler)
    module = import_if_there(name)
    if module is None:
        raise InvalidModel(f"The model {model.name} has no file {model.handler}.")
    kind = getattr(module, CLASS, None)
    if not isinstance(kind, type):
        raise InvalidModel(f"{model.handler} of the model {model.name} has no class {CLASS}.")
    return kind


def _arguments(model: LoadedModel, config: Mapping[str, Any], instance: str) -> dict[str, str]:
    """What `initialize` is given: texts, all of them."""
    return {
        "model_config": json.dumps(config, separators=(",", ":")),
        "model_instance_kind": "CPU" if model.gpu_id is None else "GPU",
        "model_instance_name": instance,
        "model_instance_device_id": str(model.gpu_id or 0),
        "model_repository": str(Path(model.model_dir).resolve()),
        "model_version": model.version,
        "model_name": model.name,
    }

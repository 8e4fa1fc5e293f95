"""Runs TorchServe handlers: the archive's own code, with `ts` importable and TorchServe's data, context and answers."""

import inspect
import logging
import time
from typing import Any

from ringserve.backends import ts_import
from ringserve.backends.contract import Batch, ContractBroken, LoadedModel, Request, check_count
from ringserve.backends.entry_point import Handle, load_handler, put_model_on_path
from ringserve.backends.failures import prediction_failure
from ringserve.backends.inputs import handler_headers, handler_inputs
from ringserve.backends.replies import encode_reply
from ringserve.backends.streaming import drained
from ringserve.backends.ts.context import Context, RequestProcessor
from ringserve.backends.ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ringserve.backends.ts.metrics.metric_type_enum import MetricTypes
from ringserve.backends.ts.utils.util import PredictionException
from ringserve.protocol.errors import PredictionFailed, RingServeError
from ringserve.protocol.tensor import Signature

LOGGER = logging.getLogger("ringserve.model")


class HandlerBackend:
    """One archive's handler. `load` comes first; its process is the model's for good, as imports cannot be undone."""

    def __init__(self) -> None:
        self._context: Context | None = None
        self._handle: Handle | None = None
        self._decode = True

    def load(self, model: LoadedModel) -> Signature:
        """Import the handler and let it load its model. The signature is empty: handlers take and give bytes.

        Raises `InvalidModel` when the manifest's handler leads nowhere, and whatever the handler raises.
        """
        ts_import.install()
        put_model_on_path(model.model_dir, model.handler)
        self._decode = model.decode_input_request
        self._context = make_context(model)
        self._handle = load_handler(model.handler, self._context)
        return Signature()

    def execute(self, batch: Batch) -> None:
        """One call of the handler for all rows. Raises when the answer as a whole is unusable; a row may fail alone."""
        answers, processors = self._answered(batch)
        batch.replies[:] = map(encode_reply, answers, processors)

    def describe(self) -> object:
        """What the handler answers to a batch of one whose header `describe` is "True" and which brings no input: that is
        how TorchServe asks, and handlers made from `BaseHandler` answer with their `describe_handle`."""
        answers, _ = self._answered(Batch(1, requests=[Request("describe", {"describe": "True"}, ())]))
        return answers[0]

    def close(self) -> None:
        """Forget the handler and with it the model."""
        self._context = self._handle = None

    def _answered(self, batch: Batch) -> tuple[list[Any], list[RequestProcessor]]:
        """The handler's answers, one for each row, and what it set beside them."""
        context, handle = self._context, self._handle
        assert context is not None and handle is not None, "load comes before execute"
        requests, decode = batch.requests, self._decode
        processors = [RequestProcessor(handler_headers(request)) for request in requests]
        context.begin_batch([request.request_id for request in requests], processors, batch.control)
        data = [handler_inputs(request, decode) for request in requests]
        began_s = time.perf_counter()
        answers = self._answers(handle, data, context, batch.is_retry)
        if not isinstance(answers, list):
            raise ContractBroken("Invalid model predict output")
        check_count(batch.rows, len(answers))
        context.metrics.add_time("PredictionTime", round((time.perf_counter() - began_s) * 1000, 2))
        return answers, processors

    @staticmethod
    def _answers(handle: Handle, data: list[dict[str, Any]], context: Context, is_retry: bool) -> Any:
        failure: RingServeError
        try:
            answers = handle(data, context)
            return drained(answers, context) if inspect.isgenerator(answers) else answers
        except ContractBroken as error:  # of a part
            failure = ContractBroken(error.message)
        except PredictionException as error:
            LOGGER.debug("The model %s refused a batch: %s", context.model_name, error)
            failure = PredictionFailed(str(error.message), status=_error_status(error.error_code))
        except BaseException as error:  # noqa: BLE001 - sys.exit() in a handler must not end the worker either
            failure = prediction_failure(error, context.model_name, logged=is_retry)
        raise failure


def make_context(model: LoadedModel) -> Context:
    """The context that lives as long as the worker."""
    metrics = MetricsCacheYamlImpl()
    metrics.model_name = model.name
    for kind, name, unit, dimensions in model.metrics:
        metrics.add_metric_to_cache(name, unit, dimensions, MetricTypes(kind))
    return Context(
        model.name,
        str(model.model_dir),
        dict(model.manifest),
        model.batch_size_max,
        model.gpu_id,
        model.server_version,
        limit_max_image_pixels=model.limit_max_image_pixels,
        metrics=metrics,
        model_yaml_config=dict(model.config),
    )


def _error_status(code: object) -> int:
    """The status of a `PredictionException`. TorchServe answers 200 to code 200; an exception is no success here."""
    return code if isinstance(code, int) and 400 <= code <= 999 else 500

"""Runs TorchServe handlers: the archive's own code, with `ts` importable and TorchServe's data, context and answers."""

import inspect
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from ringserve.backends import ts_import
from ringserve.backends.contract import Batch, ContractBroken, LoadedModel, PartOf, Request, check_count
from ringserve.backends.entry_point import Handle, load_handler, put_model_on_path
from ringserve.backends.envelope import find_envelope, wrap
from ringserve.backends.failures import prediction_failure
from ringserve.backends.inputs import handler_headers, handler_inputs
from ringserve.backends.replies import encode_reply
from ringserve.backends.streaming import drained
from ringserve.backends.ts.context import Context, RequestProcessor
from ringserve.backends.ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ringserve.backends.ts.metrics.metric_type_enum import MetricTypes
from ringserve.backends.ts.torch_handler.request_envelope.rows import RowsApart, RowsRefused
from ringserve.backends.ts.utils.util import PredictionException
from ringserve.protocol.errors import PredictionFailed, RingServeError
from ringserve.protocol.tensor import Signature

LOGGER = logging.getLogger("ringserve.model")
EXPLAIN = "explain"
_NO_REPLY = PredictionFailed("Prediction failed")  # in the place of replies that are to come


class _NotTogether(PredictionFailed):
    """The envelope has found rows that fail, or that the handler is to be called for `alone`; it has not been called yet."""

    def __init__(self, failures: Mapping[int, RingServeError], alone: Sequence[int] = ()) -> None:
        super().__init__("Prediction failed")
        self.failures = failures
        self.alone = alone


class HandlerBackend:
    """One archive's handler. `load` comes first; its process is the model's for good, as imports cannot be undone."""

    def __init__(self) -> None:
        self._context: Context | None = None
        self._handle: Handle | None = None
        self._enveloped: Handle | None = None
        self._decode = True

    def load(self, model: LoadedModel) -> Signature:
        """Import the handler and let it load its model. The signature is empty: handlers take and give bytes.

        Raises `InvalidModel` when the manifest's handler or the envelope leads nowhere, and whatever the handler raises.
        """
        ts_import.install()
        put_model_on_path(model.model_dir, model.handler)
        self._decode = model.decode_input_request
        envelope = find_envelope(model.envelope) if model.envelope else None
        self._context = make_context(model)
        self._handle = load_handler(model.handler, self._context)
        self._enveloped = self._handle if envelope is None else wrap(self._handle, envelope)
        return Signature()

    def execute(self, batch: Batch) -> None:
        """One call of the handler for all rows, or one for the rows to explain and one for the others: handlers made from
        `BaseHandler` do to all rows what the first one's header says. Raises when the answer as a whole is unusable; a row may
        fail alone."""
        to_explain = [row for row, request in enumerate(batch.requests) if request.headers.get(EXPLAIN) == "True"]
        if not to_explain or len(to_explain) == batch.rows:
            self._execute(batch)
            return
        batch.replies[:] = [_NO_REPLY] * batch.rows
        self._execute_part(batch, to_explain)
        self._execute_part(batch, sorted(set(range(batch.rows)).difference(to_explain)))

    def describe(self) -> object:
        """What the handler answers to a batch of one whose header `describe` is "True" and which brings no input: that is
        how TorchServe asks, and handlers made from `BaseHandler` answer with their `describe_handle`. Envelopes, which would
        look for an input, are left out."""
        answers, _ = self._answered(Batch(1, requests=[Request("describe", {"describe": "True"}, ())]), self._handle)
        return answers[0]

    def close(self) -> None:
        """Forget the handler and with it the model."""
        self._context = self._handle = self._enveloped = None

    def _execute(self, batch: Batch) -> None:
        try:
            answers, processors = self._answered(batch, self._enveloped)
        except _NotTogether as found:
            failures, alone = found.failures, found.alone
        else:
            batch.replies[:] = map(encode_reply, answers, processors)
            return
        batch.replies[:] = [failures.get(row, _NO_REPLY) for row in range(batch.rows)]
        rest = [row for row in range(batch.rows) if row not in failures and row not in alone]
        for group in (*([row] for row in alone), rest):
            if group:
                self._execute_part(batch, group)

    def _execute_part(self, batch: Batch, rows: Sequence[int]) -> None:
        """Execute some rows and put their replies where they belong."""
        control = PartOf(batch.control, rows, batch.rows)
        part = Batch(
            len(rows), requests=[batch.requests[row] for row in rows], control=control, is_retry=batch.is_retry
        )
        self._execute(part)
        for row, reply in zip(rows, part.replies, strict=True):
            batch.replies[row] = reply

    def _answered(self, batch: Batch, handle: Handle | None) -> tuple[list[Any], list[RequestProcessor]]:
        """The handler's answers, one for each row, and what it set beside them."""
        context = self._context
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
        except RowsApart as error:
            failure = _NotTogether({}, error.rows)
        except RowsRefused as error:
            failure = _NotTogether({row: _refusal(each) for row, each in error.rows.items()})
        except PredictionException as error:
            LOGGER.debug("The model %s refused a batch: %s", context.model_name, error)
            failure = _refusal(error)
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


def _refusal(error: PredictionException) -> PredictionFailed:
    return PredictionFailed(str(error.message), status=_error_status(error.error_code))


def _error_status(code: object) -> int:
    """The status of a `PredictionException`. TorchServe answers 200 to code 200; an exception is no success here."""
    return code if isinstance(code, int) and 400 <= code <= 999 else 500

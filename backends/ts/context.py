"""What a handler knows about its model and about the batch it is answering: TorchServe's `Context`.

One context lives as long as its worker, and handlers keep attributes of their own on it. The batch's part (request ids,
request headers, response status and headers by row) is renewed by `begin_batch`.
"""

import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ringserve.backends.contract import BatchControl

STATUS_OK = 200
CONTENT_TYPE = "content-type"


class RequestHeaders(dict[str, Any]):
    """The headers of one request. Keys are lower case and are found in any case, as HTTP says they compare.

    Beside the headers there is an entry `{"content-type": ...}` for each named input, found under the input's name.
    """

    def __missing__(self, key: str) -> Any:
        lower = key.lower()
        if lower == key:
            raise KeyError(key)
        return self[lower]

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (isinstance(key, str) and super().__contains__(key.lower()))

    def get(self, key: str, default: Any = None) -> Any:
        """The header's value, or `default`."""
        try:
            return self[key]
        except KeyError:
            return default


class RequestProcessor:
    """One row: what came with the request, and what the handler wants said in the response."""

    __slots__ = ("_phrase", "_request", "_response_headers", "_status", "untouched")

    def __init__(self, request_header: Mapping[str, Any]) -> None:
        self._request = request_header
        self._status: int = STATUS_OK
        self._phrase: str | None = None
        self._response_headers: dict[str, Any] | None = None
        self.untouched = True  # False once the handler has set anything

    def get_request_property(self, key: str) -> Any:
        """A request header, None when there is none."""
        return self._request.get(key)

    def get_request_properties(self) -> Mapping[str, Any]:
        """All request headers."""
        return self._request

    def report_status(self, code: int, reason_phrase: str | None = None) -> None:
        """Set the response's status."""
        self._status, self._phrase, self.untouched = code, reason_phrase, False

    def get_response_status_code(self) -> int:
        """The response's status, 200 unless set."""
        return self._status

    def get_response_status_phrase(self) -> str | None:
        """The response's reason phrase, None unless set."""
        return self._phrase

    def add_response_property(self, key: str, value: Any) -> None:
        """Set a response header."""
        if self._response_headers is None:
            self._response_headers = {}
        self._response_headers[key] = value
        self.untouched = False

    def get_response_headers(self) -> dict[str, Any]:
        """The response headers set so far; what is put into this dict is set as well."""
        if self._response_headers is None:
            self._response_headers = {}
        self.untouched = False
        return self._response_headers

    def get_response_header(self, key: str) -> Any:
        """One response header, None unless set."""
        return None if self._response_headers is None else self._response_headers.get(key)


class Cancelled:
    """Which clients of a batch are gone, asked at that moment: `if context.cancelled:` is true when all of them are,
    `context.cancelled[idx]` tells of one row."""

    def __init__(self, control: BatchControl, rows: int) -> None:
        self._control = control
        self._rows = rows

    def __bool__(self) -> bool:
        return all(self._control.cancelled(row) for row in range(self._rows))

    def __getitem__(self, idx: int) -> bool:
        if not 0 <= idx < self._rows:
            raise IndexError(f"row {idx} of a batch of {self._rows}")
        return self._control.cancelled(idx)

    def __len__(self) -> int:
        return self._rows


class NoSocket:
    """What `context.cl_socket` is, where TorchServe's has the connection to its front end."""

    def sendall(self, message: Any) -> None:
        """Raises RuntimeError, which says what to call instead."""
        raise RuntimeError(
            "A worker of this server has no socket to its front end: send parts of answers with"
            " ts.handler_utils.utils.send_intermediate_predict_response."
        )


class Context:
    """Model facts, batch state and metrics. The arguments are TorchServe's, so handlers' own tests can build one."""

    def __init__(
        self,
        model_name: str,
        model_dir: str,
        manifest: dict[str, Any] | None,
        batch_size: int,
        gpu: int | None,
        mms_version: str,
        limit_max_image_pixels: bool = True,
        metrics: Any = None,
        model_yaml_config: dict[str, Any] | None = None,
    ) -> None:
        self.model_name = model_name
        self.manifest = manifest
        self.model_yaml_config = model_yaml_config or {}
        self.system_properties: dict[str, Any] = {
            "model_dir": model_dir,
            "gpu_id": gpu,
            "batch_size": batch_size,
            "server_name": "MMS",
            "server_version": mms_version,
            "limit_max_image_pixels": limit_max_image_pixels,
        }
        self.metrics = metrics
        self.request_ids: dict[int, str] = {}
        # Outside a batch there is one row that knows nothing, so that `initialize` may use every method.
        self.request_processor: Sequence[RequestProcessor] = [RequestProcessor({})]
        self.control = BatchControl()
        self.cl_socket: Any = NoSocket()
        self.stopping_criteria: Any = None
        self.header_key_sequence_id = os.environ.get("TS_REQUEST_SEQUENCE_ID", "ts_request_sequence_id")
        self.header_key_sequence_start = os.environ.get("TS_REQUEST_SEQUENCE_START", "ts_request_sequence_start")
        self.header_key_sequence_end = os.environ.get("TS_REQUEST_SEQUENCE_END", "ts_request_sequence_end")

    def begin_batch(
        self, request_ids: Sequence[str], processors: Sequence[RequestProcessor], control: BatchControl | None = None
    ) -> None:
        """Replace everything that belongs to a batch. Row `i` has request id `i` and processor `i`."""
        assert len(request_ids) == len(processors)
        self.control = BatchControl() if control is None else control
        self.request_ids = dict(enumerate(request_ids))
        self.request_processor = processors
        if self.metrics is not None:
            self.metrics.request_ids = self.request_ids

    def __deepcopy__(self, memo: dict[int, Any]) -> "Context":
        """A context of its own for a handler that goes on with a request later. Both lead to the same clients."""
        clone = copy.copy(self)
        memo[id(self)] = clone
        shared = {"control", "metrics"}
        for name, value in self.__dict__.items():
            if name not in shared:
                clone.__dict__[name] = copy.deepcopy(value, memo)
        clone.metrics = copy.copy(self.metrics)
        return clone

    @property
    def cancelled(self) -> Cancelled:
        """Whether anybody still waits for the answers: true once every client of the batch is gone. Long computations ask
        now and then and stop."""
        return Cancelled(self.control, len(self.request_processor))

    def get_request_id(self, idx: int = 0) -> str | None:
        """The id of row `idx`."""
        return self.request_ids.get(idx)

    def get_request_header(self, idx: int, key: str) -> Any:
        """A header of row `idx` by name in any case, None when the request has none."""
        return self.request_processor[idx].get_request_property(key)

    def get_all_request_header(self, idx: int) -> Mapping[str, Any]:
        """All headers of row `idx`."""
        return self.request_processor[idx].get_request_properties()

    def set_response_content_type(self, idx: int, value: str) -> None:
        """The content type of row `idx`'s response."""
        self.set_response_header(idx, CONTENT_TYPE, value)

    def get_response_content_type(self, idx: int) -> Any:
        """What `set_response_content_type` was given, None before."""
        return self.request_processor[idx].get_response_header(CONTENT_TYPE)

    def set_response_header(self, idx: int, key: str, value: Any) -> None:
        """A header of row `idx`'s response."""
        self.request_processor[idx].add_response_property(key, value)

    def get_response_headers(self, idx: int) -> dict[str, Any]:
        """The response headers set on row `idx` so far."""
        return self.request_processor[idx].get_response_headers()

    def set_response_status(self, code: int = STATUS_OK, phrase: str = "", idx: int = 0) -> None:
        """The status of row `idx`'s response."""
        self.request_processor[idx].report_status(code, phrase)

    def set_all_response_status(self, code: int = STATUS_OK, phrase: str = "") -> None:
        """The status of every row's response."""
        for processor in self.request_processor:
            processor.report_status(code, phrase)

    def get_response_status(self, idx: int) -> tuple[int, str | None]:
        """Status and phrase of row `idx`'s response."""
        processor = self.request_processor[idx]
        return processor.get_response_status_code(), processor.get_response_status_phrase()

    def get_sequence_id(self, idx: int) -> Any:
        """The sequence that row `idx` belongs to, None for a request without one."""
        return self.get_request_header(idx, self.header_key_sequence_id)

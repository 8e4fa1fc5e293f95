"""The envelope `kserve`: the first version of KServe's protocol, `{"instances": [...]}` to `{"predictions": [...]}` or
`{"explanations": [...]}`."""

from typing import Any

from ringserve.backends.ts.torch_handler.request_envelope.rows import CountedEnvelope, instances_of, value_of


class KServeEnvelope(CountedEnvelope):
    """The handler is given the instances of all requests in one list; TorchServe's those of the first. Where they are no list, it
    is given them as they are, in a call of their own."""

    def format_output(self, data: Any) -> list[dict[str, Any]]:
        """One object for each request."""
        return [
            {"explanations" if self._is_explain(row) else "predictions": answers}
            for row, answers in enumerate(self._split(data))
        ]

    def _inputs_of(self, row: int, data: dict[str, Any]) -> Any:
        return instances_of(value_of(data), "kserve")

    def _is_explain(self, row: int = 0) -> bool:
        return self.context is not None and self.context.get_request_header(row, "explain") == "True"

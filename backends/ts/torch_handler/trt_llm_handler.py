"""The default handler `trt_llm_handler`."""

from typing import Any, NoReturn

from ringserve.backends.ts.torch_handler.base_handler import BaseHandler


class TRTLLMHandler(BaseHandler):
    """Language models on TensorRT-LLM, which take new requests while they answer others (asyncCommunication). This version gives a
    handler one batch after the other: `initialize` says so."""

    def initialize(self, ctx: Any) -> NoReturn:
        """Raises RuntimeError."""
        raise RuntimeError(
            "TRTLLMHandler runs TensorRT-LLM and needs asyncCommunication, which this version does not serve: write a handler that calls"
            " TensorRT-LLM for one batch at a time."
        )

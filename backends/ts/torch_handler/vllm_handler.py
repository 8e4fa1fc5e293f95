"""The default handler `vllm_handler`."""

from typing import Any, NoReturn

from ringserve.backends.ts.torch_handler.base_handler import BaseHandler


class VLLMHandler(BaseHandler):
    """Language models on vLLM, which take new requests while they answer others (asyncCommunication). This version gives a
    handler one batch after the other: `initialize` says so."""

    def initialize(self, ctx: Any) -> NoReturn:
        """Raises RuntimeError."""
        raise RuntimeError(
            "VLLMHandler runs vLLM and needs asyncCommunication, which this version does not serve: write a handler that calls"
            " vLLM for one batch at a time."
        )

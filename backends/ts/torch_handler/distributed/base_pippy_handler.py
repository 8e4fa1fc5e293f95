"""`BasePippyHandler`, from which handlers for PiPPy are made."""

from abc import ABC
from typing import Any

from ringserve.backends.ts.handler_utils.distributed.pt_pippy import initialize_rpc_workers
from ringserve.backends.ts.torch_handler.base_handler import BaseHandler


class BasePippyHandler(BaseHandler, ABC):
    """Models that are divided over several processes, which is not served by this version: `initialize` says so."""

    def initialize(self, ctx: Any) -> None:
        """Raises RuntimeError."""
        initialize_rpc_workers(0, 1, ctx)

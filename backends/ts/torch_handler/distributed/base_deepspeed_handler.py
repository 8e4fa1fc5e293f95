"""`BaseDeepSpeedHandler`, from which handlers for DeepSpeed are made."""

import os
from abc import ABC
from typing import Any

from ringserve.backends.ts.torch_handler.base_handler import BaseHandler


class BaseDeepSpeedHandler(BaseHandler, ABC):
    """Leaves the loading to its subclass, which asks `get_ds_engine` for its model. `device` is the number of this process among
    those of the model: 0, as there is one."""

    def initialize(self, ctx: Any) -> None:
        """Choose the device."""
        self.device: Any = int(os.environ.get("LOCAL_RANK", "0"))

"""Helpers that handlers import."""

import os
from importlib import import_module
from typing import Any

from ringserve.backends.streaming import send_parts


def import_class(class_name: str, module_prefix: str | None = None) -> type:
    """The class at `package.module.Class`, below the package `module_prefix` if given.

    Raises ImportError for an unknown module and AttributeError for an unknown class.
    """
    module, _, name = class_name.rpartition(".")
    full_name = ".".join(part for part in (module_prefix, module) if part)
    found: type = getattr(import_module(full_name), name)
    return found


def send_intermediate_predict_response(ret: Any, req_id_map: Any, message: str, code: int, context: Any) -> bool:
    """Send the next part of every row's answer; what the handler returns at its end are the last parts.

    `ret` has one element for each row, in which None is no part. The status and headers that are set on the context before a
    row's first part are those of its answer. Returns False, where TorchServe's returned nothing, once every client is gone:
    nothing is raised then, because no handler expects it, and the parts go nowhere. Of a model that runs on several ranks
    the first one speaks. `req_id_map`, `message` and `code` are TorchServe's and mean nothing here: the context knows the
    rows, their ids and their status.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return True
    return send_parts(ret, context)

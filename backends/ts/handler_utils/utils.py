"""Helpers that handlers import."""

import os
from importlib import import_module
from typing import Any

from ringserve.backends.streaming import send_failure, send_parts

ERROR_MIN = 400


def import_class(class_name: str, module_prefix: str | None = None) -> type:
    """The class at `package.module.Class`, below the package `module_prefix` if given. Raises ImportError when there is none."""
    module, _, name = (class_name or "").rpartition(".")
    full_name = ".".join(part for part in (module_prefix, module) if part)
    if not name or not full_name:
        raise ImportError(f"import_class expects the name of a class with its module, got {class_name!r}")
    found: type | None = getattr(import_module(full_name), name, None)
    if found is None:
        raise ImportError(f"The module {full_name} has no class {name}.")
    return found


def send_intermediate_predict_response(ret: Any, req_id_map: Any, message: str, code: int, context: Any = None) -> bool:
    """Send the next part of every row's answer; what the handler returns at its end are the last parts.

    `ret` has one element for each row, in which None is no part. The status and headers that are set on the context before a
    row's first part are those of its answer. Returns False, where TorchServe's returned nothing, once every client is gone:
    nothing is raised then, because no handler expects it, and the parts go nowhere. Of a model that runs on several ranks
    the first one speaks. A `code` that is an error's ends every row's answer with it and with `message`; otherwise they mean
    nothing, nor does `req_id_map`: the context knows the rows, their ids and their status.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0":
        return True
    if code >= ERROR_MIN:
        return send_failure(message, code, context)
    return send_parts(ret, context)

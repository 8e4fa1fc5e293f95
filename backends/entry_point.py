"""From the manifest's handler string to something to call.

TorchServe's rule (`ts/model_loader.py`): the string is `path/to/name.py[:function]`; the last path component, without
`.py`, is imported as a top-level module from the model's folder. If there is no such module, it is the name of a default
handler in `ts.torch_handler`. Unlike TorchServe, only the absence of *that* module leads to the default handlers: a
package that the handler itself fails to import is reported as what it is.
"""

import inspect
import os
import pkgutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ringserve.backends.standard_library import keep_standard_library
from ringserve.protocol.errors import InvalidModel

DEFAULT_HANDLERS = "ts.torch_handler"

Handle = Callable[[list[dict[str, Any]], Any], Any]


def put_model_on_path(model_dir: Path, handler: str) -> None:
    """Let this process, and the processes that the model starts, import the archive's files before anything else but what
    TorchServe's worker has loaded by then."""
    keep_standard_library()
    folders = [model_dir.resolve()]
    if "/" in handler:
        folders.insert(0, (model_dir / Path(handler.partition(":")[0]).parent).resolve())
    names = [str(folder) for folder in folders]
    sys.path[:] = names + [entry for entry in sys.path if entry not in names]
    inherited = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*names, *([inherited] if inherited else [])])


def split_handler(handler: str) -> tuple[str, str]:
    """`pkg/name.py:entry` -> ("name", "entry"); the entry is "" when the string names none."""
    path, _, entry = handler.partition(":")
    name = path.rpartition("/")[2].removesuffix(".py")
    if not name:
        raise InvalidModel(f'The manifest\'s handler "{handler}" names no module.')
    return name, entry


def import_if_there(name: str) -> ModuleType | None:
    """The module `name`, or None when there is none. Whatever the module raises while it is imported comes through."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        return None


def classes_of(module: ModuleType) -> list[type]:
    """The classes that `module` itself defines; imported ones do not count."""
    return [kind for _, kind in inspect.getmembers(module, inspect.isclass) if kind.__module__ == module.__name__]


def load_handler(handler: str, context: Any) -> Handle:
    """Import the handler, let it load its model with `context`, and return what to call with each batch.

    Raises `InvalidModel` when the string leads to nothing callable, and whatever the handler raises.
    """
    name, entry = split_handler(handler)
    module = import_if_there(name) or _default_handler(name)
    found = getattr(module, entry or "handle", None)
    if found is None:
        found = _only_class(module, entry)
    if inspect.isclass(found):
        return _start_instance(found, context)
    if not callable(found):
        raise InvalidModel(f'"{entry or "handle"}" in the handler "{handler}" is not a function.')
    loading = found(None, context)
    if inspect.isgenerator(loading):  # it runs when it is asked for its first part
        next(loading, None)
        loading.close()
    function: Handle = found
    return function


def _start_instance(kind: type, context: Any) -> Handle:
    instance: Any = kind()
    if not callable(getattr(instance, "handle", None)):
        raise InvalidModel(f"The handler class {kind.__name__} has no method handle(data, context).")
    if hasattr(instance, "initialize"):
        instance.initialize(context)
    # `handle` is looked up for each batch: handlers replace it, in `initialize` or later.
    return lambda data, context: instance.handle(data, context)


def _only_class(module: ModuleType, entry: str) -> type:
    classes = classes_of(module)
    if len(classes) != 1:
        names = [kind.__name__ for kind in classes]
        wanted = f'a function "{entry or "handle"}"'
        raise InvalidModel(f"Expected only one class in custom service code or {wanted}, found the classes {names}.")
    return classes[0]


def _default_handler(name: str) -> ModuleType:
    module = import_if_there(f"{DEFAULT_HANDLERS}.{name}")
    if module is None:
        package = import_module(DEFAULT_HANDLERS)
        modules = pkgutil.iter_modules(package.__path__)
        known = ", ".join(sorted(found.name for found in modules if not found.ispkg))
        raise InvalidModel(f'The handler "{name}" is no module of the archive and no default handler ({known}).')
    return module

"""Makes this project's handler package importable as `ts`, the name every TorchServe archive was written against.

One file is one module object, whichever name it was imported by: `ts.context` *is* `ringserve.backends.ts.context`, so
an exception class raised by a handler is the class that the backend catches. Installed by the handler backend, hence
only inside workers; in every other process `ts` does not exist.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

ALIAS = "ts"
REAL = "ringserve.backends.ts"


class _AliasLoader(Loader):
    """Hands out a module that already exists under its real name."""

    def __init__(self, real_name: str) -> None:
        self._real_name = real_name
        self._real_spec: ModuleSpec | None = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = import_module(self._real_name)
        self._real_spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        # The import system has just written the alias into the module; it stays what its file says it is.
        module.__spec__ = self._real_spec


class TsFinder(MetaPathFinder):
    """Answers for `ts` and everything below it, before any installed package of that name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != ALIAS and not fullname.startswith(ALIAS + "."):
            return None
        real_name = REAL + fullname[len(ALIAS) :]
        real = find_spec(real_name)
        if real is None:
            return None
        package = real.submodule_search_locations is not None
        return ModuleSpec(fullname, _AliasLoader(real_name), origin=real.origin, is_package=package)


def install() -> None:
    """Make `import ts` work in this process. Calling it again changes nothing."""
    if not any(isinstance(finder, TsFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, TsFinder())

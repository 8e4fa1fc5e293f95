"""Some names mean the standard library, whatever an archive brings.

TorchServe's worker has loaded torch, and with it much of the standard library, before it looks into an archive. So an archive's
`queue.py` or `types.py` does no harm there: the name is taken. Here torch is loaded when a handler asks for it, and would find
the archive's file. Names that TorchServe leaves free, such as `profile` or `statistics`, are the archive's here as well.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

# What lies in files, of the modules that `ts.model_service_worker` of TorchServe 0.12 has loaded on Python 3.11 with torch 2.13.
_NAMES = """
    abc argparse ast asyncio base64 bisect bz2 calendar codecs collections concurrent contextlib contextvars copy copyreg csv
    ctypes dataclasses datetime difflib dis email encodings enum fnmatch functools genericpath gettext glob gzip hashlib heapq http
    importlib inspect io ipaddress json keyword linecache locale logging lzma mmap multiprocessing ntpath numbers opcode operator
    os pathlib pickle pickletools pkgutil platform posixpath pprint queue quopri random re reprlib resource runpy selectors shutil
    signal site socket ssl stat string struct subprocess tarfile tempfile textwrap threading timeit token tokenize traceback types
    typing unittest urllib uuid warnings weakref zipfile zipimport
"""
TAKEN = frozenset(_NAMES.split())


class StandardLibraryFinder(MetaPathFinder):
    """Finds those of them that are not loaded yet, on the path as it is without an archive."""

    def __init__(self, path: Sequence[str]) -> None:
        self._path = list(path)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return PathFinder.find_spec(fullname, self._path) if fullname in TAKEN else None


def keep_standard_library() -> None:
    """From now on these names mean what they mean on the present path. Calling it again changes nothing."""
    if not any(isinstance(finder, StandardLibraryFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, StandardLibraryFinder(sys.path))

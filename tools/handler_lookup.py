"""Where a manifest's handler leads, found by reading its source: nothing of the model is imported or run.

The rules are those of backends/entry_point.py: the last component of the path is a module of the archive, or else the name of a
default handler; in it a function of the given name (`handle` without one), or else the only class.
"""

import ast
import contextlib
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import PurePosixPath

from ringserve.backends.entry_point import DEFAULT_HANDLERS, split_handler
from ringserve.backends.ts_import import ALIAS, REAL
from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.contents import Contents

SOURCE_BYTES_MAX = 4 << 20
DEFAULT_ENTRY = "handle"


@dataclass(frozen=True, slots=True)
class Lookup:
    """`file` is in the model, None for a default handler. `kind` is "function", "class", "default handler", or "unknown" where only
    running the module would tell; with a `problem` it leads nowhere."""

    handler: str
    kind: str = "unknown"
    file: str | None = None
    entry: str | None = None
    line: int | None = None
    problem: str | None = None

    def __str__(self) -> str:
        if self.problem is not None:
            return f"{self.handler}: {self.problem}"
        if self.kind == "default handler":
            return f"{self.handler}: the default handler {self.entry}"
        if self.kind == "unknown":
            where = f"the installed module {self.entry}" if self.file is None else self.file
            return f"{self.handler}: {where}, where only running it tells what is called"
        return f"{self.handler}: the {self.kind} {self.entry}, {self.file} line {self.line}"


def look_up(handler: str, contents: Contents, *, takes_default: bool = True) -> Lookup:
    """`takes_default`: whether the backend knows default handlers, and functions."""
    try:
        name, entry = split_handler(handler)
    except InvalidModel as error:
        return Lookup(handler, problem=error.message)
    file = _module_file(handler, name, contents)
    if file is None:
        if takes_default and _is_default(name):
            return Lookup(handler, "default handler", entry=f"{DEFAULT_HANDLERS}.{name}")
        if _is_installed(name):
            return Lookup(handler, entry=name)
        also = ", and no default handler has this name" if takes_default else ""
        return Lookup(handler, problem=f"the archive holds no module {name}{also}")
    try:
        source = contents.read(file, SOURCE_BYTES_MAX + 1)
        if len(source) > SOURCE_BYTES_MAX:
            return Lookup(handler, "unknown", file)
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source, file)
    except SyntaxError as error:
        where = f"{file}, line {error.lineno}" if error.lineno else file
        return Lookup(handler, file=file, problem=f"{where}: {error.msg}")
    except (OSError, InvalidModel, ValueError, RecursionError, MemoryError) as error:
        got = str(error) or type(error).__name__
        return Lookup(handler, file=file, problem=f"{file} cannot be read as Python: {got}")
    return _entry_of(handler, file, tree, entry, functions=takes_default)


def _module_file(handler: str, name: str, contents: Contents) -> str | None:
    """In the handler's folder, which comes first on the worker's path, or at the root."""
    folder = PurePosixPath(handler.partition(":")[0]).parent
    for place in dict.fromkeys((folder, PurePosixPath())):
        path = place / name.replace(".", "/")
        for candidate in (path / "__init__.py", path.with_name(f"{path.name}.py")):
            if contents.has_file(str(candidate)):
                return str(candidate)
    return None


def _is_default(name: str) -> bool:
    assert DEFAULT_HANDLERS.startswith(ALIAS)
    if not name.isidentifier() or name.startswith("_"):
        return False
    spec = find_spec(f"{REAL}{DEFAULT_HANDLERS.removeprefix(ALIAS)}.{name}")
    return spec is not None and spec.submodule_search_locations is None


def _is_installed(name: str) -> bool:
    """In this Python. Only the first component is looked for: more would run its package."""
    top = name.partition(".")[0]
    with contextlib.suppress(ValueError):  # __main__ has none
        return top.isidentifier() and find_spec(top) is not None
    return False


def _entry_of(handler: str, file: str, tree: ast.Module, entry: str, *, functions: bool) -> Lookup:
    wanted = entry or DEFAULT_ENTRY
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    if functions or entry:
        for node in tree.body:
            if wanted in _bound(node):
                kind = "class" if isinstance(node, ast.ClassDef) else "function"
                return Lookup(handler, kind, file, wanted, node.lineno)
    if len(classes) == 1 and not (entry and not functions):
        (node,) = classes.values()
        return Lookup(handler, "class", file, node.name, node.lineno)
    if any(_may_bind_anything(node) for node in tree.body):
        return Lookup(handler, "unknown", file)
    if entry and not functions:
        return Lookup(handler, file=file, problem=f"{file} defines no class {entry}")
    found = ", ".join(classes) or "none"
    what = f"a function {wanted}, or one class" if functions else "one class"
    return Lookup(handler, file=file, problem=f"expected {what} in {file}, found the classes: {found}")


def _bound(node: ast.stmt) -> set[str]:
    """The names that a statement at the top of a module gives something to."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            return {name}
        case ast.Assign(targets=targets):
            names = [name for target in targets for name in ast.walk(target)]
            return {each.id for each in names if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store)}
        case ast.AnnAssign(target=ast.Name(id=name)):
            return {name}
        case ast.Import(names=names) | ast.ImportFrom(names=names):
            return {each.asname or each.name.partition(".")[0] for each in names}
    return set()


def _may_bind_anything(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return any(each.name == "*" for each in node.names)
    return isinstance(node, ast.If | ast.Try | ast.TryStar | ast.With | ast.For | ast.While | ast.Match)

"""Imports what it is told to, `module:name`, and answers with the parameters of each, or with what went wrong."""

import inspect
from importlib import import_module
from typing import Any


def handle(data: list[dict[str, Any]] | None, context: Any) -> list[dict[str, str | None]] | None:
    if data is None:
        return None
    return [{path: _described(path) for path in row["body"]} for row in data]


def _described(path: str) -> str | None:
    module, _, name = path.partition(":")
    kind, _, method = name.partition(".")
    try:
        found = getattr(import_module(module), kind)
        if not method:
            return _parameters(found) if inspect.isfunction(found) else None
        member = getattr(found, method, property())
        return _parameters(member) if callable(member) else "property"
    except (ImportError, AttributeError, RuntimeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"


def _parameters(function: Any) -> str:
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    words = []
    for each in inspect.signature(function).parameters.values():
        star = next((star for kind, star in stars.items() if each.kind is kind), "")
        if each.name != "self":
            words.append(star + each.name + ("=" if each.default is not each.empty else ""))
    return " ".join(words)

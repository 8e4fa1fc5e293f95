"""Helpers that handlers import."""

from importlib import import_module


def import_class(class_name: str, module_prefix: str | None = None) -> type:
    """The class at `package.module.Class`, below the package `module_prefix` if given.

    Raises ImportError for an unknown module and AttributeError for an unknown class.
    """
    module, _, name = class_name.rpartition(".")
    full_name = ".".join(part for part in (module_prefix, module) if part)
    found: type = getattr(import_module(full_name), name)
    return found

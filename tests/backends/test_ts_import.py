"""The name `ts`."""

import sys
from importlib import import_module

import pytest

from ringserve.backends import ts_import


def test_both_names_give_one_module() -> None:
    """Classes compare equal whichever name a handler used, also for names imported in the other order."""
    ts_import.install()
    for name in ("torch_handler.base_handler", "context", "metrics.dimension", "utils.util"):
        assert import_module(f"ts.{name}") is import_module(f"ringserve.backends.ts.{name}")
    assert import_module("ts") is import_module("ringserve.backends.ts")


def test_a_module_keeps_its_own_name() -> None:
    """Reloading, pickling and tracebacks rely on it."""
    ts_import.install()
    module = import_module("ts.context")
    assert module.__name__ == "ringserve.backends.ts.context"
    assert module.__spec__ is not None
    assert module.__spec__.name == module.__name__


def test_import_statements_reach_submodules_as_attributes() -> None:
    """`import ts.x.y` binds `ts` and walks its attributes."""
    ts_import.install()
    import ts.metrics.dimension

    assert str(ts.metrics.dimension.Dimension("a", 1)) == "a:1"


def test_an_unknown_submodule_is_reported_by_the_name_that_was_asked() -> None:
    """The message shows what the handler wrote."""
    ts_import.install()
    with pytest.raises(ModuleNotFoundError) as caught:
        import_module("ts.torch_handler.no_such_handler")
    assert caught.value.name == "ts.torch_handler.no_such_handler"


def test_installing_twice_adds_one_finder() -> None:
    """A worker may load again."""
    ts_import.install()
    ts_import.install()
    assert sum(isinstance(finder, ts_import.TsFinder) for finder in sys.meta_path) == 1

"""From the manifest's handler string to a loaded handler."""

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from ringserve.backends.contract import LoadedModel, Request
from ringserve.backends.handler_backend import HandlerBackend
from ringserve.protocol.errors import InvalidModel

CLASS = """
class Mine:
    def initialize(self, context):
        self.name = context.model_name
    def handle(self, data, context):
        return [self.name] * len(data)
"""


@pytest.fixture
def first_answer(
    load_handler_backend: Callable[..., HandlerBackend],
    request_of: Callable[..., Request],
    ask: Callable[..., list[Any]],
) -> Callable[..., bytes]:
    """Load a handler from its source and return what it answers to one request."""

    def answer(source: str, handler: str = "handler.py") -> bytes:
        return bytes(ask(load_handler_backend(source, handler), [request_of({})])[0].body)

    return answer


@pytest.mark.parametrize("handler", ["handler", "handler.py", "some/where/handler.py"])
def test_the_last_path_component_names_the_module(first_answer: Callable[..., bytes], handler: str) -> None:
    """The archiver keeps whatever path the user typed."""
    assert first_answer(CLASS, handler) == b"m"


def test_a_function_is_loaded_with_no_data_first(first_answer: Callable[..., bytes]) -> None:
    """A function-style handler is told to load by `data` None."""
    source = "loaded = []\ndef handle(data, context):\n    loaded.append(data)\n    return [repr(loaded[0])]"
    assert first_answer(source) == b"None"


def test_a_function_may_have_another_name(first_answer: Callable[..., bytes]) -> None:
    """`module:function`."""
    assert first_answer("def mine(data, context):\n    return ['mine']", "handler:mine") == b"mine"


def test_imported_classes_do_not_count(first_answer: Callable[..., bytes]) -> None:
    """One class is defined here, however many are imported."""
    assert first_answer("from pathlib import Path\nfrom collections import Counter\n" + CLASS) == b"m"


def test_a_class_may_be_named(first_answer: Callable[..., bytes]) -> None:
    """`module:Class` chooses among several, which TorchServe cannot."""
    assert first_answer(CLASS + "\nclass Helper: pass\n", "handler:Mine") == b"m"


def test_handle_may_be_replaced_while_loading(first_answer: Callable[..., bytes]) -> None:
    """Micro batching puts its own object in the place of the method."""
    source = "class Mine:\n    def initialize(self, context):\n        self.handle = lambda data, context: ['new']\n"
    source += "    def handle(self, data, context):\n        return ['old']\n"
    assert first_answer(source) == b"new"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("class A:\n    pass\nclass B:\n    pass", r"Expected only one class .* found the classes \['A', 'B'\]"),
        ("x = 1", r"Expected only one class .* found the classes \[\]"),
        ("class A:\n    pass", "A has no method handle"),
        ("handle = 3", '"handle" in the handler "handler.py" is not a function'),
    ],
)
def test_a_module_without_one_entry_point_is_refused(
    load_handler_backend: Callable[..., HandlerBackend], source: str, message: str
) -> None:
    """The sentence says what was found."""
    with pytest.raises(InvalidModel, match=message):
        load_handler_backend(source)


def test_a_missing_dependency_is_reported_as_itself(load_handler_backend: Callable[..., HandlerBackend]) -> None:
    """Not as a missing default handler, which is what TorchServe says."""
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'"):
        load_handler_backend("import no_such_package")


def test_an_unknown_handler_lists_the_default_ones(load_handler_backend: Callable[..., HandlerBackend]) -> None:
    """Neither a file of the archive nor a name that is built in."""
    with pytest.raises(InvalidModel, match=r'"magic_handler" .*\(base_handler\b'):
        load_handler_backend("", "magic_handler")


def test_the_models_folder_comes_first(make_model: Callable[..., LoadedModel]) -> None:
    """For the worker, and for the processes that the model starts."""
    model = make_model({"handler.py": "import extra\n" + CLASS, "extra.py": "VALUE = 7"})
    os.environ["PYTHONPATH"] = "/elsewhere"
    HandlerBackend().load(model)
    folder = str(model.model_dir.resolve())
    assert sys.path[0] == folder
    assert os.environ["PYTHONPATH"] == f"{folder}{os.pathsep}/elsewhere"
    command = [sys.executable, "-c", "import extra; print(extra.VALUE)"]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "7\n"


def test_a_file_by_the_name_of_a_taken_module_is_not_imported(first_answer: Callable[..., bytes]) -> None:
    """TorchServe's worker has loaded it before; ours may not have."""
    source = """
    import pathlib, sys
    for name in ("quopri", "turtle"):
        pathlib.Path(__file__).with_name(name + ".py").write_text("WHO = 'the archive'")
        sys.modules.pop(name, None)
    import quopri, turtle
    def handle(data, context):
        return [[hasattr(quopri, "WHO"), turtle.WHO]]
    """
    answer = first_answer(textwrap.dedent(source))
    for name in ("quopri", "turtle"):
        sys.modules.pop(name, None)
    assert json.loads(answer) == [False, "the archive"]

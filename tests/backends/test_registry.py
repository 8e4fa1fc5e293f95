"""The table of backends."""

import subprocess
import sys

import pytest

from ringserve.backends.registry import BACKENDS, create_backend
from ringserve.protocol.errors import InvalidModel

IMPORTS_NOTHING = """
import sys
from importlib.util import find_spec
from ringserve.backends.registry import create_backend
assert find_spec("ts") is None
create_backend("handler")
create_backend("python")
assert "torch" not in sys.modules
assert find_spec("ts") is None, "only loading a model makes ts importable"
"""


@pytest.mark.parametrize("word", BACKENDS)
def test_a_word_names_a_class_with_the_three_calls(word: str) -> None:
    """Every entry of the table can be imported and is a backend."""
    backend = create_backend(word)
    assert all(callable(getattr(backend, call)) for call in ("load", "execute", "close"))


def test_an_unknown_word_lists_the_accepted_ones() -> None:
    """The sentence is enough to correct the configuration."""
    with pytest.raises(InvalidModel, match=r'"tensorflow".*handler, torchscript, python'):
        create_backend("tensorflow")


def test_a_framework_is_imported_when_its_backend_is_chosen() -> None:
    """A worker of a model without torch does not pay for torch, and `ts` stays out of other processes."""
    subprocess.run([sys.executable, "-P", "-c", IMPORTS_NOTHING], check=True, timeout=60)

"""Which word in model-config.yaml means which backend. A backend, and the framework it needs, is imported when chosen."""

from importlib import import_module
from typing import cast

from ringserve.backends.contract import Backend
from ringserve.protocol.errors import InvalidModel

BACKENDS = {
    "handler": "ringserve.backends.handler_backend:HandlerBackend",
    "torchscript": "ringserve.backends.torchscript_backend:TorchScriptBackend",
    "python": "ringserve.backends.python_backend:PythonBackend",
    "triton": "ringserve.backends.triton_backend:TritonBackend",
}


def create_backend(word: str) -> Backend:
    """The backend called `word`, not loaded yet. Raises `InvalidModel` for a word that is not in the table."""
    place = BACKENDS.get(word)
    if place is None:
        raise InvalidModel(f'Unknown backend "{word}". Accepted: {", ".join(BACKENDS)}.')
    module, name = place.split(":")
    return cast(Backend, getattr(import_module(module), name)())

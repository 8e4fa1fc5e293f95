"""A backend with a model of Triton's."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from ringserve.backends.contract import LoadedModel
from ringserve.backends.triton_backend import TritonBackend
from ringserve.protocol.tensor import Signature
from tests.backends.triton.models import CONFIG, HEAD, SIGNATURE, Load


@pytest.fixture
def load(make_model: Callable[..., LoadedModel]) -> Load:
    """A backend with this model."""

    def loaded(
        *methods: str, signature: Signature = SIGNATURE, config: Mapping[str, Any] = CONFIG, **changes: Any
    ) -> TritonBackend:
        backend = TritonBackend()
        config = {"triton": config, **changes.pop("beside", {})}
        source = HEAD + "".join(methods)
        backend.load(make_model({"2/model.py": source}, "2/model.py", signature=signature, config=config, **changes))
        return backend

    return loaded

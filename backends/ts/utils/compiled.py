"""`torch.compile` for a model that has to answer in any case."""

import logging
from typing import Any

import torch
from torch._dynamo.exc import TorchDynamoException

LOGGER = logging.getLogger("ringserve.model")


def compile_model(model: Any, options: dict[str, Any]) -> Any:
    """`model`, compiled with these keywords of `torch.compile`, or as it is, and a warning, where that fails.

    Compilers run when the model is first called, and again for shapes they have not seen. A call that one of them fails
    is answered by the uncompiled model, which then stays.
    """
    if not isinstance(model, torch.nn.Module):
        LOGGER.warning("pt2.compile is left out: %s is no torch module", type(model).__name__)
        return model
    try:
        compiled: Any = torch.compile(model, **options)
    except Exception:
        LOGGER.warning("torch.compile(%s) failed; the model stays uncompiled", options, exc_info=True)
        return model
    run = compiled.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        try:
            return run(*args, **kwargs)
        except TorchDynamoException as error:
            failure = error
        # An input that the model itself does not take raises here, and says nothing about the compiler.
        answer = model(*args, **kwargs)
        LOGGER.warning("torch.compile(%s) failed when the model ran; it runs uncompiled", options, exc_info=failure)
        compiled.forward = model.__call__
        return answer

    compiled.forward = forward
    return compiled

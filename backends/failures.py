"""What the client reads when a model's own code raises. The details stay in the model's log."""

import logging

from ringserve.protocol.errors import OutOfResources, PredictionFailed, RingServeError

LOGGER = logging.getLogger("ringserve.model")


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether the host or the device had no memory left. Frameworks share no type for it, hence the text."""
    return isinstance(error, MemoryError) or "CUDA" in str(error)


def prediction_failure(error: BaseException, model_name: str, *, logged: bool = False) -> RingServeError:
    """Log what `model_name` raised, with its traceback, unless that was `logged` when the rows ran in a larger batch, and
    return what to answer.

    The caller raises the result after its `except` block: an answer chained to the model's exception would keep the
    frames of the model, and with them views of shared memory, alive for as long as the answer lives.
    """
    if not logged:
        LOGGER.error("The model %s raised while it ran a batch", model_name, exc_info=error)
    if ran_out_of_memory(error):
        return OutOfResources("Out of resources")
    return PredictionFailed("Prediction failed")

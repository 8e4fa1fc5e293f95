"""What a request brought as its one input: under `data`, as forms and TorchServe's examples name it, or as its whole body."""

from typing import Any

from ringserve.backends.ts.utils.util import PredictionException

BAD_REQUEST = 400


def refusal(sentence: str) -> PredictionException:
    """What a request is answered with whose input is of no use: 400 and the sentence."""
    return PredictionException(sentence, BAD_REQUEST)


def what_came(value: Any) -> str:
    """A value that was not expected, in a sentence that says so."""
    return "nothing" if value is None else f"a {type(value).__name__}"


def row_input(row: Any) -> tuple[str, Any]:
    """The name and the value of a row's input, ("body", None) when it brought none. An empty `data` gives way to a body.

    A row that is no dict is the input itself: an envelope has taken it out of the request already.
    """
    if not isinstance(row, dict):
        return "body", row
    found = [(name, row[name]) for name in ("data", "body") if row.get(name) is not None]
    for name, value in found:
        if not isinstance(value, str | bytes | bytearray) or value:
            return name, value
    return found[0] if found else ("body", None)

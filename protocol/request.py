"""A request and its answer, whatever protocol they came by. Every front end parses into these; `dispatch` knows no other."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class FormPart(NamedTuple):
    """One field of a form."""

    name: str
    content_type: str
    data: bytes


class InferRequest(NamedTuple):
    """One inference request. `headers` keys are lower case and may be empty when the model is typed and cannot see them.

    `parts` is None for a plain body, else the fields of a form, and `body` is empty then.
    """

    request_id: str
    content_type: str
    headers: Mapping[str, str]
    body: bytes
    parts: Sequence[FormPart] | None = None


class Answer(NamedTuple):
    """What the model said to one request. An empty `phrase` means the status' own; `content_type` None sends no header."""

    body: bytes
    content_type: str | None = None
    status: int = 200
    phrase: str = ""
    headers: Mapping[str, str] | None = None

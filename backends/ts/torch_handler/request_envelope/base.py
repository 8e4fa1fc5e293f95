"""What an envelope is: it stands between the requests and a handler, and speaks another format to the clients than the handler does.

A module of an archive may define one: a class derived from `BaseEnvelope`, which is named in model-config.yaml or in
config.properties by the module's name.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator
from typing import Any


class BaseEnvelope(ABC):
    """Wraps the handler's entry point `handle_fn(data, context)`. Subclasses say how inputs are taken out of requests and how
    answers are put into responses. What `parse_input` raises answers the requests, as if the handler had."""

    def __init__(self, handle_fn: Callable[[Any, Any], Any]) -> None:
        self._handle_fn = handle_fn
        self.context: Any = None

    def handle(self, data: Any, context: Any) -> Any:
        """Answer a batch: one element for each request. Parts that the handler sends while it runs, or yields, leave as they
        are; what it returns after them is formatted."""
        self.context = context
        answers = self._ask(self.parse_input(data) if data else data)
        if inspect.isgenerator(answers):
            return self._formatted_at_the_end(answers)
        return self._formatted(answers)

    @abstractmethod
    def parse_input(self, data: list[dict[str, Any]]) -> Any:
        """What the handler is given instead of `data`, which has one dict of inputs for each request."""

    @abstractmethod
    def format_output(self, data: Any) -> Any:
        """One element for each request, made of what the handler returned."""

    def _ask(self, inputs: Any) -> Any:
        return self._handle_fn(inputs, self.context)

    def _formatted(self, answers: Any) -> Any:
        return answers if answers is None else self.format_output(answers)

    def _formatted_at_the_end(self, parts: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
        return self._formatted((yield from parts))

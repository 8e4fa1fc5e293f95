"""The envelope `body`: the handler is given what is in the requests, without the names of the inputs."""

from typing import Any

from ringserve.backends.ts.torch_handler.request_envelope.base import BaseEnvelope


class BodyEnvelope(BaseEnvelope):
    """A list with the input `data` of each request, or its body. Answers are left as they are."""

    def parse_input(self, data: list[dict[str, Any]]) -> list[Any]:
        """What each request brought."""
        return [row.get("data") or row.get("body") for row in data]

    def format_output(self, data: Any) -> Any:
        """What the handler returned."""
        return data

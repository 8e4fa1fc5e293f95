"""How many requests of a version may wait, and how long for what."""

import time
from dataclasses import dataclass

from ringserve.protocol.request import InferRequest


@dataclass(frozen=True, slots=True)
class Limits:
    """`queue_size` is `job_queue_size`; a request may wait for a worker and for its answer as long as the next two say, a worker
    may take as long for a batch as the third (0: for ever). It serves so many front ends in turn."""

    queue_size: int
    queue_timeout_ms: int = 0
    request_timeout_ms: int = 0
    response_timeout_s: int = 0
    front_ends: int = 1

    def patience_ms(self, request: InferRequest) -> int:
        """How long the client waits; 0 for ever."""
        return request.timeout_ms or self.request_timeout_ms

    def stamped(self, request: InferRequest, head_s: float | None = None) -> InferRequest:
        """The client's time runs from its head on, however long its body takes. `head_s` is when that came, if not now."""
        patience_ms = self.patience_ms(request)
        if not patience_ms:
            return request
        head_ns = time.monotonic_ns() if head_s is None else int(head_s * 1e9)
        return request._replace(deadline_ns=head_ns + patience_ms * 1_000_000)

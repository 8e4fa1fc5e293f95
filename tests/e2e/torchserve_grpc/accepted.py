"""Where our server says something else than TorchServe 0.12 over gRPC, and why: a reason, and what the step and the difference look
like together. One that no step shows any more fails the test."""

import re
from typing import NamedTuple

MENDED = "wrong there"


class Accepted(NamedTuple):
    reason: str
    looks: re.Pattern[str]

    def covers(self, step: str, why: str) -> bool:
        return self.looks.search(f"{step} -> {why}") is not None


def _accepted(reason: str, *patterns: str) -> list[Accepted]:
    return [Accepted(reason, re.compile(pattern)) for pattern in patterns]


ACCEPTED = [
    *_accepted(
        f"{MENDED}: what is not there is not found, and what is not said is the client's fault",
        "expected INTERNAL, got NOT_FOUND: 'Model ",
        "expected INTERNAL, got INVALID_ARGUMENT: 'Parameter model_name is required.",
        "'code': 13, 'message': 'Model not found: nobody'.* . .*'code': 5, 'message': 'Model not found: nobody'",
    ),
    *_accepted(
        f"{MENDED}: sys.exit of a handler ends its request, not its worker",
        "expected INTERNAL, got UNAVAILABLE: 'Worker died.",
    ),
    *_accepted(f"{MENDED}: StreamPredictions works on any handler", '"model_name": "other".*expected INTERNAL, got OK'),
    *_accepted(
        f"{MENDED}: errors that nobody caught",
        "^management: .* expected UNKNOWN, got (ABORTED|INVALID_ARGUMENT|PERMISSION_DENIED)",
    ),
    *_accepted(
        f"{MENDED}: the class that the message of a missing name has",
        'DescribeModel ."model_name": "". -> expected NOT_FOUND',
    ),
    *_accepted(f"{MENDED}: metadata is there", "ServerMetadata .. -> expected UNIMPLEMENTED, got OK"),
    *_accepted(
        f"{MENDED}: a sequence's answers say which one it is, as the message has a field for",
        "^sequences: .*'sequence_id': 's[12]'",
    ),
    *_accepted("remote sources are denied unless allowed", "does not match any allowed URL"),
    *_accepted(
        "why a worker did not start is said", "'Failed to start workers for model broken version: 1.0. ValueError"
    ),
    *_accepted(
        "the Open Inference Protocol's own words",
        "Request for unknown model: 'nobody' is not found",
        "'platform': 'handler'",
    ),
    *_accepted(f"{MENDED}: texts come back as they are, not as JSON of their base64", '"datatype": "BYTES"'),
]

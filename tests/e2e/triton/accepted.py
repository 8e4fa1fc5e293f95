"""Where our server says something else than Triton 2.51, and why. Each entry is a reason and what such a difference looks like
(verdicts.py); one that no step shows any more fails the test."""

import re
from typing import NamedTuple

CONTRACT = "the protocol's contract says so"
LATER = "later Tritons do the same"
OURS = "RingServe decided otherwise"
FAULT = "a fault of Triton 2.51"


class Accepted(NamedTuple):
    reason: str
    looks: re.Pattern[str]

    def covers(self, chapter: str, why: str) -> bool:
        return self.looks.search(f"{chapter}: {why}") is not None


def _accepted(reason: str, *patterns: str) -> list[Accepted]:
    return [Accepted(reason, re.compile(pattern)) for pattern in patterns]


ACCEPTED = [
    *_accepted(
        f"{LATER}: what is not there is not found, also for a probe",
        "expected 400, got 404: 'Model version not ready'",
        '^grpc.*: expected OK, got NOT_FOUND: None . "Request for unknown model: ',
    ),
    *_accepted(f"{OURS}: bodies below 1 KiB are not compressed", "^compressed: .headers.content-encoding: missing$"),
    *_accepted(
        f"{CONTRACT}: generate has exactly one response",
        "^generate: expected 200, got 400: None . 'generate expects model to produce exactly 1 response",
    ),
    *_accepted(
        f"{CONTRACT}: the model's own failure is 500",
        "^generate: expected 400, got 500: .*(the model does not like this|the first element is -1)",
    ),
    *_accepted("the server's own name, version and extensions", "name: expected 'triton', got 'ringserve'"),
    *_accepted(
        f"{CONTRACT}: a plain load undoes an override",
        "^repository: .json.inputs.0..datatype: expected 'FP32', got 'INT32'",
    ),
    *_accepted(f"{CONTRACT}: the depth of JSON is bounded", "got 400: None . 'JSON nesting depth exceeds"),
    *_accepted(f"{CONTRACT}: an output is asked for once", "output 'OUTPUT0' already exists in request"),
    *_accepted(f"{CONTRACT}: required inputs are required", "expected number of inputs between 1 and 3 but got"),
    *_accepted(
        f"{CONTRACT}: a raw entry too many is refused, before regions are looked at",
        "unexpected raw_input_contents for model 'simple': expected",
    ),
    *_accepted(f"{LATER}: the kind of a correlation id is checked", "sequence batching control 'CORRID' data-type is"),
    *_accepted(
        f"{LATER}: regions of the other kind are not unregistered", 'expected 200, got 400: None . "The region named'
    ),
    *_accepted(f"{OURS}: FP16 may be JSON", "expected 400, got 200: 'receiving FP16 data via JSON"),
    *_accepted(
        f"{OURS}: one response of a decoupled model is an answer",
        "HTTP end point doesn't support models with decoupled",
    ),
    *_accepted(
        f"{FAULT}: half a stream is taken for a whole one", "not one whole gzip stream", "not one whole deflate stream"
    ),
    *_accepted(
        f"{CONTRACT}: no coding is named by an empty header", "expected 501, got 200: 'Unsupported compression type'"
    ),
    *_accepted(
        f"{FAULT}: takes what is no setting, and what no setting can be",
        "^trace: expected 200, got 400: None . \"(trace_level: expected OFF|Unable to parse 'trace_rate')",
        "^trace: .json.trace_rate: expected '4294967295', got",
    ),
    *_accepted(f"{LATER}: parameters of 64 bits without sign", "invalid value type for 'big' parameter"),
    *_accepted(
        f"{LATER}: an unknown format is the client's fault",
        "^logging: expected 503, got 400: 'invalid argument for --log_format",
    ),
    *_accepted(
        f"{LATER}: triton_grpc_error ends a stream with its first error",
        "^grpc streams: expected OK, got (NOT_FOUND|INVALID_ARGUMENT): None",
    ),
    *_accepted(
        f"{OURS}: why a model does not load is told without the server's folders",
        "reason: expected 'Internal: ValueError: this model does not load",
    ),
    *_accepted(f"{OURS}: memory of a model is measured", "memory_usage: expected 0, got 1 entries"),
    *_accepted(
        "the order of regions is nobody's promise", "^shared memory: .json.0..name: expected 'part', got 'whole'"
    ),
    *_accepted(
        "the order of parameters is nobody's promise",
        "^grpc faults: .message.raw_output_contents.0.: expected 'LgAAAHs",
    ),
]

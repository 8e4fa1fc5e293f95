"""What the protocol says of each kind of error, over both transports."""

import pytest

from ringserve.protocol import errors
from ringserve.protocol.errors import RingServeError
from ringserve.server.open_inference.errors import (
    not_ready,
    request_mark,
    unknown_model,
    unknown_version,
    v2_status,
)
from ringserve.server.open_inference.metadata import in_order


@pytest.mark.parametrize(
    ("error", "http", "grpc"),
    [
        (errors.BadRequest(""), 400, "INVALID_ARGUMENT"),
        (errors.BadRequest("", status=408), 408, "DEADLINE_EXCEEDED"),
        (errors.BadRequest("", status=422), 422, "INVALID_ARGUMENT"),
        (errors.InvalidKey(""), 400, "UNAUTHENTICATED"),
        (errors.ModelNotFound(""), 404, "NOT_FOUND"),
        (errors.AlreadyExists(""), 400, "ALREADY_EXISTS"),
        (errors.Conflict(""), 400, "ALREADY_EXISTS"),
        (errors.Unsupported(""), 501, "UNIMPLEMENTED"),
        (errors.BodyTooLarge(""), 413, "RESOURCE_EXHAUSTED"),
        (errors.NoWorker(""), 503, "UNAVAILABLE"),
        (errors.QueueFull(""), 503, "UNAVAILABLE"),
        (errors.ShuttingDown(""), 503, "UNAVAILABLE"),
        (errors.PredictionFailed(""), 500, "INTERNAL"),
        (errors.PredictionFailed("", status=418), 418, "INTERNAL"),
        (errors.PredictionFailed("", status=507), 507, "RESOURCE_EXHAUSTED"),
        (errors.WorkerLost(""), 500, "INTERNAL"),
        (errors.DeadlineExceeded(""), 504, "DEADLINE_EXCEEDED"),
        (errors.DeadlineExceeded("", status=503), 503, "UNAVAILABLE"),
        (errors.OutOfResources(""), 507, "RESOURCE_EXHAUSTED"),
        (errors.Internal(""), 500, "INTERNAL"),
    ],
)
def test_an_error_has_a_status_in_each_transport(error: RingServeError, http: int, grpc: str) -> None:
    assert v2_status(error) == (http, grpc)


def test_a_full_queue_may_be_429() -> None:
    assert v2_status(errors.QueueFull(""), 429) == (429, "UNAVAILABLE")


def test_clients_find_what_they_look_for_at_the_beginning() -> None:
    long = "x" * 10_000
    for error in (unknown_model(long), unknown_version("m", long), not_ready("m", "1", 3)):
        assert error.message.startswith("Request for unknown model: '")
        assert len(error.message) < 400
    assert not_ready("m", "1", 3).retry_after_s == 3
    assert request_mark("7") == "[request id: 7] "
    assert request_mark("") == "[request id: <id_unknown>] "


def test_versions_come_in_the_order_of_their_numbers() -> None:
    assert in_order(["10", "2", "1.10", "1.9", "1", "v2", "v10"]) == ("1", "1.9", "1.10", "2", "10", "v2", "v10")

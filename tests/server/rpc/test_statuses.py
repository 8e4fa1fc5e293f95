"""Which status of gRPC an error is (contract torchserve.md 5.3), what channels are told, and how a certificate is taken apart."""

import pytest

from ringserve.protocol.errors import (
    BadRequest,
    BodyTooLarge,
    DeadlineExceeded,
    InvalidKey,
    ModelNotFound,
    PredictionFailed,
    RingServeError,
)
from ringserve.server.rpc.listener import split_pem
from ringserve.server.rpc.messages import GrpcListener, GrpcOptions
from ringserve.server.rpc.options import channel_arguments
from ringserve.server.rpc.statuses import DETAILS_CHARS_MAX, code_of, http_class_of, plain_status, torchserve_status

TABLE = {
    200: "OK",
    206: "OK",
    301: "UNKNOWN",
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    405: "FAILED_PRECONDITION",
    408: "FAILED_PRECONDITION",
    409: "ABORTED",
    413: "RESOURCE_EXHAUSTED",
    416: "OUT_OF_RANGE",
    429: "RESOURCE_EXHAUSTED",
    499: "CANCELLED",
    500: "INTERNAL",
    501: "UNIMPLEMENTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
    507: "INTERNAL",
    0: "UNKNOWN",
    700: "UNKNOWN",
}


@pytest.mark.parametrize(("status", "code"), TABLE.items())
def test_a_status_of_http_has_its_code(status: int, code: str) -> None:
    assert code_of(status).name == code


@pytest.mark.parametrize(
    ("error", "code", "details"),
    [
        (ModelNotFound("gone"), "NOT_FOUND", "gone\norg.pytorch.serve.archive.model.ModelNotFoundException"),
        (BadRequest("bad"), "INVALID_ARGUMENT", "bad\norg.pytorch.serve.http.BadRequestException"),
        (BodyTooLarge("long"), "RESOURCE_EXHAUSTED", "long\nRequestEntityTooLargeException.()"),
        (
            PredictionFailed("Prediction failed"),
            "UNAVAILABLE",
            "Prediction failed\norg.pytorch.serve.http.InternalServerException",
        ),
        (DeadlineExceeded("late"), "DEADLINE_EXCEEDED", "late\nDeadlineExceededException.()"),
        (InvalidKey("no"), "PERMISSION_DENIED", "no"),
    ],
)
def test_an_error_has_a_code_and_the_class_that_torchserve_names(
    error: RingServeError, code: str, details: str
) -> None:
    found, said = torchserve_status(error)
    assert (found.name, said) == (code, details)
    assert plain_status(error) == (found, error.message)


def test_details_are_short_enough_to_be_sent_and_text_that_can_be() -> None:
    _, said = torchserve_status(BadRequest("x" * 100_000))
    assert said == "x" * DETAILS_CHARS_MAX + "...\norg.pytorch.serve.http.BadRequestException"
    assert torchserve_status(BadRequest("a\ud800b"))[1] == "a?b\norg.pytorch.serve.http.BadRequestException"


@pytest.mark.parametrize(
    ("code", "status"),
    [(0, 200), (3, 400), (5, 400), (7, 400), (16, 400), (8, 500), (13, 500), (14, 500), (4, 500), (2, 500)],
)
def test_a_call_counts_as_a_response_of_its_class(code: int, status: int) -> None:
    assert http_class_of(code) == status


def test_the_words_of_the_settings_are_channel_arguments() -> None:
    options = GrpcOptions(1, 2, True, 3, 4, 5, "medium")
    arguments = dict(channel_arguments(options, GrpcListener("::1", 7070, 6, 7), 99))
    assert arguments == {
        "grpc.so_reuseport": 1,
        "grpc.max_receive_message_length": 99,
        "grpc.max_send_message_length": -1,
        "grpc.max_metadata_size": 16384,
        "grpc.absolute_max_metadata_size": 16384,
        "grpc.keepalive_time_ms": 1,
        "grpc.keepalive_timeout_ms": 2,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 3,
        "grpc.http2.min_ping_interval_without_data_ms": 4,
        "grpc.http2.max_ping_strikes": 5,
        "grpc.default_compression_level": 2,
        "grpc.max_connection_age_ms": 6,
        "grpc.max_connection_age_grace_ms": 7,
    }


def test_what_is_not_said_is_left_to_grpc() -> None:
    arguments = dict(channel_arguments(GrpcOptions(), GrpcListener("127.0.0.1", 7070), 99))
    unsaid = {"grpc.default_compression_level", "grpc.max_connection_age_ms", "grpc.max_connection_age_grace_ms"}
    assert unsaid.isdisjoint(arguments)


@pytest.mark.parametrize(("host", "address"), [("127.0.0.1", "127.0.0.1:7"), ("::1", "[::1]:7")])
def test_an_address_is_written_as_grpc_reads_it(host: str, address: str) -> None:
    assert GrpcListener(host, 7).address == address


def test_a_certificate_is_parted_from_its_key() -> None:
    key, chain = split_pem(
        b"-----BEGIN PRIVATE KEY-----\nk\n-----BEGIN CERTIFICATE-----\na\n-----BEGIN CERTIFICATE-----\nb\n"
    )
    assert (key[:14], chain.count(b"BEGIN CERTIFICATE")) == (b"-----BEGIN PRI", 2)

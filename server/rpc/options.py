"""The words of the settings as gRPC's channel arguments (contract open-inference.md 2.5)."""

from ringserve.server.rpc.messages import GrpcListener, GrpcOptions

ChannelArguments = list[tuple[str, int]]

COMPRESSION_LEVELS = {"none": 0, "low": 1, "medium": 2, "high": 3}
METADATA_BYTES_MAX = 16 << 10


def channel_arguments(options: GrpcOptions, listener: GrpcListener, request_bytes_max: int) -> ChannelArguments:
    """Of one listener. What an answer may be long is bounded before it gets there; a request is refused while it comes."""
    arguments = [
        ("grpc.so_reuseport", 1),
        ("grpc.max_receive_message_length", request_bytes_max),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES_MAX),
        ("grpc.keepalive_time_ms", options.keepalive_time_ms),
        ("grpc.keepalive_timeout_ms", options.keepalive_timeout_ms),
        ("grpc.keepalive_permit_without_calls", int(options.keepalive_permit_without_calls)),
        ("grpc.http2.max_pings_without_data", options.http2_max_pings_without_data),
        (
            "grpc.http2.min_ping_interval_without_data_ms",
            options.http2_min_recv_ping_interval_without_data_ms,
        ),
        ("grpc.http2.max_ping_strikes", options.http2_max_ping_strikes),
    ]
    if options.compression != "none":
        arguments.append(("grpc.default_compression_level", COMPRESSION_LEVELS[options.compression]))
    if listener.connection_age_ms_max:
        arguments.append(("grpc.max_connection_age_ms", listener.connection_age_ms_max))
    if listener.connection_age_grace_ms:
        arguments.append(("grpc.max_connection_age_grace_ms", listener.connection_age_grace_ms))
    return arguments

"""Take the steps of the conversation with a server's two gRPC addresses."""

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import grpc
from google.protobuf import empty_pb2, json_format

from ringserve.protocol.grpc import torchserve_inference_pb2, torchserve_management_pb2, torchserve_open_inference_pb2
from ringserve.protocol.grpc.pool import POOL
from tests.e2e.torchserve_grpc.steps import INFERENCE, MANAGEMENT, OPEN

TIMEOUT_S = 30.0
SERVICES = {
    INFERENCE: ("org.pytorch.serve.grpc.inference.InferenceAPIsService", torchserve_inference_pb2),
    MANAGEMENT: ("org.pytorch.serve.grpc.management.ManagementAPIsService", torchserve_management_pb2),
    OPEN: ("org.pytorch.serve.grpc.openinference.GRPCInferenceService", torchserve_open_inference_pb2),
}
# (request, response) of each rpc, where they are not called after it.
TYPES = {
    "Ping": ("", "TorchServeHealthResponse"),
    "Predictions": ("PredictionsRequest", "PredictionResponse"),
    "StreamPredictions": ("PredictionsRequest", "PredictionResponse"),
    "StreamPredictions2": ("PredictionsRequest", "PredictionResponse"),
}


class Talk:
    """`inference` and `management` are addresses, host:port."""

    def __init__(self, inference: str, management: str) -> None:
        self._channels = {INFERENCE: grpc.insecure_channel(inference), MANAGEMENT: grpc.insecure_channel(management)}
        self._channels[OPEN] = self._channels[INFERENCE]

    def close(self) -> None:
        for channel in (self._channels[INFERENCE], self._channels[MANAGEMENT]):
            channel.close()

    def take(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """What the server says: `code`, with `details` or the messages."""
        name, module = SERVICES[step["service"]]
        rpc = step["rpc"]
        asked, answered = TYPES.get(rpc, (f"{rpc}Request", f"{rpc}Response"))
        if step["service"] == MANAGEMENT:
            answered = "ManagementResponse"
        sent = getattr(module, asked) if asked else empty_pb2.Empty
        path, channel = f"/{name}/{rpc}", self._channels[step["service"]]
        more = {
            "request_serializer": lambda message: message.SerializeToString(),
            "response_deserializer": getattr(module, answered).FromString,
        }
        found: list[Any] = []
        try:
            if "stream" in step:
                requests = [json_format.ParseDict(each, sent()) for each in step["stream"]]
                self._converse(channel.stream_stream(path, **more), requests, found)
            else:
                request = json_format.ParseDict(step["request"], sent())
                if rpc == "StreamPredictions":
                    found.extend(channel.unary_stream(path, **more)(request, timeout=TIMEOUT_S))
                else:
                    found.append(channel.unary_unary(path, **more)(request, timeout=TIMEOUT_S))
        except grpc.RpcError as error:
            return {"code": error.code().name, "details": error.details(), "messages": list(map(_as_dict, found))}
        return {"code": "OK", "messages": list(map(_as_dict, found))}

    @staticmethod
    def _converse(call: Any, requests: list[Any], found: list[Any]) -> None:
        """One answer for each request, which is awaited before the next: TorchServe forgets what it owes to a client that has
        said everything."""
        answered = threading.Semaphore(0)

        def said() -> Iterator[Any]:
            for request in requests:
                yield request
                answered.acquire(timeout=TIMEOUT_S)

        for message in call(said(), timeout=TIMEOUT_S):
            found.append(message)
            answered.release()


def _as_dict(message: Any) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True, descriptor_pool=POOL)

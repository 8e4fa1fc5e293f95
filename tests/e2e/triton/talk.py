"""Take the steps of the conversation with a server, and put what it says into a form that can be written down and compared."""

import base64
import contextlib
import gzip
import http.client
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from google.protobuf import json_format
from tritonclient.grpc import service_pb2 as pb

SERVICE = "/inference.GRPCInferenceService/"
TIMEOUT_S = 20.0
# What of a response's head belongs to the protocol.
HEADERS = ("content-type", "inference-header-content-length", "content-encoding", "accept-encoding")

Step = Mapping[str, Any]
Said = dict[str, Any]


def text_or_base64(data: bytes) -> str | dict[str, str]:
    """Bytes as JSON can hold them."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(data).decode()}


def as_bytes(value: str | Mapping[str, str] | None) -> bytes:
    if value is None:
        return b""
    return value.encode() if isinstance(value, str) else base64.b64decode(value["b64"])


class Talk:
    """With one server: its HTTP port and its gRPC port."""

    def __init__(self, http_port: int, grpc_port: int) -> None:
        self._http_port = http_port
        self._http: http.client.HTTPConnection | None = None
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{grpc_port}",
            options=[("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)],
        )

    def take(self, step: Step) -> Said:
        """What the server says to one step."""
        if "method" in step:
            return self._rest(step)
        if "stream" in step:
            return self._stream(step)
        return self._unary(step)

    def close(self) -> None:
        self._channel.close()
        if self._http is not None:
            self._http.close()

    # ---- REST

    def _rest(self, step: Step) -> Said:
        body, headers = as_bytes(step.get("body")), dict(step.get("headers", {}))
        try:
            response = self._answered(step["method"], step["path"], body, headers)
            raw = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._http = None
            return {"lost": str(error)}
        if response.will_close and self._http is not None:
            self._http.close()
            self._http = None
        found = {name: value for name in HEADERS if (value := response.getheader(name)) is not None}
        encoding = found.get("content-encoding")
        if encoding == "gzip":
            raw = gzip.decompress(raw)
        elif encoding == "deflate":
            raw = zlib.decompress(raw)
        return {"status": response.status, "headers": found, **_body(raw, found)}

    def _answered(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> http.client.HTTPResponse:
        for attempt in range(2):
            if self._http is None:
                self._http = http.client.HTTPConnection("127.0.0.1", self._http_port, timeout=TIMEOUT_S)
            try:
                self._http.request(method, path, body=body, headers=headers)
                return self._http.getresponse()
            except (http.client.BadStatusLine, ConnectionError):  # it closed the connection that we meant to use again
                self._http.close()
                self._http = None
                if attempt:
                    raise
        raise AssertionError

    # ---- gRPC

    def _unary(self, step: Step) -> Said:
        rpc = step["rpc"]
        request = json_format.ParseDict(step["request"], _request_type(rpc)())
        call = self._channel.unary_unary(
            SERVICE + rpc,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(pb, f"{rpc}Response").FromString,
        )
        try:
            answer = call(request, timeout=TIMEOUT_S, metadata=tuple(step.get("metadata", {}).items()))
        except grpc.RpcError as error:
            return {"code": error.code().name, "details": error.details()}
        return {"code": "OK", "message": _message(answer)}

    def _stream(self, step: Step) -> Said:
        requests = [json_format.ParseDict(each, pb.ModelInferRequest()) for each in step["stream"]]
        call = self._channel.stream_stream(
            SERVICE + "ModelStreamInfer",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=pb.ModelStreamInferResponse.FromString,
        )
        messages: list[Any] = []
        stream = call(iter(requests), timeout=TIMEOUT_S, metadata=tuple(step.get("metadata", {}).items()))
        try:
            for each in stream:
                messages.append(_message(each))
        except grpc.RpcError as error:
            return {"code": error.code().name, "details": error.details(), "messages": messages}
        return {"code": "OK", "messages": messages}


def _request_type(rpc: str) -> Any:
    return getattr(pb, f"{rpc}Request")


def _message(message: Any) -> Any:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def _body(raw: bytes, headers: Mapping[str, str]) -> Said:
    """A JSON body, a JSON head and what follows it, events, or text."""
    length = headers.get("inference-header-content-length")
    if length is not None:
        head, tail = raw[: int(length)], raw[int(length) :]
        return {"json": _parsed(head), "tail": text_or_base64(tail)}
    if headers.get("content-type", "").startswith("text/event-stream"):
        return {"events": [_parsed(each[6:].encode()) for each in raw.decode().split("\n\n") if each]}
    if raw[:1] in (b"{", b"["):
        return {"json": _parsed(raw)}
    return {"text": text_or_base64(raw)}


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except ValueError:
        return {"unparsable": text_or_base64(raw)}


@contextlib.contextmanager
def client_region(key: str, size_bytes: int) -> Iterator[None]:
    """Shared memory of a client, of whole numbers from 0 on, until the block ends."""
    path = Path("/dev/shm") / key
    path.write_bytes(np.arange(size_bytes // 4, dtype=np.int32).tobytes())
    try:
        yield
    finally:
        path.unlink()

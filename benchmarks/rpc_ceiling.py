"""Ceiling of gRPC: a server of grpc.aio without a model. The request's message is read, the answer's is always the same.

python -m benchmarks.rpc_ceiling PORT ANSWER_FILE
"""

import asyncio
import sys
from pathlib import Path

import grpc
import grpc.aio

from ringserve.protocol.grpc.open_inference_pb2 import ModelInferRequest, ModelInferResponse

SERVICE = "inference.GRPCInferenceService"


async def main(port: int, answer: bytes) -> None:
    message = ModelInferResponse.FromString(answer)

    async def model_infer(request: ModelInferRequest, context: object) -> ModelInferResponse:
        assert request.raw_input_contents
        return message

    handler = grpc.unary_unary_rpc_method_handler(
        model_infer, ModelInferRequest.FromString, ModelInferResponse.SerializeToString
    )
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": handler})])
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2]).read_bytes()))

"""What KServe's client (the package `kserve`) gets from a server, over REST and gRPC. Runs where that package is; imports nothing of ours.

python check.py REST_URL GRPC_ADDRESS MODEL...     (each MODEL is DATATYPE: it answers y with its x, [-1] in batches)
"""

import asyncio
import sys
from typing import Any

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest  # type: ignore[import-not-found,unused-ignore]
from kserve.inference_client import RESTConfig  # type: ignore[import-not-found,unused-ignore]
from kserve.protocol.infer_type import RequestedOutput  # type: ignore[import-not-found,unused-ignore]

DTYPES = {"FP16": "float16", "FP32": "float32", "FP64": "float64", "BOOL": "bool", "BYTES": "object"}
TEXTS = np.array([["one", "", "thrée"]], object)


def array_of(datatype: str) -> np.ndarray:
    """Numbers of every sign that the datatype has, or texts."""
    if datatype == "BYTES":
        return TEXTS
    dtype = np.dtype(DTYPES.get(datatype, datatype.lower()))
    return np.array([[0, 1, 3 if dtype.kind == "u" else -3]]).astype(dtype)


def request_for(name: str, array: np.ndarray, binary: bool, answer_binary: bool) -> InferRequest:
    """For the model of its datatype."""
    tensor = InferInput("x", list(array.shape), name)
    tensor.set_data_from_numpy(array, binary_data=binary)
    outputs = [RequestedOutput("y", {"binary_data": answer_binary})]
    return InferRequest(name, [tensor], request_id="mine", request_outputs=outputs)


def check_answer(answer: Any, name: str, array: np.ndarray) -> None:
    """The same numbers, with the id of the request."""
    found = answer.outputs[0].as_numpy()
    if found.dtype == object:
        found = np.array([each.decode() if isinstance(each, bytes) else each for each in found.ravel()], object)
    assert found.ravel().tolist() == array.ravel().tolist(), (name, found, array)
    assert (answer.id, answer.model_name, answer.outputs[0].name) == ("mine", name, "y")


async def refused(call: Any, *texts: str) -> None:
    """The call raises, and says these."""
    try:
        await call
    except (httpx.HTTPStatusError, grpc.RpcError) as error:
        said = f"{type(error).__name__} {error}"
        assert all(text in said for text in texts), (texts, said)
    else:
        raise AssertionError(f"expected a refusal with {texts}")


async def check_rest(url: str, models: list[str]) -> int:
    """How many answers were right."""
    client = InferenceRESTClient(RESTConfig(protocol="v2", retries=0))
    assert await client.is_server_live(url)
    assert await client.is_server_ready(url)
    assert not await client.is_model_ready(url, "nobody")
    right = 0
    for name in models:
        assert await client.is_model_ready(url, name)
        array = array_of(name)
        for binary in (True, False):
            for answer_binary in (True, False):
                if name == "FP16" and not (binary and answer_binary):
                    continue  # the protocol's JSON has no FP16, and the client does not send it
                request = request_for(name, array, binary, answer_binary)
                check_answer(await client.infer(url, request, model_name=name), name, array)
                right += 1
    request = request_for("FP32", array_of("FP32"), True, True)
    await refused(client.infer(url, request, model_name="nobody"), "404")
    bad = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1, 2]}]}
    await refused(client.infer(url, bad, model_name="FP32"), "400")
    await client.close()
    return right


async def check_grpc(address: str, models: list[str]) -> int:
    """How many answers were right."""
    client = InferenceGRPCClient(address, retries=0)
    assert await client.is_server_live()
    assert await client.is_server_ready()
    right = 0
    for name in models:
        assert await client.is_model_ready(name)
        array = array_of(name)
        for binary in (True, False):
            if name == "FP16" and not binary:
                continue
            check_answer(await client.infer(request_for(name, array, binary, True)), name, array)
            right += 1
    unknown = request_for("FP32", array_of("FP32"), True, True)
    unknown.model_name = "nobody"
    await refused(client.infer(unknown), "NOT_FOUND", "nobody")
    misfit = request_for("INT32", array_of("INT32"), True, True)
    misfit.model_name = "FP32"
    await refused(client.infer(misfit), "INVALID_ARGUMENT", "INT32")
    await client.close()
    return right


async def main(url: str, address: str, models: list[str]) -> None:
    print(
        f"KServe's client: REST {await check_rest(url, models)}, gRPC {await check_grpc(address, models)} answers right"
    )


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))

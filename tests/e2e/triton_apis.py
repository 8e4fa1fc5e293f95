"""NVIDIA's client, by either of its APIs, and the tensors that its example scripts send."""

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
from tritonclient import utils
from tritonclient.utils import shared_memory

LEFT = np.arange(16, dtype=np.int32)[np.newaxis]
RIGHT = np.full((1, 16), -1, np.int32)


class Addresses(NamedTuple):
    """Where the server's two APIs are: host:port."""

    http: str
    grpc: str


class Api(NamedTuple):
    """One of the two APIs, which the client's halves spell alike."""

    module: Any
    address: str

    def client(self) -> Any:
        return self.module.InferenceServerClient(self.address)

    def input(self, name: str, array: np.ndarray, **options: Any) -> Any:
        made = self.module.InferInput(name, list(array.shape), utils.np_to_triton_dtype(array.dtype))
        made.set_data_from_numpy(array, **options)
        return made

    def outputs(self, *names: str) -> list[Any]:
        return [self.module.InferRequestedOutput(name) for name in names]


def check_add_sub(results: Any, left: np.ndarray = LEFT, right: np.ndarray = RIGHT) -> None:
    """Sum and difference."""
    assert results.as_numpy("OUTPUT0").tolist() == (left + right).tolist()
    assert results.as_numpy("OUTPUT1").tolist() == (left - right).tolist()


def texts(numbers: np.ndarray) -> np.ndarray:
    """The numbers as texts, which are bytes."""
    return np.array([str(each).encode() for each in numbers.ravel()], object).reshape(numbers.shape)


def check_texts(results: Any) -> None:
    """Sum and difference of texts."""
    assert results.as_numpy("OUTPUT0").tolist() == texts(LEFT + RIGHT).tolist()
    assert results.as_numpy("OUTPUT1").tolist() == texts(LEFT - RIGHT).tolist()


def every_type() -> dict[str, np.ndarray]:
    """An array of each datatype."""
    arrays = {}
    for datatype in ("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64"):
        arrays[datatype] = np.arange(6).reshape(2, 3).astype(utils.triton_to_np_dtype(datatype))
    arrays["BF16"] = np.array([[1.0, -2.5]], ml_dtypes.bfloat16)
    arrays["BOOL"] = np.array([[True, False]])
    arrays["STRING"] = np.array([[b"a", b"", b"\xff"]], object)
    return arrays


@contextlib.contextmanager
def regions(client: Any, **sizes: int) -> Iterator[dict[str, Any]]:
    """Regions of these names and sizes, registered with the server."""
    client.unregister_system_shared_memory()
    client.unregister_cuda_shared_memory()
    handles = {}
    try:
        for name, nbytes in sizes.items():
            key = f"/{name}_{uuid.uuid4().hex}"
            handles[name] = shared_memory.create_shared_memory_region(name, key, nbytes)
            client.register_system_shared_memory(name, key, nbytes)
        yield handles
        client.unregister_system_shared_memory()
    finally:
        for handle in handles.values():
            shared_memory.destroy_shared_memory_region(handle)


def output_in(results: Any, name: str, handle: Any, offset: int = 0) -> np.ndarray:
    """An output in a region, whose type and shape the answer says."""
    output = results.get_output(name)
    said = (output["datatype"], output["shape"]) if isinstance(output, dict) else (output.datatype, output.shape)
    found: np.ndarray = shared_memory.get_contents_as_numpy(handle, utils.triton_to_np_dtype(said[0]), said[1], offset)
    return found.copy()


def placed(tensor: Any, region: str, nbytes: int, offset: int = 0) -> Any:
    """An input or output that lies in a region."""
    tensor.set_shared_memory(region, nbytes, offset)
    return tensor

"""`pb_utils.Tensor`: a named array that a Triton Python model takes or gives.

It holds a numpy array, or whatever library's tensor a model made it from: that one is copied to this machine's memory only when
somebody needs its bytes there.
"""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ringserve.backends.triton.datatypes import BF16, NUMBERS, datatype_of
from ringserve.backends.triton.errors import TritonModelException

CPU_DEVICE = (1, 0)  # DLPack's: kDLCPU, and its index
CPU_DEVICE_TYPES = (1, 3, 11)  # plain memory, and memory pinned for CUDA or ROCm


class _Capsule:
    """A bare capsule, as `torch.utils.dlpack.to_dlpack` gives, for functions that take an object. It is taken once."""

    def __init__(self, capsule: Any) -> None:
        self._capsule = capsule

    def __dlpack__(self, **_: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return CPU_DEVICE


class Tensor:
    """`Tensor(name, array)`, or `Tensor.from_dlpack(name, tensor)`."""

    __slots__ = ("_array", "_datatype", "_foreign", "_name")

    def __init__(self, name: str, array: np.ndarray) -> None:
        """Raises `TypeError` for what is no array, `TritonModelException` for elements that the protocol has not."""
        if not isinstance(name, str) or not isinstance(array, np.ndarray):
            wanted = "pb_utils.Tensor expects a name and a numpy.ndarray"
            raise TypeError(f"{wanted}, got {type(name).__name__} and {type(array).__name__}.")
        datatype = datatype_of(array.dtype)
        if datatype is None:
            raise TritonModelException(f'NumPy dtype is not supported: the tensor "{name}" has {array.dtype}.')
        self._name = name
        self._datatype = datatype
        self._array: np.ndarray | None = array
        self._foreign: Any = None  # another library's tensor, in place of the array

    @classmethod
    def of_request(cls, name: str, array: np.ndarray, datatype: str) -> "Tensor":
        """One input, whose datatype is known: the array of a BF16 one is uint16."""
        tensor = cls.__new__(cls)
        tensor._name, tensor._datatype, tensor._array, tensor._foreign = name, datatype, array, None
        return tensor

    @staticmethod
    def from_dlpack(name: str, tensor: Any) -> "Tensor":
        """From any library's tensor, or from a capsule, without a copy. Raises `TypeError`, `TritonModelException`."""
        if not isinstance(name, str):
            raise TypeError(f"from_dlpack expects the tensor's name first, got {type(name).__name__}.")
        if isinstance(tensor, Tensor):  # BF16 among them, which numpy cannot hand out
            return tensor._called(name)
        if type(tensor).__name__ == "PyCapsule":
            tensor = _from_capsule(tensor)
        if not hasattr(tensor, "__dlpack__"):
            raise TritonModelException(f"from_dlpack expects a tensor or a capsule, got {type(tensor).__name__}.")
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(tensor, torch.Tensor):
            return Tensor._of_torch(name, tensor, torch)
        if tensor.__dlpack_device__()[0] not in CPU_DEVICE_TYPES:
            if torch is None:
                raise TritonModelException(f'The tensor "{name}" is on a device, from which only torch can copy it.')
            return Tensor._of_torch(name, torch.from_dlpack(tensor), torch)
        return Tensor(name, tensor if isinstance(tensor, np.ndarray) else np.from_dlpack(tensor))

    @staticmethod
    def _of_torch(name: str, tensor: Any, torch: Any) -> "Tensor":
        tensor = tensor.detach().contiguous()
        datatype = BF16 if tensor.dtype == torch.bfloat16 else _datatype_of_torch(tensor.dtype, torch)
        if datatype is None:
            raise TritonModelException(f'The tensor "{name}" has {tensor.dtype}, which the protocol has not.')
        made = Tensor.of_request(name, np.empty(0), datatype)
        made._array, made._foreign = None, tensor
        return made

    def _called(self, name: str) -> "Tensor":
        made = Tensor.of_request(name, self._array if self._array is not None else np.empty(0), self._datatype)
        made._array, made._foreign = self._array, self._foreign
        return made

    def name(self) -> str:
        return self._name

    def shape(self) -> list[int]:
        holder = self._foreign if self._array is None else self._array
        return [int(each) for each in holder.shape]

    def triton_dtype(self) -> int:
        """The number of its datatype in Triton's enum."""
        return NUMBERS[self._datatype]

    @property
    def datatype(self) -> str:
        """The protocol's word, FP32 or BYTES say."""
        return self._datatype

    def is_cpu(self) -> bool:
        return self._array is not None or self._foreign.device.type == "cpu"

    def as_numpy(self) -> np.ndarray:
        """Its array. Raises `TritonModelException` where it lies on a device."""
        if not self.is_cpu():
            raise TritonModelException("Tensor is stored in GPU and cannot be converted to NumPy.")
        return self.in_memory()

    def in_memory(self) -> np.ndarray:
        """Its array, copied from its device where it is not here; that of a BF16 tensor is uint16."""
        if self._array is None:
            tensor = self._foreign.cpu()
            if self._datatype == BF16:
                tensor = tensor.view(sys.modules["torch"].int16)
            array: np.ndarray = tensor.numpy()
            self._array = array.view(np.uint16) if self._datatype == BF16 else array
        return self._array

    def to_dlpack(self) -> Any:
        """A capsule of its memory. Raises `TritonModelException` for BYTES, which DLPack has not."""
        return self.__dlpack__()

    def __dlpack__(self, *, stream: Any = None, **options: Any) -> Any:
        if self._foreign is not None:
            return self._foreign.__dlpack__(stream=stream) if stream is not None else self._foreign.__dlpack__()
        array = self.in_memory()
        if array.dtype.hasobject or array.dtype.kind == "S":
            raise TritonModelException("DLPack does not have support for string tensors.")
        if self._datatype == BF16:
            torch = sys.modules.get("torch")
            if torch is None:
                raise TritonModelException("Only torch can make a DLPack tensor of BF16: import it first.")
            return torch.from_numpy(_writable(array.view(np.int16))).view(torch.bfloat16).__dlpack__()
        return _writable(array).__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        if self._foreign is not None:
            kind, index = self._foreign.__dlpack_device__()
            return int(kind), int(index)
        return CPU_DEVICE


def _writable(array: np.ndarray) -> np.ndarray:
    """DLPack has no word for memory that must not be written to, so numpy hands none of it out."""
    return array if array.flags.writeable else array.copy()


def _datatype_of_torch(dtype: Any, torch: Any) -> str | None:
    """By way of numpy, whose type an empty tensor says without a copy of anything."""
    try:
        return datatype_of(torch.empty(0, dtype=dtype).numpy().dtype)
    except TypeError:  # numpy has none
        return None


def _from_capsule(capsule: Any) -> Any:
    """Whose device only a library can tell that reads the capsule; without torch it lies in plain memory."""
    torch = sys.modules.get("torch")
    return np.from_dlpack(_Capsule(capsule)) if torch is None else torch.utils.dlpack.from_dlpack(capsule)


def tensor_named(tensors: Sequence[Tensor], name: str) -> Tensor | None:
    """The one of that name, or None."""
    for tensor in tensors:
        if tensor.name() == name:
            return tensor
    return None

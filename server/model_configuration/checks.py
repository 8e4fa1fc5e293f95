"""What is wrong with a model configuration: the rules of contracts/open-inference.md, sections 4.1, 4.2 and 4.4.

Every sentence names the field by its path, what was expected and what came.
"""

import math
from collections.abc import Iterable, Sequence
from typing import NoReturn

from ringserve.protocol.errors import InvalidModel
from ringserve.protocol.grpc.model_config_pb2 import (
    TYPE_INVALID,
    DataType,
    ModelConfig,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
)
from ringserve.protocol.tensor import ANY, ITEM_BYTES
from ringserve.server.model_configuration.datatypes import dtype_of
from ringserve.server.repository.manifest import check_inside
from ringserve.server.repository.signature import DIMENSIONS_MAX, NAME_CHARS_MAX, ROW_BYTES_MAX, TENSORS_MAX

BATCH_SIZE_MAX = 65_536
GROUPS_MAX = 64
INSTANCES_MAX = 1024
GPUS_MAX = 64
VERSIONS_MAX = 1000


class Checking:
    """Of one configuration; `where` is the file, or whatever it came from."""

    def __init__(self, config: ModelConfig, where: str) -> None:
        self._config = config
        self._where = where

    def _wrong(self, path: str, expected: str, got: object) -> NoReturn:
        raise InvalidModel(f"{self._where}: {path}: expected {expected}, got {got!r:.200}")

    def _check_name(self, path: str, name: str) -> None:
        if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
            self._wrong(path, f"a name of 1 to {NAME_CHARS_MAX} printable characters", name)

    def _check_once(self, path: str, names: Iterable[str]) -> None:
        listed = list(names)
        if len(set(listed)) < len(listed):
            self._wrong(path, "every name once", listed)


class Checker(Checking):
    """Of everything but how requests are put together."""

    def check(self) -> None:
        """Raises `InvalidModel` with the first thing wrong."""
        size = self._config.max_batch_size
        if not 0 <= size <= BATCH_SIZE_MAX:
            self._wrong("max_batch_size", f"0 to {BATCH_SIZE_MAX}", size)
        self._check_tensors("input", self._config.input)
        self._check_tensors("output", self._config.output)
        if self._config.default_model_filename:
            check_inside(f"{self._where}: default_model_filename", self._config.default_model_filename)
        self._check_versions()
        self._check_instances()
        for tag in self._config.metric_tags:
            if not tag.isidentifier() or not tag.isascii():
                self._wrong("metric_tags", "names of letters, digits and underscores", tag)
        if self._config.response_cache.enable and (
            self._config.model_transaction_policy.decoupled or self._config.HasField("sequence_batching")
        ):
            self._wrong("response_cache.enable", "false for a model that is decoupled or has sequences", True)

    def _check_tensors(self, kind: str, tensors: Sequence[ModelInput] | Sequence[ModelOutput]) -> None:
        if len(tensors) > TENSORS_MAX:
            self._wrong(kind, f"at most {TENSORS_MAX} tensors", len(tensors))
        row_bytes = 0
        listed: list[ModelInput | ModelOutput] = [*tensors]
        for index, tensor in enumerate(listed):
            path = f"{kind}[{index}]"
            self._check_name(f"{path}.name", tensor.name)
            if tensor.data_type == TYPE_INVALID or tensor.data_type not in DataType.values():
                self._wrong(f"{path}.data_type", "a datatype like TYPE_FP32", tensor.data_type)
            self._check_dims(f"{path}.dims", tensor.dims)
            if tensor.HasField("reshape"):
                self._check_reshape(path, tensor)
            if isinstance(tensor, ModelOutput) and tensor.label_filename:
                check_inside(f"{self._where}: {path}.label_filename", tensor.label_filename)
            row_bytes += ITEM_BYTES.get(dtype_of(tensor.data_type), 1) * math.prod(max(1, each) for each in tensor.dims)
            if row_bytes > ROW_BYTES_MAX:
                self._wrong(f"{path}.dims", f"tensors of at most {ROW_BYTES_MAX} bytes in all", list(tensor.dims))
        self._check_once(kind, [tensor.name for tensor in tensors])

    def _check_dims(self, path: str, dims: Sequence[int]) -> None:
        if not 0 < len(dims) <= DIMENSIONS_MAX:
            self._wrong(path, f"1 to {DIMENSIONS_MAX} dimensions, without the batch dimension", list(dims))
        if not all(each == ANY or 1 <= each <= ROW_BYTES_MAX for each in dims):
            self._wrong(path, f"lengths of 1 to {ROW_BYTES_MAX}, or -1 for any", list(dims))

    def _check_reshape(self, path: str, tensor: ModelInput | ModelOutput) -> None:
        """The dimensions between those of any length must hold equally many elements on both sides."""
        shape = tensor.reshape.shape
        if shape or not self._config.max_batch_size:
            self._check_dims(f"{path}.reshape.shape", shape)
        if _elements(shape) != _elements(tensor.dims):
            expected = f"as many elements, and dimensions of any length, as dims {list(tensor.dims)}"
            self._wrong(f"{path}.reshape.shape", expected, list(shape))

    def _check_versions(self) -> None:
        policy = self._config.version_policy
        if policy.HasField("latest") and not 1 <= policy.latest.num_versions <= VERSIONS_MAX:
            self._wrong("version_policy.latest.num_versions", f"1 to {VERSIONS_MAX}", policy.latest.num_versions)
        if policy.HasField("specific"):
            versions = list(policy.specific.versions)
            if not 1 <= len(versions) <= VERSIONS_MAX or min(versions) < 1:
                self._wrong("version_policy.specific.versions", f"1 to {VERSIONS_MAX} versions above 0", versions)

    def _check_instances(self) -> None:
        groups = self._config.instance_group
        if len(groups) > GROUPS_MAX:
            self._wrong("instance_group", f"at most {GROUPS_MAX} groups", len(groups))
        self._check_once("instance_group", [group.name for group in groups if group.name])
        for index, group in enumerate(groups):
            path = f"instance_group[{index}]"
            if not 0 <= group.count <= INSTANCES_MAX:
                self._wrong(f"{path}.count", f"0 to {INSTANCES_MAX}", group.count)
            if group.kind not in ModelInstanceGroup.Kind.values():
                self._wrong(f"{path}.kind", "KIND_AUTO, KIND_GPU, KIND_CPU or KIND_MODEL", group.kind)
            if group.gpus and group.kind in (ModelInstanceGroup.KIND_CPU, ModelInstanceGroup.KIND_MODEL):
                self._wrong(f"{path}.gpus", "none beside KIND_CPU and KIND_MODEL", list(group.gpus))
            if len(group.gpus) > GPUS_MAX or any(not 0 <= gpu < 10_000 for gpu in group.gpus):
                self._wrong(f"{path}.gpus", f"at most {GPUS_MAX} numbers of GPUs", list(group.gpus))


def _elements(shape: Sequence[int]) -> list[int]:
    """How many elements the dimensions hold that lie between those of any length."""
    found = [1]
    for each in shape:
        if each == ANY:
            found.append(1)
        else:
            found[-1] *= each
    return found

"""A model configuration that has been read, checked and understood: everything that the rest of the server needs of it, without protobuf."""

from collections.abc import Mapping
from typing import Any

import msgspec

from ringserve.protocol.errors import InvalidModel
from ringserve.protocol.tensor import Signature
from ringserve.server.scheduling.rules import Scheduling


class Configuration(msgspec.Struct, frozen=True):
    """`said` are the fields that somebody gave, `fields` the whole configuration as Triton shows it, but for the model's name.
    `batch_size` is how many items a batch may have; `workers`, which 0 leaves to the server, are so many on each GPU with `per_gpu`, and
    run on `devices`, or anywhere of `device_type`. `label_files` are those of the outputs, by name. What is `without_effect` is
    said and changes nothing here. `reshapes`: the model sees tensors of other shapes than clients."""

    said: dict[str, Any]
    fields: dict[str, Any]
    backend: str
    signature: Signature
    scheduling: Scheduling
    batch_size: int
    workers: int
    per_gpu: bool = False
    devices: tuple[str, ...] = ()
    device_type: str | None = None
    metric_tags: dict[str, str] = {}
    label_files: dict[str, str] = {}
    without_effect: tuple[str, ...] = ()
    reshapes: bool = False


def configure(said: Mapping[str, Any], where: str) -> Configuration:
    """Of what somebody said in Triton's fields; `where` is for the sentences. Imports protobuf. Raises `InvalidModel`."""
    from ringserve.server.model_configuration import reading
    from ringserve.server.model_configuration.understanding import understand

    return understand(reading.from_mapping(said, where), where)


def read_text(text: bytes, where: str) -> dict[str, Any]:
    """What a config.pbtxt says, as the mapping that model-config.yaml would have: every field that is there, checked. Imports protobuf. Raises `InvalidModel`."""
    from ringserve.server.model_configuration import reading
    from ringserve.server.model_configuration.understanding import understand

    return understand(reading.from_text(text, where), where).said


def check_name(configuration: Configuration, name: str, where: str) -> None:
    """Raises `InvalidModel` where the configuration says another name than the model is served by."""
    said = configuration.said.get("name")
    if said and said != name:
        raise InvalidModel(f"{where}: name: expected {name!r}, as the model is called, or none, got {said!r:.200}")

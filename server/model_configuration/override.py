"""The `config` of a repository load: a configuration in JSON that stands in for the model's own."""

from dataclasses import replace

from ringserve.protocol.errors import InvalidModel
from ringserve.server.model_configuration.fields import NESTED, without
from ringserve.server.model_configuration.reading import from_json
from ringserve.server.repository.model_config import parse_model_config
from ringserve.server.repository.store import UnpackedModel, with_labels

PARAMETER = "config"


def overridden_by_json(unpacked: UnpackedModel, text: str, model: str) -> UnpackedModel:
    """The model configured by `text` and by nothing that its own files say in Triton's words; what they say in ours or TorchServe's stays.
    Reads label files: call it in a thread. Raises `InvalidModel`."""
    said = from_json(text, PARAMETER)
    name = said.get("name")
    if name is not None and name != model:
        raise InvalidModel(f"{PARAMETER}: name: expected {model!r}, as the model is called, or none, got {name!r:.200}")
    before = unpacked.config
    if not said.get("backend") and not said.get("platform") and before.triton is not None:
        said["backend"] = before.triton.backend
    raw = {**without(before.raw), NESTED: said}
    return with_labels(replace(unpacked, config=parse_model_config(raw, PARAMETER)))

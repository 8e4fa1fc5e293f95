"""A model configuration out of what people write: a mapping (YAML, JSON) or the text of config.pbtxt.

Both become the one message, `inference.ModelConfig`. What has no field there is refused with its path: a misspelt field would change
what clients are answered, and nobody would see it.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from google.protobuf import json_format, text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from ringserve.protocol.errors import InvalidModel
from ringserve.protocol.grpc.model_config_pb2 import ModelConfig
from ringserve.server.model_configuration.fields import unknown_field

TEXT_BYTES_MAX = 1 << 20
_IN_MESSAGE = re.compile(r"\bModelConfig\.?")
_LIST = "a list"


def from_mapping(mapping: Mapping[str, Any], where: str) -> ModelConfig:
    """The message of a mapping with Triton's names; numbers may be given as text, as JSON's 64-bit ones are. Raises `InvalidModel`."""
    _check_fields(mapping, ModelConfig.DESCRIPTOR, "", where)
    try:
        return json_format.ParseDict(dict(mapping), ModelConfig())
    except (json_format.ParseError, ValueError, TypeError, OverflowError, RecursionError, AttributeError) as error:
        raise InvalidModel(f"{where}: {_IN_MESSAGE.sub('', str(error))[:500]}") from None


def from_text(text: bytes, where: str) -> ModelConfig:
    """The message of a config.pbtxt. Raises `InvalidModel` with the line and column of the mistake."""
    if len(text) > TEXT_BYTES_MAX:
        raise InvalidModel(f"{where}: expected at most {TEXT_BYTES_MAX} bytes, got more")
    try:
        return text_format.Parse(text.decode("utf-8"), ModelConfig())
    except UnicodeDecodeError as error:
        raise InvalidModel(f"{where}: expected text in UTF-8, got {error.object[error.start :][:8]!r}") from None
    except (text_format.ParseError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidModel(f"{where}: {str(error)[:500]}") from None


def from_json(text: str | bytes, where: str) -> dict[str, Any]:
    """The mapping that a repository load's `config` is, not yet read. Raises `InvalidModel`."""
    if len(text) > TEXT_BYTES_MAX:
        raise InvalidModel(f"{where}: expected at most {TEXT_BYTES_MAX} bytes, got more")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidModel(f"{where}: expected JSON: {str(error)[:200]}") from None
    if not isinstance(value, dict):
        raise InvalidModel(f"{where}: expected a JSON object, got {value!r:.100}")
    return value


def _check_fields(value: object, of: Descriptor, path: str, where: str) -> None:
    """That all keys are fields, spelt as Triton does or as protobuf's JSON does, and that lists are where there may be several."""
    if not isinstance(value, Mapping):
        raise InvalidModel(f"{where}: {path or 'configuration'}: expected a mapping of fields, got {value!r:.100}")
    for key, each in value.items():
        field = of.fields_by_name.get(key) or of.fields_by_camelcase_name.get(key) if isinstance(key, str) else None
        if field is None:
            raise unknown_field(where, f"{path}.{key}".lstrip("."), of.fields_by_name)
        _check_value(each, field, f"{path}.{key}".lstrip("."), where)


def _check_value(value: object, field: FieldDescriptor, path: str, where: str) -> None:
    if value is None:
        return
    message = field.message_type
    if message is not None and message.GetOptions().map_entry:
        if not isinstance(value, Mapping):
            raise InvalidModel(f"{where}: {path}: expected a mapping, got {value!r:.100}")
        entry = message.fields_by_name["value"]
        for key, each in value.items():
            _check_value(each, entry, f"{path}[{key}]", where)
        return
    several = isinstance(value, list | tuple)
    if field.is_repeated != several:
        expected = _LIST if field.is_repeated else "one value"
        raise InvalidModel(f"{where}: {path}: expected {expected}, got {value!r:.100}")
    if message is not None:
        entries: Any = value if several else [value]
        for index, each in enumerate(entries):
            _check_fields(each, message, f"{path}[{index}]" if several else path, where)

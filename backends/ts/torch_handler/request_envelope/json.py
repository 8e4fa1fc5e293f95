"""The envelope `json`: requests `{"instances": [...]}` and answers `{"predictions": [...]}`, as TensorFlow Serving has them."""

import binascii
import json
from base64 import b64decode
from typing import Any

from ringserve.backends.ts.handler_utils.preprocess.rows import refusal
from ringserve.backends.ts.torch_handler.request_envelope.rows import (
    CountedEnvelope,
    instances_of,
    json_value,
    shown,
)

BASE64 = "b64"


class JSONEnvelope(CountedEnvelope):
    """The handler is given the instances of all requests in one list. An instance `{"b64": text}`, and a column of one, is
    decoded to bytes."""

    def format_output(self, data: Any) -> list[str]:
        """The JSON text of each request's answer."""
        counts = self._counts
        bodies = [self._to_json(answers[:count]) for answers, count in zip(self._split(data), counts, strict=True)]
        self._say_json(len(bodies))
        return bodies

    def _inputs_of(self, row: int, data: dict[str, Any]) -> list[Any]:
        return self._from_json(data)

    def _from_json(self, data: dict[str, Any]) -> list[Any]:
        """The instances in one request: of its input `data`, its body, or a form with a field `instances`."""
        instances = json_value(instances_of(json_value(data.get("data") or data.get("body") or data), "json"))
        if not isinstance(instances, list):
            raise refusal(f"instances: expected a list, got {shown(instances)}.")
        return [_decoded(instance, f"instances[{number}]") for number, instance in enumerate(instances)]

    def _to_json(self, output: Any) -> str:
        return json.dumps({"predictions": output})


def _decoded(instance: Any, where: str) -> Any:
    if not isinstance(instance, dict):
        return instance
    if instance.keys() == {BASE64}:
        return _bytes_of(instance, where)
    for name, column in instance.items():
        if isinstance(column, dict) and column.keys() == {BASE64}:
            instance[name] = _bytes_of(column, f"{where}.{name}")
    return instance


def _bytes_of(value: dict[str, Any], where: str) -> bytes:
    try:
        return b64decode(value[BASE64])
    except (binascii.Error, TypeError, ValueError) as error:
        raise refusal(f"{where}.{BASE64}: expected base64: {error}") from None

"""Whether an answer is the one that TorchServe gave: the code, the messages, the sentence of an error."""

import base64
import json
from collections.abc import Mapping
from typing import Any

# What differs from run to run.
VOLATILE = frozenset(("id", "startTime", "pid", "memoryUsage", "gpu", "gpuUsage", "modelUrl", "jobQueueStatus"))


def difference(recorded: Mapping[str, Any], got: Mapping[str, Any]) -> str:
    """What differs, "" for nothing."""
    if recorded["code"] != got["code"]:
        return f"expected {recorded['code']}, got {got['code']}: {_said(recorded)!r:.300} | {_said(got)!r:.300}"
    if recorded["code"] != "OK" and recorded["details"] != got["details"]:
        return f"{recorded['details']!r:.300} | {got['details']!r:.300}"
    left, right = [_settled(each) for each in recorded["messages"]], [_settled(each) for each in got["messages"]]
    return "" if left == right else f"{left!r:.500} | {right!r:.500}"


def _said(said: Mapping[str, Any]) -> Any:
    return said.get("details") or [_settled(each) for each in said["messages"]]


def _settled(message: Mapping[str, Any]) -> Any:
    """A message with its texts taken apart, and without what differs from run to run."""
    found = dict(message)
    if "prediction" in found:
        found["prediction"] = _parsed(base64.b64decode(found["prediction"]))
    if "msg" in found:
        found["msg"] = _parsed(found["msg"].encode())
    return _without(found)


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text.decode("utf-8", "replace")


def _without(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without(each) for name, each in value.items() if name not in VOLATILE}
    return [_without(each) for each in value] if isinstance(value, list) else value

"""The sections of model-config.yaml that are ours: devices, placement, recycling, autoscaling, warm-up.

devices: [cuda:0, cuda:1]                    # or cpu, or the UUID of a GPU or of a MIG slice
placement: {policy: least_memory, memory: 2GiB}
recycle: {max_requests: 100000, max_rss: 4GiB, max_age: 24h}
autoscaling: {up_wait_ms: 100, up_after_s: 1, down_after_s: 60}
warmup:
  - {file: sample.jpg, content_type: image/jpeg, repeat: 3}
  - {json: {text: hello}}

A typo in one of them would change where a model runs or when it ends, so what is wrong is refused, never ignored.
"""

import re
from collections.abc import Mapping, Sequence
from functools import cache
from mimetypes import MimeTypes
from typing import Any

import msgspec

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.manifest import check_inside

POLICIES = ("round_robin", "least_memory")
DEVICE = re.compile(r"cpu|cuda:[0-9]{1,4}|(?:GPU|MIG)-[0-9A-Za-z/-]{1,100}")
DEVICES_MAX = 256
SAMPLES_MAX = 64
REPEAT_MAX = 1000
NO_ENVELOPE = "none"
_SIZE = re.compile(r"([0-9]{1,15})\s*([KMGT]i?)?B?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*(s|m|h|d)?")
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86_400}


class PlacementWish(msgspec.Struct, frozen=True):
    """Where the workers of a version may run. Without `devices` TorchServe's keys decide; `memory_bytes` is what one worker needs
    of its device, 0 for not said."""

    devices: tuple[str, ...] = ()
    policy: str = POLICIES[0]
    memory_bytes: int = 0


class Recycle(msgspec.Struct, frozen=True):
    """When a worker is replaced by a fresh one; 0 is never."""

    max_requests: int = 0
    max_rss_bytes: int = 0
    max_age_s: float = 0.0


class Autoscaling(msgspec.Struct, frozen=True):
    """Between minWorkers and maxWorkers: one more when requests have waited `up_wait_ms` for `up_after_s`, one less when one could
    have been spared for `down_after_s`."""

    up_wait_ms: int = 100
    up_after_s: float = 1.0
    down_after_s: float = 60.0


class Sample(msgspec.Struct, frozen=True):
    """A request that is made `repeat` times before the first client's: a file of the archive, or a body given in the
    configuration itself."""

    file: str | None = None
    body: bytes = b""
    content_type: str = "application/octet-stream"
    repeat: int = 1


class Sections(msgspec.Struct, frozen=True):
    placement: PlacementWish = PlacementWish()
    recycle: Recycle = Recycle()
    autoscaling: Autoscaling = Autoscaling()
    warmup: tuple[Sample, ...] = ()


def parse_sections(raw: Mapping[str, Any], file_name: str) -> Sections:
    """Raises `InvalidModel` naming the key, what was expected and what came."""
    placement = _Section(raw, "placement", ("policy", "memory"), file_name)
    recycle = _Section(raw, "recycle", ("max_requests", "max_rss", "max_age"), file_name)
    scaling = _Section(raw, "autoscaling", ("up_wait_ms", "up_after_s", "down_after_s"), file_name)
    default = Autoscaling()
    return Sections(
        PlacementWish(_devices(raw, file_name), placement.choice("policy", POLICIES), placement.size("memory")),
        Recycle(recycle.count("max_requests"), recycle.size("max_rss"), recycle.duration("max_age", 0.0)),
        Autoscaling(
            scaling.count("up_wait_ms", default.up_wait_ms),
            scaling.duration("up_after_s", default.up_after_s),
            scaling.duration("down_after_s", default.down_after_s),
        ),
        _samples(raw, file_name),
    )


def parse_envelope(raw: Mapping[str, Any], file_name: str) -> str | None:
    """`envelope`: what the model's handler is wrapped in, "none" for nothing; None where the server decides. Raises `InvalidModel`."""
    name = raw.get("envelope")
    if name is None:
        return None
    if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
        raise InvalidModel(
            f"{file_name}: envelope: expected the name of an envelope or {NO_ENVELOPE}, got {name!r:.100}"
        )
    backend = raw.get("backend", "handler")
    if backend != "handler" and name != NO_ENVELOPE:
        raise InvalidModel(f"{file_name}: envelope: only handlers have one, got {name!r} for the backend {backend!r}")
    return name


def _devices(raw: Mapping[str, Any], file_name: str) -> tuple[str, ...]:
    value = raw.get("devices")
    if value is None:
        return ()
    if (
        isinstance(value, list)
        and 0 < len(value) <= DEVICES_MAX
        and all(isinstance(each, str) and DEVICE.fullmatch(each) for each in value)
    ):
        return tuple(value)
    expected = "a list of cpu, cuda:<number>, GPU-<uuid> or MIG-<uuid>"
    raise InvalidModel(f"{file_name}: devices: expected {expected}, got {value!r:.200}")


def _samples(raw: Mapping[str, Any], file_name: str) -> tuple[Sample, ...]:
    entries = raw.get("warmup")
    if entries is None:
        return ()
    if not isinstance(entries, list) or len(entries) > SAMPLES_MAX:
        expected = f"a list of at most {SAMPLES_MAX} samples"
        raise InvalidModel(f"{file_name}: warmup: expected {expected}, got {entries!r:.200}")
    return tuple(_sample(entry, f"{file_name}: warmup[{index}]") for index, entry in enumerate(entries))


def _sample(entry: object, where: str) -> Sample:
    sources = ("file", "json", "text")
    if not isinstance(entry, dict) or sum(key in entry for key in sources) != 1:
        raise InvalidModel(f"{where}: expected a mapping with one of {', '.join(sources)}, got {entry!r:.200}")
    unknown = [key for key in entry if key not in (*sources, "content_type", "repeat")]
    if unknown:
        raise InvalidModel(f"{where}: expected {', '.join(sources)}, content_type and repeat, got {unknown[0]!r}")
    repeat = entry.get("repeat", 1)
    if not _is_int(repeat) or not 1 <= repeat <= REPEAT_MAX:
        raise InvalidModel(f"{where}.repeat: expected 1 to {REPEAT_MAX}, got {repeat!r:.200}")
    content_type = entry.get("content_type")
    if content_type is not None and not (isinstance(content_type, str) and content_type.isprintable()):
        raise InvalidModel(f"{where}.content_type: expected a word like image/jpeg, got {content_type!r:.200}")
    if "json" in entry:
        try:
            return Sample(None, msgspec.json.encode(entry["json"]), content_type or "application/json", repeat)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidModel(f"{where}.json: expected what JSON can say: {error}") from None
    text = entry.get("text", entry.get("file"))
    if not isinstance(text, str) or not text:
        raise InvalidModel(f"{where}: expected a string, got {text!r:.200}")
    if "text" in entry:
        return Sample(None, text.encode(), content_type or "text/plain", repeat)
    check_inside(f"{where}.file", text)
    return Sample(text, b"", content_type or content_type_of(text), repeat)


@cache
def _mime_types() -> MimeTypes:
    return MimeTypes()


def content_type_of(file_name: str) -> str:
    """By the file's extension, from Python's own table: that of the machine would make a model's requests depend on where it
    runs."""
    kind, coding = _mime_types().guess_type(file_name, strict=False)
    return kind if kind is not None and coding is None else "application/octet-stream"


class _Section:
    """One mapping of the file; every key in it is ours."""

    def __init__(self, raw: Mapping[str, Any], name: str, keys: Sequence[str], file_name: str) -> None:
        value = raw.get(name)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise InvalidModel(f"{file_name}: {name}: expected a mapping of {', '.join(keys)}, got {value!r:.200}")
        for key in value:
            if key not in keys:
                raise InvalidModel(f"{file_name}: {name}: expected {', '.join(keys)}, got the key {key!r:.100}")
        self._values = value
        self._where = f"{file_name}: {name}"

    def choice(self, key: str, accepted: Sequence[str]) -> str:
        value = self._values.get(key, accepted[0])
        if value not in accepted:
            raise self._refusal(key, f"one of {', '.join(accepted)}", value)
        return str(value)

    def count(self, key: str, default: int = 0) -> int:
        value = self._values.get(key, default)
        if not _is_int(value) or not 0 <= value <= 2**53:
            raise self._refusal(key, "a whole number, 0 or more", value)
        return int(value)

    def size(self, key: str) -> int:
        """Bytes: a number, or a number with a unit of 1024 (KiB, MB, G)."""
        value = self._values.get(key, 0)
        match = _SIZE.fullmatch(str(value)) if _is_int(value) or isinstance(value, str) else None
        if match is None:
            raise self._refusal(key, "a size like 512MiB or 4GiB", value)
        return int(match[1]) << (10 * _POWERS[(match[2] or "")[:1].lower()])

    def duration(self, key: str, default: float) -> float:
        """Seconds: a number, or a number with s, m, h or d."""
        value = self._values.get(key, default)
        known = isinstance(value, int | float | str) and not isinstance(value, bool)
        match = _DURATION.fullmatch(str(value)) if known else None
        if match is None:
            raise self._refusal(key, "a time like 30s, 15m or 24h", value)
        return float(match[1]) * _SECONDS[match[2] or ""]

    def _refusal(self, key: str, expected: str, value: object) -> InvalidModel:
        return InvalidModel(f"{self._where}.{key}: expected {expected}, got {value!r:.200}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)

"""The words of the suite's tables: archives, what is asked of them, and what the contract says the answer is."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

Judge = Callable[[bytes], bool]


class Tool(Enum):
    """What packs an archive."""

    OURS = "the function behind `ringserve archive`"
    COMMAND = "`ringserve archive`"
    THEIRS = "the package torch-model-archiver"
    THEIR_COMMAND = "`torch-model-archiver`"
    HAND = "zip: what no archiver writes"


@dataclass(frozen=True, slots=True)
class Archive:
    """One model. `source` is a file of `archives/`, or a folder with the handler and, in `extra`, what is packed beside it; by
    hand, all of the folder is packed. `manifest` replaces keys of the manifest's model, or, with None, removes them; `runtime` is
    the manifest's. What is `written` is a file of the archive with that text."""

    name: str
    source: str = ""
    handler: str = ""  # file[:function] in that folder; "": the source itself, or `handler.py` in it
    config: str = ""
    version: str = "1.0"
    runtime: str = "python"
    tool: Tool = Tool.OURS
    manifest: Mapping[str, Any] = field(default_factory=dict)
    serialized_file: str = ""
    model_file: str = ""
    written: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ask:
    """One request and its answer. `path` follows the model's name, or is all of it when it begins with a `/`. `headers` of the
    answer may name what must be absent, with None. `torchserve` says why TorchServe answers otherwise: a defect of its that
    the contract lists, or what RingServe adds."""

    what: str
    body: bytes | None = None
    content_type: str = ""
    method: str = "POST"
    path: str = ""
    asked_with: Mapping[str, str] = field(default_factory=dict)
    parts: Sequence[tuple[str, Any]] = ()  # of multipart/form-data, as httpx has its files
    status: int = 200
    answer: bytes | Judge = b""
    headers: Mapping[str, str | None] = field(default_factory=dict)
    phrase: str | None = None
    chunks: bool = False  # whether the answer comes in parts
    ends_early: bool = False  # whether the connection closes before the last one
    torchserve: str = ""


@dataclass(frozen=True, slots=True)
class Together:
    """Requests that are sent at once, each on a connection of its own, to be one batch."""

    what: str
    asks: tuple[Ask, ...]


@dataclass(frozen=True, slots=True)
class Case:
    """An archive that is served, and the conversation with it, in its order."""

    archive: Archive
    asks: tuple[Ask | Together, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """An archive whose worker cannot load it: the words that the answer to its registration has."""

    archive: Archive
    words: tuple[str, ...]


# ---- short ways to write them


def says(what: str, body: bytes | str | None, answer: bytes | str | Judge, **more: Any) -> Ask:
    """A raw body, and a text or bytes for an answer."""
    sent = body.encode() if isinstance(body, str) else body
    wanted = answer.encode() if isinstance(answer, str) else answer
    return Ask(what, sent, answer=wanted, **more)


def tells(what: str, body: bytes | str | None, value: Any, **more: Any) -> Ask:
    """The same with an answer in JSON, byte for byte as Python writes it with two spaces."""
    return says(what, body, json.dumps(value, indent=2), **more)


def fails(what: str, body: bytes | str | None, status: int, message: str | Judge, **more: Any) -> Ask:
    """An answer in the form of errors. `message` may judge the sentence."""
    kind = more.pop("kind", "InternalServerException")

    def judge(answer: bytes) -> bool:
        error = json.loads(answer)
        said = error["message"]
        right = said == message if isinstance(message, str) else message(said.encode())
        return bool(right) and (error["code"], error["type"]) == (status, kind)

    return says(what, body, judge, status=status, **more)


def has(*words: str) -> Judge:
    """All of these are in it."""
    return lambda answer: all(word.encode() in answer for word in words)


def order(**wanted: Any) -> dict[str, Any]:
    """A JSON body, for the handlers that do what it says."""
    return {"body": json.dumps(wanted).encode(), "content_type": "application/json"}

"""How an archive says what is to be called, what loading makes of it, and what describes a model (contract 10.1, 10.3, 2.5).

Each archive is registered with a worker, asked, and removed.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.inference.talk import Ask, Peer, Step

MODULE = "service.py"
JSON = {"content-type": "application/json"}
FORM = {"content-type": "application/x-www-form-urlencoded"}


@dataclass(frozen=True, slots=True)
class Archive:
    """`files` by name. `name` of the model is also that of its file."""

    name: str
    files: Mapping[str, str]
    handler: str = MODULE
    version: str = "1.0"
    config: str = ""
    manifest: Mapping[str, object] = field(default_factory=dict)  # more of the manifest's "model"


def module(name: str, source: str, handler: str = MODULE, **more: str) -> Archive:
    return Archive(name, {MODULE: source, **more}, handler)


def function(answer: str, name: str = "handle", before: str = "", otherwise: str = "None") -> str:
    """The source of a function that answers each batch with a list of one."""
    return f"{before}\ndef {name}(data, context):\n    return [{answer}] if data else {otherwise}\n"


CLASS = """
class Model:
    def initialize(self, context):
        self.loaded = context.model_name
    def handle(self, data, context):
        return [self.loaded]
"""
REPLACED = CLASS.replace("self.loaded =", "self.handle = lambda data, context: ['replaced']; self.loaded =")
BARE = "class Model:\n    def handle(self, data, context):\n        return ['bare']\n"
CALLABLE = "class _C:\n    def __call__(self, data, context):\n        return ['called']\nhandle = _C()\n"
COUNTING = (
    "n = 0\ndef handle(data, context):\n    global n\n    n += data is not None\n    return [n] if data else None"
)
ASKED = "context.get_request_header(0, 'describe')"
REFUSING = f"""
def handle(data, context):
    if data and {ASKED}:
        raise ValueError('no')
    return ['x'] if data else None
"""
LOADS = (
    module("function", function("sorted(data[0])")),
    module("named", function("'named'", "predict"), "service.py:predict"),
    module("without-py", function("'without'"), "service"),
    module("class", CLASS),
    module("class-and-imported", "from collections import Counter, OrderedDict\n" + CLASS),
    module("class-and-absent-name", CLASS, "service.py:absent"),
    module(
        "subclass",
        "from helper import Base\nclass Model(Base):\n    pass\n",
        **{"helper.py": CLASS.replace("Model", "Base")},
    ),
    module("replaced", REPLACED),
    module("lambda", "handle = lambda data, context: ['x'] if data else None"),
    module("callable", CALLABLE),
    module("state", COUNTING),
    module("loaded-once", function("calls", before="calls = []", otherwise="calls.append(data)")),
    module("prints", function("print('more')", before="print('said')")),
    module("files", function("open('words.txt').read()"), **{"words.txt": "in the archive"}),
    module("helpers", function("helper.x", before="import helper"), **{"helper.py": "x = 'helped'"}),
    module(
        "package",
        function("x", before="from pack.inner import x"),
        **{"pack/__init__.py": "", "pack/inner.py": "x = 1"},
    ),
    module("answers-the-load", function("'x'", otherwise="['loaded']")),
    Archive("configured", {MODULE: function("context.model_yaml_config")}, config="handler:\n  a: [1, x]\nown: true\n"),
    Archive("told", {MODULE: function("context.manifest['model']")}, manifest={"description": "told"}),
)
FAILS = (
    module("other-name", function("'function'") + CLASS, "service.py:Model"),
    module("bare", BARE),
    Archive("nested", {"src/service.py": function("'nested'")}, "src/service.py"),
    module("raises", "def handle(data, context):\n    raise ValueError('on purpose')"),
    module("import-error", "import no_such_module\n" + CLASS),
    module("syntax-error", "def handle(:\n"),
    module("two-classes", CLASS + "class Other:\n    pass\n"),
    module("nothing", "x = 1"),
    module("exits", "import sys\nsys.exit(3)"),
    module("absent", "x = 1", "other.py"),
)
DESCRIBES = (
    module("described", function(f"{{'says': {ASKED}, 'inputs': data}} if {ASKED} else 'x'")),
    module("described-by-text", function("'text'")),
    module("described-by-json", function("'[1, 2]'")),
    module("not-described", REFUSING),
)
ARCHIVES = (*LOADS, *FAILS, *DESCRIBES)
WITH_WORKER = "initial_workers=1&synchronous=true"


def registered(peer: Peer, archive: Archive) -> Iterator[Step]:
    yield from peer.manage(Ask(f"POST /models?url={archive.name}.mar&{WITH_WORKER}"))


def removed(peer: Peer, archive: Archive) -> None:
    """No step: what is removed is the matter of other conversations."""
    list(peer.manage(Ask(f"DELETE /models/{archive.name}")))


def loads(peer: Peer) -> Iterator[Step]:
    for archive in LOADS:
        yield from registered(peer, archive)
        yield from peer.say(*(Ask(f"POST /predictions/{archive.name}", b"x") for _ in range(2)))
        removed(peer, archive)


def fails(peer: Peer) -> Iterator[Step]:
    """Only the status of what is refused: the sentences are RingServe's."""
    for archive in FAILS:
        for label, seen in registered(peer, archive):
            yield label, {"status": seen["status"]}
        removed(peer, archive)


def describes(peer: Peer) -> Iterator[Step]:
    for archive in DESCRIBES:
        yield from registered(peer, archive)
        yield from described(peer, archive.name)
        removed(peer, archive)


def described(peer: Peer, model: str) -> Iterator[Step]:
    for label, seen in peer.manage(Ask(f"GET /models/{model}?customized=true")):
        yield label, customized(seen)
    yield from peer.say(Ask(f"GET /predictions/{model}", headers={"describe": "True"}, note="with describe"))


HOOKED = (
    Ask("POST /predictions/hooks", b"[1.5, 2]", JSON, "numbers"),
    Ask("POST /predictions/hooks", b"[[1, 2], [3, 4]]", JSON, "lists"),
    Ask("POST /predictions/hooks", b"7", JSON, "a number"),
    Ask("POST /predictions/hooks", b"2.5", note="a number as bytes"),
    Ask("POST /predictions/hooks", b"x", note="no number"),
    Ask("POST /predictions/hooks", b"data=3&target=2", FORM, "a form"),
    Ask("POST /explanations/hooks", b"[1.5, 2]", JSON, "numbers"),
    Ask("POST /explanations/hooks", b"data=3&target=2", FORM, "a form"),
    Ask("POST /v1/models/hooks:predict", b"[1]", JSON),
    Ask("POST /v1/models/hooks:explain", b"[1]", JSON),
    Ask("POST /v2/models/hooks/infer", b"[1]", JSON),
    Ask("POST /v2/models/hooks/explain", b"[1]", JSON),
    Ask("POST /invocations?model_name=hooks", b"[1]", JSON),
)


def hooks(peer: Peer) -> Iterator[Step]:
    """Of a handler made from `BaseHandler`."""
    yield from peer.say(*HOOKED)
    yield from described(peer, "hooks")


def customized(seen: dict[str, Any]) -> dict[str, Any]:
    """What the model says of itself, and nothing of the rest."""
    if seen["status"] != 200:
        return seen
    return {"status": 200, "customized": json.loads(seen["body"])[0].get("customizedMetadata", "<none>")}

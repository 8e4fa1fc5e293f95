"""How handlers are written and packed: functions and classes, where they lie, and what a manifest may say (contract 9.2, 10.1)."""

from tests.e2e.suite.cases import Archive, Ask, Case, Refusal, Tool, fails, says, tells

CAPTURED_BEFORE = "RingServe looks `handle` up for each batch; TorchServe has bound it before `initialize`"
JSON = "application/json"
SEVEN = b'{"number": 7}'
NAMES = ("backends", "benchmarks", "client", "model", "server", "tests", "ts_helpers", "utils")
PACKAGES = ("protocol.errors", "shm.ring", "tools.cli")


def namesakes(name: str) -> Archive:
    """Modules and packages by names that the other one has too, and that are folders of the server's."""
    files = {f"extra/{each}.py": f'WHO = "{name}"\n' for each in NAMES}
    for each in PACKAGES:
        package, _, module = each.partition(".")
        files |= {f"extra/{package}/__init__.py": "", f"extra/{package}/{module}.py": f'WHO = "{name}"\n'}
    return Archive(name, "namesakes.py", written=files, tool=Tool.THEIRS if name.endswith("one") else Tool.OURS)


FUNCTIONS = (
    Case(Archive("hello", "hello.py"), (says("a function answers", b"x", "hello from hello"),)),
    Case(
        Archive("entry", "entry.py", handler="entry:predict_tokens", tool=Tool.THEIR_COMMAND),
        (tells("a function by another name is called", b"a b c", [1, 2, 0]),),
    ),
    Case(
        Archive("counter", "counter.py", tool=Tool.COMMAND),
        (
            tells("the module is loaded once and called once before", b"", {"calls": 2, "rows": 1}),
            tells("its state lives on", b"", {"calls": 3, "rows": 2}),
        ),
    ),
    Case(
        Archive("service-object", "service_object", tool=Tool.THEIRS),
        (
            tells("an object of the module serves", b"the end of a story", {"words": 2}),
            tells("also a form's field", None, {"words": 1}, parts=(("data", (None, "the end")),)),
        ),
    ),
)

CLASSES = (
    Case(
        Archive("class-style", "class_style.py", tool=Tool.THEIRS),
        (
            tells("a class is made and initialized once", SEVEN, {"doubled": 14, "loaded": 1}, content_type=JSON),
            tells("and not again", SEVEN, {"doubled": 14, "loaded": 1}, content_type=JSON),
        ),
    ),
    Case(
        Archive("no-initialize", "no_initialize.py"),
        (says("a class needs no initialize", b"abc", "ABC", torchserve="a class without `initialize` is not loaded"),),
    ),
    Case(
        Archive("replaced", "replaced.py"),
        (says("a replaced handle is the one that is called", b"x", "fast", torchserve=CAPTURED_BEFORE),),
    ),
    Case(
        Archive("dataclass-style", "dataclass_style.py", tool=Tool.THEIRS),
        (
            tells("a dataclass serves", b"a", {"a": 1}),
            tells("and keeps its fields", b"b", {"a": 1, "b": 1}),
        ),
    ),
    Case(
        Archive("metaclass-style", "metaclass_style", tool=Tool.THEIRS),
        (
            tells(
                "a class with a base elsewhere is the only one",
                b"abc",
                {"reversed": "cba", "classes": ["Handler", "Reversing"]},
            ),
        ),
    ),
)

PLACES = (
    Case(
        Archive("in-a-folder", "in_a_folder", handler="src/handler.py", tool=Tool.HAND),
        (
            tells(
                "a handler in a folder finds its neighbours and the root",
                b"",
                ["neighbour", "root", "package"],
                torchserve="it finds no handler in a folder of the archive",
            ),
        ),
    ),
    Case(
        Archive("packages", "packages", tool=Tool.THEIR_COMMAND),
        (says("packages of the archive are imported", b"<b> loud*</b> ", "*LOUD*"),),
    ),
    *(
        Case(namesakes(name), (tells("modules of the same names are its own", b"", [name]),))
        for name in ("namesake-one", "namesake-two")
    ),
    Case(
        Archive("files", "files", serialized_file="weights.pkl", tool=Tool.COMMAND),
        (
            tells(
                "files are found in every way",
                b"",
                {
                    "labels": [["cat", "dog"], ["cat", "dog"], ["in", "a", "folder"], ["cat", "dog"], ["cat", "dog"]],
                    "weights": {"scale": 3, "bias": [1, 2]},
                    "manifest": True,
                },
            ),
        ),
    ),
    Case(
        Archive("labels", "labels", tool=Tool.THEIRS),
        (
            tells(
                "the helpers of ts.utils.util do as they say",
                b"",
                {"labels": {"cat": 0.75, "dog": 0.25}, "classes": ["Labels"]},
            ),
        ),
    ),
)

YAML = """
minWorkers: 1
maxWorkers: 1
batchSize: 2
maxBatchDelay: 1
handler:
  threshold: 0.25
  labels: [cat, dog]
mine:
  deep: {deeper: [1, two, null]}
"""

CONFIGURATIONS = (
    Case(
        Archive("yaml-config", "yaml_config.py", config=YAML, tool=Tool.THEIRS),
        (
            tells(
                "model-config.yaml reaches the handler",
                b"",
                {
                    "threshold": 0.25,
                    "labels": ["cat", "dog"],
                    "nested": [1, "two", None],
                    "batchSize": 2,
                    "missing": "a default",
                },
            ),
        ),
    ),
    Case(
        Archive("no-config", "no_config.py", tool=Tool.THEIRS),
        (
            tells(
                "without one there is an empty one",
                b"",
                {
                    "config": {},
                    "gpu_id": None,
                    "batch_size": 1,
                    "server_name": "MMS",
                    "limit_max_image_pixels": True,
                    "in_its_folder": True,
                    "model_name": "no-config",
                    "handler": "no_config.py",
                },
            ),
        ),
    ),
)


def plain(name: str, version: object, handler: str = "plain.py", **more: object) -> Case:
    """One of the manifests that are around."""
    seen = {"version": version, "handler": handler, "name": name}
    return Case(Archive(name, "plain.py", **more), (tells("the manifest is understood", b"", seen),))  # type: ignore[arg-type]


LEGACY = {"description": "old", "modelVersion": "1.0", "extensions": {}, "sourceVocab": "none.pt", "version": "0.1"}
MANIFESTS = (
    plain("runtime-python3", "1.0", runtime="python3", tool=Tool.THEIRS),
    plain("legacy-keys", "1.0", manifest=LEGACY, tool=Tool.HAND),
    plain("no-version", None, manifest={"modelVersion": None}, tool=Tool.HAND),
    plain("numeric-version", 2.5, manifest={"modelVersion": 2.5}, tool=Tool.HAND),
    plain("without-py", "1.0", handler="plain", manifest={"handler": "plain"}),
    plain("with-function", "1.0", handler="plain:handle", manifest={"handler": "plain:handle"}, tool=Tool.HAND),
)

TENSORS = "application/octet-stream"
CONTENT_TYPE = "TorchServe says no content type of its own (section 15, 14)"


def hook(name: str, handler: str, *asks: Ask, model_file: str = "two_by_two.py", config: str = "") -> Case:
    archive = Archive(name, "hooks", handler=handler, model_file=model_file, config=config)
    return Case(archive, asks)


def is_the_tensor_one(answer: bytes) -> bool:
    """What `torch.save` writes, whichever version of it: a zip."""
    return answer.startswith(b"PK\x03\x04") and b"data.pkl" in answer


TORCH = (
    Case(
        Archive("preprocess-only", "hooks", handler="preprocess_only.py", model_file="two_by_two.py", tool=Tool.THEIRS),
        (
            tells("one hook of BaseHandler is overridden", content_type=JSON, body=b"[1, 1]", value=[3.5, 6.5]),
            fails("what is no tensor fails", b'["x", 1]', 503, "Prediction failed", content_type=JSON),
        ),
    ),
    hook(
        "inference-only",
        "inference_only.py",
        tells("one hook of BaseHandler is overridden", b"[1, 0]", [10.5, 29.5], content_type=JSON),
    ),
    hook(
        "postprocess-only",
        "postprocess_only.py",
        says(
            "a tensor is saved",
            b"[1, 1]",
            is_the_tensor_one,
            content_type=JSON,
            headers={"content-type": TENSORS},
            torchserve=CONTENT_TYPE,
        ),
        config="tensors: true\n",
    ),
    hook(
        "own-loader",
        "own_loader.py",
        tells("a loader of its own is used", b"[1, 3]", [2.0, 2.0], content_type=JSON),
    ),
)

ENTRY_POINTS = (*FUNCTIONS, *CLASSES, *PLACES, *CONFIGURATIONS, *MANIFESTS, *TORCH)


def broken(name: str, text: str, *words: str, handler: str = "handler.py") -> Refusal:
    """A handler that is one text."""
    return Refusal(Archive(name, handler=handler, tool=Tool.HAND, written={"handler.py": text}), words)


NO_STREAMS = """
import sys, threading, time
threading.Thread(target=time.sleep, args=(1000,)).start()
sys.stdout.close()
sys.stdout = sys.stderr = None
raise OSError("no such weights")
"""
DOWN = "raise OSError('no such weights')"
REFUSALS = (
    broken(
        "bad-initialize",
        f"class A:\n  def initialize(self, context):\n    {DOWN}\n  def handle(self, d, c): ...\n",
        "OSError: no such weights",
    ),
    broken("bad-function", f"def handle(data, context):\n    {DOWN}\n", "OSError: no such weights"),
    broken("bad-import", "import not_installed_anywhere\n", "No module named 'not_installed_anywhere'"),
    broken("bad-syntax", "def handle(data, context)\n    return data\n", "SyntaxError", "handler.py, line 1"),
    broken(
        "two-classes",
        "class A:\n  def handle(s, d, c): ...\nclass B(A):\n  pass\n",
        "Expected only one class in custom service code or a function",
        "'A', 'B'",
    ),
    broken("no-class", "VALUE = 1\n", "Expected only one class"),
    broken("no-handle", "class A:\n  def initialize(self, context): ...\n", "class A has no method handle"),
    broken(
        "no-function",
        "def predict(data, context): ...\n",
        "Expected only one class",
        "other",
        handler="handler.py:other",
    ),
    broken("no-file", "def handle(data, context): ...\n", "names handler 'absent.py'", handler="absent.py"),
    broken("exits", "import sys\nsys.exit('enough')\n", "SystemExit: enough"),
    broken(
        "exits-at-once",
        "import os\nprint('goodbye from its process', flush=True)\nos._exit(3)\n",
        "exited with code 3",
        "goodbye from its process",
    ),
    broken("killed", "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n", "killed by signal 9 (SIGKILL)"),
    broken("no-arguments", "def handle():\n    return []\n", "TypeError", "takes 0 positional arguments"),
    broken("not-callable", "handle = 3\n", "is not a function"),
    broken("no-streams", NO_STREAMS, "OSError: no such weights"),
    broken("own-ts", "import ts.helpers\ndef handle(data, context): ...\n", "No module named 'ts.helpers'"),
)

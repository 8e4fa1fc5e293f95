"""The model repository that both servers serve: folders in Triton's layout, of the models in models/."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

MODELS = Path(__file__).parent / "models"

NUMERIC = ("BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64")
ALL = (*NUMERIC, "BYTES")
_OPTIONAL = "optional: true"


def _tensors(kind: str, tensors: Sequence[tuple[str, str, str]]) -> str:
    return "\n".join(
        f'{kind} [{{ name: "{name}" data_type: TYPE_{datatype.replace("BYTES", "STRING")} dims: [{dims}] {more} }}]'
        for name, datatype, dims, more in ((*each, "")[:4] if len(each) == 3 else each for each in tensors)
    )


def config(
    name: str, batch: int, inputs: Sequence[tuple[str, ...]], outputs: Sequence[tuple[str, ...]], more: str = ""
) -> str:
    """A config.pbtxt of a Python model; each tensor is (name, datatype, dims) and perhaps further fields."""
    words = [f'name: "{name}"', 'backend: "python"', f"max_batch_size: {batch}"]
    words += [_tensors("input", inputs), _tensors("output", outputs), more]  # type: ignore[arg-type]
    return "\n".join(word for word in words if word) + "\n"


def _identity(name: str, batch: int) -> str:
    """One input and output for each datatype; a request brings the inputs it likes."""
    inputs = [(f"INPUT_{each}", each, "-1", _OPTIONAL) for each in ALL]
    return config(name, batch, inputs, [(f"OUTPUT_{each}", each, "-1") for each in ALL])


def _add_sub(name: str, datatype: str, batch: int, more: str = "") -> str:
    inputs = [(f"INPUT{i}", datatype, "16") for i in (0, 1)]
    return config(name, batch, inputs, [(f"OUTPUT{i}", datatype, "16") for i in (0, 1)], more)


def _sequence(name: str, strategy: str) -> str:
    controls = "".join(
        f'control_input [{{ name: "{word}" control [{{ kind: CONTROL_SEQUENCE_{word} int32_false_true: [0, 1] }}] }}]\n'
        for word in ("START", "END", "READY")
    )
    controls += 'control_input [{ name: "CORRID" control [{ kind: CONTROL_SEQUENCE_CORRID data_type: TYPE_UINT64 }] }]'
    more = f"sequence_batching {{ max_sequence_idle_microseconds: 60000000\n{controls}\n{strategy} }}"
    return config(name, 8, [("INPUT", "INT32", "1")], [("OUTPUT", "INT32", "1")], more)


DECOUPLED = "model_transaction_policy { decoupled: true }"
WORDS = [("text_input", "BYTES", "1"), ("repeat", "INT32", "1", _OPTIONAL)]

# name -> (file of models/, config.pbtxt, versions)
REPOSITORY: Mapping[str, tuple[str, str, Sequence[str]]] = {
    "identity": ("identity", _identity("identity", 0), ("1",)),
    "identity_batched": ("identity", _identity("identity_batched", 8), ("1",)),
    "identity_matrix": (
        "identity",
        config("identity_matrix", 0, [("INPUT0", "FP32", "2, 3")], [("OUTPUT0", "FP32", "2, 3")]),
        ("1",),
    ),
    "identity_three": (
        "identity",
        config(
            "identity_three",
            4,
            [("INPUT0", "INT32", "2"), ("INPUT1", "FP32", "-1, 2"), ("INPUT2", "BYTES", "1")],
            [("OUTPUT0", "INT32", "2"), ("OUTPUT1", "FP32", "-1, 2"), ("OUTPUT2", "BYTES", "1")],
        ),
        ("1",),
    ),
    "identity_two_variable": (
        "identity",
        config("identity_two_variable", 0, [("INPUT0", "FP32", "-1, -1")], [("OUTPUT0", "FP32", "-1, -1")]),
        ("1",),
    ),
    "identity_text": (
        "identity",
        config("identity_text", 8, [("INPUT0", "BYTES", "1")], [("OUTPUT0", "BYTES", "1")]),
        ("1",),
    ),
    "simple": ("add_sub", _add_sub("simple", "INT32", 8, "dynamic_batching { }"), ("1",)),
    "simple_plain": ("add_sub", _add_sub("simple_plain", "INT32", 0), ("1",)),
    "simple_fp32": ("add_sub", _add_sub("simple_fp32", "FP32", 8), ("1",)),
    "simple_string": ("add_sub", _add_sub("simple_string", "BYTES", 8), ("1",)),
    "optional": (
        "optional",
        config(
            "optional",
            8,
            [("INPUT0", "INT32", "2"), ("INPUT1", "INT32", "2", _OPTIONAL), ("INPUT2", "INT32", "2", _OPTIONAL)],
            [("SUM", "INT32", "2")],
        ),
        ("1",),
    ),
    "failing": ("failing", config("failing", 8, [("CODE", "INT32", "1")], [("OUTPUT", "INT32", "1")]), ("1",)),
    "echo_parameters": (
        "echo_parameters",
        config("echo_parameters", 0, [("INPUT", "INT32", "1")], [("PARAMETERS", "BYTES", "1")]),
        ("1",),
    ),
    "scores": (
        "scores",
        config(
            "scores",
            8,
            [("INPUT", "FP32", "-1")],
            [("SCORES", "FP32", "-1", 'label_filename: "labels.txt"'), ("WHOLE", "INT32", "-1")],
        ),
        ("1",),
    ),
    "direct": ("accumulate", _sequence("direct", "direct { }"), ("1",)),
    "oldest": ("accumulate", _sequence("oldest", "oldest { max_candidate_sequences: 8 }"), ("1",)),
    "repeat": (
        "repeat",
        config("repeat", 0, [("IN", "INT32", "-1")], [("OUT", "INT32", "1"), ("IDX", "UINT32", "1")], DECOUPLED),
        ("1",),
    ),
    "words": ("words", config("words", 0, WORDS, [("text_output", "BYTES", "-1")]), ("1",)),
    "words_stream": ("words", config("words_stream", 0, WORDS, [("text_output", "BYTES", "-1")], DECOUPLED), ("1",)),
    "versions_latest": (
        "version",
        config("versions_latest", 0, [("INPUT", "INT32", "1")], [("VERSION", "INT32", "1")]),
        ("1", "2", "10"),
    ),
    "versions_all": (
        "version",
        config("versions_all", 0, [("INPUT", "INT32", "1")], [("VERSION", "INT32", "1")], "version_policy { all { } }"),
        ("1", "2", "10"),
    ),
    "versions_specific": (
        "version",
        config(
            "versions_specific",
            0,
            [("INPUT", "INT32", "1")],
            [("VERSION", "INT32", "1")],
            "version_policy { specific { versions: [1, 2] } }",
        ),
        ("1", "2", "10"),
    ),
    "configured": (
        "identity",
        config(
            "configured",
            16,
            [("INPUT0", "FP32", "4")],
            [("OUTPUT0", "FP32", "4")],
            "dynamic_batching { preferred_batch_size: [4, 8] max_queue_delay_microseconds: 100 }\n"
            "instance_group [{ count: 2 kind: KIND_CPU }]\n"
            'parameters { key: "threshold" value { string_value: "0.5" } }',
        ),
        ("1",),
    ),
}
# Not loaded from the start: these do not load, or are loaded by steps.
BESIDE: Mapping[str, tuple[str, str, Sequence[str]]] = {
    "broken": ("broken", config("broken", 0, [("INPUT", "INT32", "1")], [("OUTPUT", "INT32", "1")]), ("1",)),
    "later": ("identity", config("later", 0, [("INPUT0", "INT32", "2")], [("OUTPUT0", "INT32", "2")]), ("1", "2")),
}
LABELS = "".join(f"label{i}\n" for i in range(10))


def write_repository(root: Path) -> None:
    """All of it below `root`, which need not be there."""
    for name, (source, text, versions) in {**REPOSITORY, **BESIDE}.items():
        folder = root / name
        for version in versions:
            (folder / version).mkdir(parents=True)
            shutil.copy(MODELS / f"{source}.py", folder / version / "model.py")
        (folder / "config.pbtxt").write_text(text)
        if "label_filename" in text:
            (folder / "labels.txt").write_text(LABELS)

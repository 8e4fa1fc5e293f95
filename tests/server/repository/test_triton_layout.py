"""Triton's layout of a repository: what a look finds there, and what is served of it."""

from pathlib import Path
from zipfile import ZipFile

import pytest

from ringserve.protocol.errors import InvalidModel
from ringserve.protocol.tensor import TensorSpec
from ringserve.server.model_configuration.fields import NESTED
from ringserve.server.model_configuration.override import overridden_by_json
from ringserve.server.repository.scan import Entry, scan
from ringserve.server.repository.store import ModelStore, UnpackedModel
from ringserve.server.repository.version_policy import VersionPolicy

TENSORS = """
input [{ name: "x" data_type: TYPE_FP32 dims: [ 4 ] }]
output [{ name: "y" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt" }]
"""
CONFIG = f'backend: "python" max_batch_size: 8 dynamic_batching {{}} {TENSORS}'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "repository"
    root.mkdir()
    return root


def write(root: Path, **files: str) -> Path:
    """Files of the model m; "__" is a slash and "_" a dot."""
    for name, text in files.items():
        path = root / "m" / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def model(root: Path, *versions: int, config: str | None = CONFIG) -> Path:
    """A model with these versions and its labels."""
    for version in versions or (1,):
        folder = root / "m" / str(version)
        folder.mkdir(parents=True)
        (folder / "model.py").write_text("")
    (root / "m" / "labels.txt").write_text("cat\ndog\n")
    if config is not None:
        (root / "m" / "config.pbtxt").write_text(config)
    return root


def store(root: Path) -> ModelStore:
    return ModelStore(root, root.parent / "work")


def unpacked(root: Path, entry: Entry) -> UnpackedModel:
    return store(root).unpack(entry.path, "m", aside=True, said=entry.said)


def test_every_version_is_an_entry_with_what_config_pbtxt_says(root: Path) -> None:
    found = scan(model(root, 1, 2))
    assert list(found.entries) == ["m/1", "m/2"]
    entry = found.entries["m/2"]
    assert (entry.model, entry.version, entry.is_folder, entry.problem) == ("m", "2", True, None)
    assert entry.said is not None
    assert entry.said["max_batch_size"] == 8
    assert found.problems == {}


def test_without_a_configuration_the_file_says_what_runs_it(root: Path) -> None:
    [entry] = scan(model(root, config=None)).entries.values()
    assert entry.said == {}
    found = unpacked(root, entry)
    assert found.config.backend == "triton"
    assert found.manifest.handler == "1/model.py"


@pytest.mark.parametrize(
    ("said", "policy"),
    [
        ("", VersionPolicy(1)),
        ("version_policy { latest { num_versions: 2 } }", VersionPolicy(2)),
        ("version_policy { all {} }", VersionPolicy(None)),
        ("version_policy { specific { versions: [ 1, 3 ] } }", VersionPolicy(None, ("1", "3"))),
    ],
)
def test_the_policy_is_that_of_config_pbtxt(root: Path, said: str, policy: VersionPolicy) -> None:
    found = scan(model(root, 1, 2, 3, config=CONFIG + said))
    assert found.folders["m"].policy == policy
    assert found.problems == {}


def test_versions_that_are_wanted_and_not_there_are_a_problem(root: Path) -> None:
    found = scan(model(root, config=CONFIG + "version_policy { specific { versions: [ 7 ] } }"))
    assert "at least one version must be available under the version policy of model 'm'" in found.problems["m"]


def test_a_broken_configuration_is_a_problem_of_every_version(root: Path) -> None:
    found = scan(model(root, 1, 2, config="max_batch_sizes: 3"))
    assert {entry.problem for entry in found.entries.values()} == {found.entries["m/1"].problem}
    assert str(found.entries["m/1"].problem).startswith("m/config.pbtxt: 1:1 : ")
    assert "m" not in found.folders


def test_other_folders_are_no_versions(root: Path) -> None:
    model(root)
    for name in ("configs", "warmup", "initial_state", "0", "-1", "1.5", "v2"):
        (root / "m" / name).mkdir()
    assert list(scan(root).entries) == ["m/1"]


def test_a_version_with_leading_zeros_is_a_problem(root: Path) -> None:
    model(root)
    (root / "m" / "007").mkdir()
    found = scan(root)
    assert list(found.entries) == ["m/1"]
    assert found.problems == {"m/007": "expected a version without leading zeros"}


def test_a_change_of_one_version_is_none_of_another_and_one_beside_them_is_of_all(root: Path) -> None:
    before = scan(model(root, 1, 2)).entries
    (root / "m" / "2" / "weights.bin").write_text("1")
    changed = scan(root).entries
    assert changed["m/1"].fingerprint == before["m/1"].fingerprint
    assert changed["m/2"].fingerprint != before["m/2"].fingerprint
    (root / "m" / "labels.txt").write_text("other\n")
    again = scan(root).entries
    assert again["m/1"].fingerprint != changed["m/1"].fingerprint
    assert again["m/2"].fingerprint != changed["m/2"].fingerprint


def test_what_is_served_is_the_version_with_all_that_lies_beside_it(root: Path) -> None:
    entry = scan(model(root, 1, 2)).entries["m/2"]
    found = unpacked(root, entry)
    assert sorted(path.name for path in found.model_dir.iterdir()) == ["2", "config.pbtxt", "labels.txt"]
    assert (found.manifest.model_name, found.manifest.model_version) == ("m", "2")
    assert found.manifest.raw["model"]["serializedFile"] == "2/model.py"
    assert found.labels == {"y": ["cat", "dog"]}
    assert found.config.signature.inputs == (TensorSpec("x", "float32", (4,)),)
    assert found.config.worker_range == (1, 1)
    assert found.temporary


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ('backend: "python" default_model_filename: "other.py"', "expected 1/other.py, which the backend python loads"),
        ('backend: "onnxruntime"', "config.pbtxt: backend: expected one of python, pytorch, got 'onnxruntime'"),
        ('platform: "tensorrt_plan"', "config.pbtxt: platform: expected one of pytorch_libtorch, got 'tensorrt_plan'"),
        (CONFIG.replace("labels.txt", "none.txt"), "output y: label_filename: none.txt cannot be read"),
    ],
)
def test_what_cannot_be_served_is_refused_with_its_reason(root: Path, config: str, message: str) -> None:
    [entry] = scan(model(root, config=config)).entries.values()
    with pytest.raises(InvalidModel) as caught:
        unpacked(root, entry)
    assert caught.value.message.startswith(message)


def test_a_version_that_no_backend_runs_is_refused(root: Path) -> None:
    write(root, config_pbtxt="max_batch_size: 1", **{"1__weights_bin": ""})
    [entry] = scan(root).entries.values()
    with pytest.raises(InvalidModel, match=r"expected model\.py or model\.pt in the version's folder"):
        unpacked(root, entry)


def test_a_torchscript_file_is_run_by_our_backend(root: Path) -> None:
    write(root, config_pbtxt='platform: "pytorch_libtorch" max_batch_size: 2', **{"1__model_pt": ""})
    [entry] = scan(root).entries.values()
    assert entry.problem is None
    found = unpacked(root, entry)
    assert (found.config.backend, found.manifest.serialized_file) == ("torchscript", "1/model.pt")


def test_our_own_keys_stand_beside_config_pbtxt_unless_they_say_the_same(root: Path) -> None:
    model(root)
    (root / "m" / "config.yaml").write_text("responseTimeout: 7\n")
    [entry] = scan(root).entries.values()
    assert entry.overrides == {"responseTimeout": 7}
    (root / "m" / "config.yaml").write_text("version_policy: all\n")
    (root / "m" / "config.pbtxt").write_text(CONFIG + "version_policy { all {} }")
    [entry] = scan(root).entries.values()
    assert str(entry.problem).startswith("m/config.yaml: version_policy: expected none beside that of config.pbtxt")


def test_another_configuration_can_be_chosen_by_name(root: Path) -> None:
    model(root)
    (root / "m" / "configs").mkdir()
    (root / "m" / "configs" / "small.pbtxt").write_text("max_batch_size: 2")
    assert [scan(root, name).entries["m/1"].said for name in ("small", "")] == [
        {"max_batch_size": 2},
        scan(root, "none").entries["m/1"].said,
    ]
    chosen = ModelStore(root, root.parent / "work", config_name="small").unpack(root / "m")
    assert chosen.config.batch_size == 2


def test_archives_of_versions_have_the_configuration_beside_them(root: Path) -> None:
    write(root, config_pbtxt="max_batch_size: 4 version_policy { all {} }")
    (root / "m" / "1").mkdir()
    with ZipFile(root / "m" / "1" / "a.mar", "w") as bundle:
        bundle.writestr("MAR-INF/MANIFEST.json", "{}")
    found = scan(root)
    assert found.entries["m/1"].said is None
    assert found.entries["m/1"].overrides[NESTED]["max_batch_size"] == 4
    assert found.folders["m"].policy == VersionPolicy(None)


def test_a_folder_that_is_registered_by_name_is_its_latest_version(root: Path) -> None:
    model(root, 2, 10)
    found = store(root).unpack(root / "m")
    assert found.manifest.model_version == "10"
    assert store(root).entries() == ["m"]


def test_a_configuration_in_an_archive_is_read(root: Path) -> None:
    with ZipFile(root / "a.mar", "w") as bundle:
        bundle.writestr(
            "MAR-INF/MANIFEST.json", '{"model": {"modelName": "a", "handler": "model.py"}, "runtime": "python"}'
        )
        bundle.writestr("model.py", "")
        bundle.writestr("labels.txt", "cat\n")
        bundle.writestr("config.pbtxt", CONFIG)
    found = store(root).unpack(root / "a.mar")
    assert (found.config.backend, found.config.batch_size) == ("triton", 8)
    assert found.labels == {"y": ["cat"]}


class TestOverride:
    """The `config` of a repository load."""

    @pytest.fixture
    def before(self, root: Path) -> UnpackedModel:
        [entry] = scan(model(root)).entries.values()
        return unpacked(root, entry)

    def test_it_stands_in_for_the_whole_configuration(self, before: UnpackedModel) -> None:
        found = overridden_by_json(before, '{"max_batch_size": "16"}', "m")
        assert found.config.batch_size == 16
        assert not found.config.signature.declared
        assert (found.config.backend, found.labels) == ("triton", {})

    def test_the_name_in_it_is_the_models(self, before: UnpackedModel) -> None:
        assert overridden_by_json(before, '{"name": "m"}', "m").config.batch_size == 1
        with pytest.raises(InvalidModel, match="config: name: expected 'm'"):
            overridden_by_json(before, '{"name": "n"}', "m")

    @pytest.mark.parametrize(
        "text", ["", "[]", '{"max_batchsize": 3}', '{"max_batch_size": -3}', '{"backend": "onnxruntime"}']
    )
    def test_what_is_wrong_with_it_is_said(self, before: UnpackedModel, text: str) -> None:
        with pytest.raises(InvalidModel, match=r"^config(\.pbtxt)?: "):
            overridden_by_json(before, text, "m")

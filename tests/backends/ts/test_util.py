"""The helpers that handlers import."""

import pickle
from pathlib import Path
from types import ModuleType

import pytest

from ringserve.backends import ts
from ringserve.backends.ts import service
from ringserve.backends.ts.handler_utils.utils import import_class
from ringserve.backends.ts.utils import util


@pytest.mark.parametrize(
    ("text", "mapping"),
    [
        ('{"0": "cat", "1": "dog"}', {"0": "cat", "1": "dog"}),
        ('{"0": ["n02123045", "cat"]}', {"0": "cat"}),
        ('{"object_type_names": ["cat", "dog"]}', {"0": "cat", "1": "dog"}),
    ],
)
def test_labels_come_in_three_forms(tmp_path: Path, text: str, mapping: dict[str, str]) -> None:
    """All of index_to_name.json's."""
    (tmp_path / "labels.json").write_text(text)
    assert util.load_label_mapping(tmp_path / "labels.json") == mapping


def test_missing_labels_are_none_and_others_are_refused(tmp_path: Path) -> None:
    """No file is allowed; a file that is no object is a mistake."""
    assert util.load_label_mapping(tmp_path / "none.json") is None
    (tmp_path / "labels.json").write_text("[]")
    with pytest.raises(TypeError):
        util.load_label_mapping(tmp_path / "labels.json")


def test_classes_become_labels() -> None:
    """With and without a mapping, with and without class numbers."""
    mapping = {"0": "cat", "1": "dog"}
    assert util.map_class_to_label([[0.1, 0.9]]) == [{"0": 0.1, "1": 0.9}]
    assert util.map_class_to_label([[0.1, 0.9]], mapping) == [{"cat": 0.1, "dog": 0.9}]
    assert util.map_class_to_label([[0.9], [0.8]], mapping, [[1], [0]]) == [{"dog": 0.9}, {"cat": 0.8}]
    with pytest.raises(TypeError):
        util.map_class_to_label((1,))  # type: ignore[arg-type]


def test_only_a_modules_own_classes_are_listed() -> None:
    """Imported ones are somebody else's."""
    module = ModuleType("mine")
    own = type("Own", (), {"__module__": "mine"})
    child = type("Child", (own,), {"__module__": "mine"})
    module.__dict__.update(Own=own, Child=child, Path=Path)
    assert util.list_classes_from_module(module) == [child, own]
    assert util.list_classes_from_module(module, child) == [child]


def test_a_yaml_file_is_read(tmp_path: Path) -> None:
    """An empty one is an empty configuration."""
    (tmp_path / "a.yaml").write_text("a: {b: 1}")
    (tmp_path / "b.yaml").write_text("")
    assert util.get_yaml_config(tmp_path / "a.yaml") == {"a": {"b": 1}}
    assert util.get_yaml_config(str(tmp_path / "b.yaml")) == {}


def test_compile_backends_are_a_closed_list() -> None:
    """The enumeration and the check agree."""
    assert all(util.check_valid_pt2_backend(backend) for backend in util.PT2Backend)
    assert not util.check_valid_pt2_backend("magic")


def test_a_prediction_exception_is_one_class_and_says_its_code() -> None:
    """`ts.service` and `ts.utils.util` export the same."""
    assert service.PredictionException is util.PredictionException
    error = util.PredictionException("gone", 404)
    assert str(error) == "gone : 404"
    assert util.PredictionException("x").error_code == 500
    assert pickle.loads(pickle.dumps(error)).message == "gone"


def test_a_class_is_found_by_its_path() -> None:
    """With and without a prefix."""
    assert import_class("pathlib.Path") is Path
    assert import_class("util.PT2Backend", "ringserve.backends.ts.utils") is util.PT2Backend
    with pytest.raises(AttributeError):
        import_class("pathlib.NoSuchClass")


def test_the_version_is_the_api_release() -> None:
    """Handlers compare it."""
    assert ts.__version__ == "0.12.0"

"""The helpers that handlers import."""

import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

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
        ('{"0": ["n0", "feline", "cat"], "1": "dog"}', {"0": "cat", "1": "dog"}),
        ('{"object_type_names": ["cat", "dog"]}', {"0": "cat", "1": "dog"}),
        ('{"object_type_names": ["cat"], "0": "dog"}', {"0": "cat"}),
        ('{"object_type_names": [1]}', {"0": 1}),
        ('{"object_type_names": "cat"}', {"object_type_names": "cat"}),
        ("{}", {}),
    ],
)
def test_labels_come_in_three_forms(tmp_path: Path, text: str, mapping: dict[str, str]) -> None:
    """All of index_to_name.json's."""
    (tmp_path / "labels.json").write_text(text)
    assert util.load_label_mapping(tmp_path / "labels.json") == mapping


def test_labels_that_are_missing_are_none(tmp_path: Path) -> None:
    """Answers say class numbers then."""
    assert util.load_label_mapping(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        '"cat"',
        '{"0": 1}',
        '{"0": null}',
        '{"0": []}',
        '{"0": [1]}',
        '{"0": ["a", ["b"]]}',
        '{"object_type_names": null}',
    ],
)
def test_labels_that_are_no_texts_are_refused(tmp_path: Path, text: str) -> None:
    """As TorchServe does, with the file's name."""
    (tmp_path / "labels.json").write_text(text)
    with pytest.raises(TypeError, match=r"labels\.json should "):
        util.load_label_mapping(tmp_path / "labels.json")


@pytest.mark.parametrize(
    ("arguments", "labelled"),
    [
        (([[0.1, 0.9]], {}), KeyError),
        (([[0.1, 0.9]], {"0": "cat"}), KeyError),
        (([[0.5]], None, [[0], [1]]), [{"0": 0.5}]),
        (([[0.5]], {"0": "cat"}, [[0, 0]]), [{"cat": 0.5}]),
        (([[0.5, 0.4]], None, [["x", "y"]]), [{"x": 0.5, "y": 0.4}]),
        (([[0.1, 0.2]], {"0": "cat", "1": "cat"}), [{"cat": 0.2}]),
        (([[0.1]], None, []), []),
        (([[]],), [{}]),
        (([[0.1]], []), TypeError),
    ],
)
def test_labelling_has_torchserves_results(arguments: tuple[Any, ...], labelled: Any) -> None:
    """Asked of TorchServe 0.12's function."""
    if isinstance(labelled, type):
        with pytest.raises(labelled):
            util.map_class_to_label(*arguments)
    else:
        assert util.map_class_to_label(*arguments) == labelled


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
    """The enumeration and the check agree, and a member prints as TorchServe's."""
    assert all(util.check_valid_pt2_backend(backend) for backend in util.PT2Backend)
    assert not any(map(util.check_valid_pt2_backend, ("magic", "", "EAGER")))
    assert str(util.PT2Backend.EAGER) == f"{util.PT2Backend.EAGER}" == "PT2Backend.EAGER"
    assert util.PT2Backend("eager") is util.PT2Backend.EAGER
    assert {"eager": 1}[util.PT2Backend.EAGER] == 1


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("<b>x</b>", "x"),
        ("a &amp; b", "a  b"),
        ("&#39;&#x1f;", ""),
        ("a < b", "a < b"),
        ("&NBSP;", "&NBSP;"),
        ("<a href='x'>y", "y"),
    ],
)
def test_the_clean_up_expression_finds_tags_and_entities(text: str, cleaned: str) -> None:
    assert util.CLEANUP_REGEX.sub("", text) == cleaned


def test_a_deprecated_function_works_and_says_so() -> None:
    """The warning is the caller's."""

    @util.deprecated("0.9", replacement="new", klass=DeprecationWarning)
    def old(first: int, second: int = 1) -> int:
        """What it does."""
        return first + second

    with pytest.warns(DeprecationWarning, match="^old is deprecated in 0.9 and moved to new$") as record:
        assert old(1, second=2) == 3
    assert (old.__name__, old.__doc__, record[0].filename) == ("old", "What it does.", __file__)
    with pytest.warns(PendingDeprecationWarning, match="^_same is deprecated in 1 and moved to $"):
        assert util.deprecated("1")(_same)(5) == 5


def _same(value: int) -> int:
    return value


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
    with pytest.raises(ImportError):
        import_class("pathlib.NoSuchClass")


def test_the_version_is_the_api_release() -> None:
    """Handlers compare it."""
    assert ts.__version__ == "0.12.0"

"""Which requirements are the same, so that what was installed for one model may serve another."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository import requirements
from ringserve.server.repository.requirements import REQUIREMENTS_BYTES_MAX, digest, normalised, without_secrets


def model(folder: Path, files: Mapping[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


def digest_of(folder: Path, files: Mapping[str, str | bytes], identity: str = "base") -> str:
    return digest(model(folder, files), "requirements.txt", identity)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", []),
        ("# nothing\n\n   \n", []),
        ("numpy==2.0  # why\n", ["numpy==2.0"]),
        ("numpy   >=  2\r\n\tscipy\n", ["numpy >= 2", "scipy"]),
        ("numpy \\\n  >=2\n", ["numpy >=2"]),
        ("x @ https://host/x#sha256=1\n", ["x @ https://host/x#sha256=1"]),
        ("b\na\n", ["b", "a"]),
    ],
)
def test_lines_are_what_pip_makes_of_them(text: str, lines: list[str]) -> None:
    assert normalised(text) == lines


def test_what_the_model_does_not_name_does_not_matter(tmp_path: Path) -> None:
    one = digest_of(tmp_path / "one", {"requirements.txt": "numpy # a\n", "weights.pt": "1", "numpy.whl": "1"})
    two = digest_of(tmp_path / "two", {"requirements.txt": "\nnumpy\n", "weights.pt": "2", "numpy.whl": "2"})
    assert one == two
    assert len(one) == 32


def test_another_base_is_another_environment(tmp_path: Path) -> None:
    files = {"requirements.txt": "numpy\n"}
    assert digest_of(tmp_path, files, "Python 3.11") != digest_of(tmp_path, files, "Python 3.12")


@pytest.mark.parametrize(
    "line",
    [
        "x-1.0.whl",
        "./x-1.0.whl",
        "./x-1.0.whl[extra]",
        "x @ file:x-1.0.whl ; python_version > '3'",
        "--find-links .",
        "--find-links=.",
        "-f .",
        "-f.",
        "-r more.txt",
        "-rmore.txt",
        "--requirement=more.txt",
    ],
)
def test_a_file_of_the_model_that_is_named_counts_with_its_content(tmp_path: Path, line: str) -> None:
    seen = set()
    for content in ("1", "2"):
        files = {"requirements.txt": line, "x-1.0.whl": content, "more.txt": "./x-1.0.whl\n"}
        seen.add(digest_of(tmp_path / content, files))
    assert len(seen) == 2


def test_of_a_folder_the_packages_count_and_of_sources_everything(tmp_path: Path) -> None:
    found = {
        "other": digest_of(tmp_path / "a", {"requirements.txt": "-f d", "d/x.whl": "1", "d/notes.md": "1"}),
        "same": digest_of(tmp_path / "b", {"requirements.txt": "-f d", "d/x.whl": "1", "d/notes.md": "2"}),
        "sources": digest_of(tmp_path / "c", {"requirements.txt": "./d", "d/setup.py": "", "d/src/m.py": "1"}),
        "changed": digest_of(tmp_path / "e", {"requirements.txt": "./d", "d/setup.py": "", "d/src/m.py": "2"}),
    }
    assert found["other"] == found["same"]
    assert found["sources"] != found["changed"]


def test_files_that_name_each_other_end(tmp_path: Path) -> None:
    assert digest_of(tmp_path, {"requirements.txt": "-r more.txt", "more.txt": "-r requirements.txt"})


def test_what_is_named_many_times_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of sources is read whole, weights and all: a line for it costs two bytes."""
    read: list[Path] = []
    original = requirements._file_digest

    def noted(path: Path) -> str:
        read.append(path)
        return original(path)

    monkeypatch.setattr(requirements, "_file_digest", noted)
    assert digest_of(tmp_path, {"requirements.txt": ".\n" * 1000, "setup.py": "", "weights.bin": ""})
    assert len(read) == len(set(read)) == 3


def test_a_path_out_of_the_model_is_only_a_name(tmp_path: Path) -> None:
    (tmp_path / "outside.whl").write_text("1")
    files = {"requirements.txt": f"../outside.whl\n{tmp_path}/outside.whl\n"}
    before = digest_of(tmp_path / "model", files)
    (tmp_path / "outside.whl").write_text("2")
    assert digest_of(tmp_path / "model", files) == before


def test_bytes_that_are_no_text_and_words_that_are_no_names_are_no_error(tmp_path: Path) -> None:
    assert digest_of(tmp_path, {"requirements.txt": b"\xff\xfe\n" + b"x" * 5000 + b"\na\0b\n"})


def test_a_pipe_that_a_line_names_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    model(tmp_path, {"requirements.txt": b"./pipe.whl"})
    os.mkfifo(tmp_path / "pipe.whl")
    with pytest.raises(
        InvalidModel, match=r"^requirementsFile: names pipe.whl, which cannot be read: expected a regular"
    ):
        digest(tmp_path, "requirements.txt", "")


@pytest.mark.parametrize(
    ("said", "passed_on"),
    [
        ("Collecting toy@ https://user:5ecret@host/toy.whl", "Collecting toy@ https://***@host/toy.whl"),
        ("Looking in indexes: https://a/s, https://5ecret@b/s", "Looking in indexes: https://a/s, https://***@b/s"),
        ("Looking in indexes: https://a/simple?token=5ecret", "Looking in indexes: https://a/simple?***"),
        (
            "Invalid requirement: 'git+ssh://me:5e@cret@h/x.git?a=5ecret' (x)",
            "Invalid requirement: 'git+ssh://***@h/x.git?***' (x)",
        ),
        ("Collecting toy@ file:///a@b/toy.whl", "Collecting toy@ file:///a@b/toy.whl"),
    ],
)
def test_pip_repeats_no_secret(said: str, passed_on: str) -> None:
    assert without_secrets(said) == passed_on


def test_what_is_no_file_or_too_large_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(InvalidModel, match=r"^requirementsFile: expected a file, got 'folder'"):
        digest(tmp_path, "folder", "")
    model(tmp_path, {"huge.txt": b"#" * (REQUIREMENTS_BYTES_MAX + 1)})
    with pytest.raises(InvalidModel, match=r"^requirementsFile: expected at most 1048576 bytes, got more in huge.txt"):
        digest(tmp_path, "huge.txt", "")

"""Which `source_vocab.pt` files are opened, and what is said of the others."""

import collections
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from ringserve.backends.ts.handler_utils.vocabulary import Vocabulary, load_vocabulary

WORDS = ["<unk>", "a", "good", "film", "a good"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "source_vocab.pt"


@pytest.fixture
def torchtext() -> Iterator[None]:
    """Modules of torchtext's names to put classes in, which are gone when the file is opened."""
    names = ["torchtext", "torchtext.vocab", "torchtext.vocab.vocab", "torchtext.legacy.vocab", "torchtext._torchtext"]
    for name in names:
        sys.modules[name] = ModuleType(name)
    yield
    _forget_torchtext()


def _forget_torchtext() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchtext"]:
        del sys.modules[name]


def _in_module(kind: Any, module: str, name: str) -> Any:
    """As if it were defined there."""
    kind.__module__, kind.__name__, kind.__qualname__ = module, name, name
    setattr(sys.modules[module], name, kind)
    return kind


def saved_by_torchtext(
    path: Path, default: list[int], version: str = "0.0.2", unknown: list[str] | None = None
) -> None:
    """A Vocab of torchtext 0.9 and later: a module around a C++ object, whose pickled state is a tuple of four."""

    class Inner:
        def __getstate__(self) -> Any:
            return (version, default, [*WORDS, *(unknown or [])], [])

    class Vocab(torch.nn.Module):
        def __init__(self, inner: Any) -> None:
            super().__init__()
            self.vocab = inner

    inner = _in_module(Inner, "torchtext._torchtext", "Vocab")
    torch.save(_in_module(Vocab, "torchtext.vocab.vocab", "Vocab")(inner()), path)
    _forget_torchtext()


def saved_by_old_torchtext(path: Path, module: str, unk_index: int | None) -> None:
    """A Vocab of torchtext 0.8 and older, which is Python."""

    class Vocab:
        def __init__(self) -> None:
            self.freqs = collections.Counter(WORDS)
            self.itos = WORDS
            self.unk_index = unk_index
            self.stoi = {word: number for number, word in enumerate(WORDS)}
            self.vectors = None

    torch.save(_in_module(Vocab, module, "Vocab")(), path)
    _forget_torchtext()


@pytest.mark.parametrize(
    "stored",
    [
        {word: number for number, word in enumerate(WORDS)},
        collections.OrderedDict((word, number) for number, word in enumerate(WORDS)),
        WORDS,
        tuple(WORDS),
    ],
    ids=lambda stored: type(stored).__name__,
)
def test_a_dict_or_a_list_of_words_is_a_vocabulary(path: Path, stored: object) -> None:
    torch.save(stored, path)
    vocabulary = load_vocabulary(path)
    assert [vocabulary[word] for word in ("film", "a good", "awful")] == [3, 4, 0]
    assert vocabulary(["good", "bad"]) == [2, 0]
    assert vocabulary.get_itos() == WORDS
    assert vocabulary.get_stoi()["good"] == 2
    assert len(vocabulary) == 5
    assert "bad" not in vocabulary


def test_without_a_word_for_the_unknown_an_unknown_word_is_an_error(path: Path) -> None:
    torch.save(["a", "good"], path)
    with pytest.raises(KeyError, match="film"):
        load_vocabulary(path)["film"]


@pytest.mark.parametrize("weights_only", [True, False])
@pytest.mark.parametrize("default", [2, 0])
def test_a_vocab_of_torchtext_is_opened_without_torchtext(
    path: Path, torchtext: None, default: int, weights_only: bool
) -> None:
    saved_by_torchtext(path, [default])
    vocabulary = load_vocabulary(path, weights_only)
    assert isinstance(vocabulary, Vocabulary)
    assert [vocabulary[word] for word in ("film", "awful")] == [3, default]


def test_a_vocab_of_torchtext_without_a_default_knows_no_other_words(path: Path, torchtext: None) -> None:
    """In torchtext itself "<unk>" is a word like any other, until it is made the default."""
    saved_by_torchtext(path, [])
    with pytest.raises(KeyError):
        load_vocabulary(path)["awful"]


def test_the_first_format_of_torchtexts_vocab_names_the_unknown_word_last(path: Path, torchtext: None) -> None:
    saved_by_torchtext(path, [], version="0.0.1", unknown=["good"])
    vocabulary = load_vocabulary(path)
    assert vocabulary.get_itos() == WORDS
    assert vocabulary["awful"] == WORDS.index("good")


@pytest.mark.parametrize("module", ["torchtext.vocab", "torchtext.legacy.vocab"])
@pytest.mark.parametrize("unk_index", [1, None])
def test_a_vocab_of_an_old_torchtext_is_opened_too(
    path: Path, torchtext: None, module: str, unk_index: int | None
) -> None:
    saved_by_old_torchtext(path, module, unk_index)
    vocabulary = load_vocabulary(path)
    assert [vocabulary[word] for word in ("film", "awful")] == [3, unk_index or 0]


def test_nothing_stays_allowed_for_the_files_that_the_handler_opens_itself(path: Path, torchtext: None) -> None:
    saved_by_torchtext(path, [0])
    load_vocabulary(path)
    with pytest.raises(Exception, match="Unsupported global: GLOBAL torchtext"):
        torch.load(path, weights_only=True)


class OwnVocabulary:
    """A class that is importable where the file is opened."""

    def __getitem__(self, word: str) -> int:
        return len(word)


class OwnDict(dict[str, int]):
    """A third, that is a dict."""

    def __missing__(self, word: str) -> int:
        return 9


class Asked:
    """Another, that is asked for all its words."""

    def get_stoi(self) -> dict[str, int]:
        return {"<unk>": 7, "a": 1}


def test_any_pickle_is_opened_where_the_archive_says_so(path: Path) -> None:
    torch.save(OwnVocabulary(), path)
    assert load_vocabulary(path, weights_only=False)["four"] == 4
    torch.save(Asked(), path)
    assert load_vocabulary(path, weights_only=False)["four"] == 7


def test_a_dict_that_knows_what_to_say_for_unknown_words_is_kept(path: Path) -> None:
    torch.save(OwnDict({"a": 1}), path)
    assert load_vocabulary(path, weights_only=False)["else"] == 9


def test_words_that_are_asked_for_are_not_put_into_the_vocabulary(path: Path) -> None:
    """A defaultdict would grow with each of them for as long as its worker lives."""
    torch.save(collections.defaultdict(int, {"a": 1}), path)
    vocabulary = load_vocabulary(path, weights_only=False)
    assert [vocabulary["else"], vocabulary["a"], len(vocabulary)] == [0, 1, 1]


@pytest.mark.parametrize("default", ["3", 1.0])
def test_a_vocab_whose_unknown_words_have_no_number_is_refused(path: Path, torchtext: None, default: Any) -> None:
    saved_by_torchtext(path, [default])
    with pytest.raises(RuntimeError, match=f"the number of unknown words is {default!r}"):
        load_vocabulary(path)


def test_a_vocab_of_torchtext_that_holds_itself_or_nothing_is_refused(path: Path, torchtext: None) -> None:
    class Vocab:
        pass

    kind = _in_module(Vocab, "torchtext.vocab", "Vocab")
    inner = kind()
    inner.vocab = inner
    for stored in (kind(), inner):
        torch.save(stored, path)
        with pytest.raises(RuntimeError, match=r"a dict from word to number.* expected"):
            load_vocabulary(path)


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (OwnVocabulary(), "OwnVocabulary"),
        ([1, 2], r"its entry \(1, 0\) is none from a word to a number"),
        ({1: "a"}, r"its entry \(1, 'a'\) is none from a word to a number"),
        ({"a": 1.5}, r"its entry \('a', 1\.5\) is none"),
        (torch.ones(2), "it holds a Tensor"),
        ("text", "it holds a str"),
        (None, "it holds a NoneType"),
    ],
)
def test_what_is_no_vocabulary_is_refused_with_what_is_expected(path: Path, stored: object, reason: str) -> None:
    torch.save(stored, path)
    expected = (
        r"source_vocab\.pt cannot be used: a dict from word to number, a list of words, or torchtext's Vocab is exp"
    )
    with pytest.raises(RuntimeError, match=f"{expected}.*handler: {{weights_only: false}}.*{reason}"):
        load_vocabulary(path)


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 and no zip"], ids=["empty", "text", "a broken zip"])
def test_a_broken_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match="cannot be used: a dict from word to number"):
        load_vocabulary(path)


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"Missing the source_vocab file .*source_vocab\.pt"):
        load_vocabulary(path)


def test_a_class_that_is_not_here_is_named(path: Path) -> None:
    script = (
        "import sys, types, torch; module = sys.modules['elsewhere'] = types.ModuleType('elsewhere');"
        "module.Words = type('Words', (), {'__module__': 'elsewhere'}); torch.save(module.Words(), sys.argv[1])"
    )
    subprocess.run([sys.executable, "-P", "-c", script, str(path)], check=True, timeout=60)
    with pytest.raises(
        RuntimeError, match=r"a dict from word to number.* expected. The reason: No module named 'elsewhere'"
    ):
        load_vocabulary(path, weights_only=False)

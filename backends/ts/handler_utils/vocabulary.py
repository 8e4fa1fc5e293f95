"""Opens a `source_vocab.pt`: the numbers that a text model was trained to know words by.

holds                                                              becomes
a dict from word to number, a list of words                        a `Vocabulary`
torchtext's `Vocab`, of any release                                a `Vocabulary`, without torchtext, which is no longer made
another object, if the archive lets any pickle in,
that answers `vocab[word]`, or has `get_stoi()`                    itself, or a `Vocabulary`

A pickle may be a program, so the file is opened with torch's `weights_only`, which builds nothing but data and, here, stand-ins
for torchtext's classes. What those keep in their pickles is in torchtext's sources: `torchtext/vocab.py` until 0.8 (`itos`,
`stoi`, `unk_index`), `torchtext/csrc/vocab.cpp` since 0.9 (version, default index, words, nothing).
"""

import pickle
import re
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

UNKNOWN = "<unk>"
EXPECTED = "a dict from word to number, a list of words, or torchtext's Vocab"


class Vocabulary(dict[str, int]):
    """Words and their numbers. A word that it lacks has the number `default_index`; without one it is a KeyError. Raises
    TypeError for what are no words or no numbers."""

    def __init__(
        self, numbers: Mapping[str, int] | Iterable[tuple[str, int]], default_index: int | None = None
    ) -> None:
        super().__init__(numbers)
        for word, number in self.items():
            if not isinstance(word, str) or not isinstance(number, int):
                raise TypeError(f"its entry {(word, number)!r:.80} is none from a word to a number")
        self.default_index = self.get(UNKNOWN) if default_index is None else default_index
        if not isinstance(self.default_index, int | None):
            raise TypeError(f"the number of unknown words is {self.default_index!r:.80}")

    @classmethod
    def of_words(cls, words: Sequence[str], default_index: int | None = None) -> "Vocabulary":
        """Numbered in their order, from 0."""
        return cls(((word, number) for number, word in enumerate(words)), default_index)

    def __missing__(self, word: str) -> int:
        if self.default_index is None:
            raise KeyError(word)
        return self.default_index

    def __call__(self, words: Sequence[str]) -> list[int]:
        return self.lookup_indices(words)

    def lookup_indices(self, words: Sequence[str]) -> list[int]:
        """The words' numbers. Raises KeyError for a word that has none."""
        return [self[word] for word in words]

    def get_stoi(self) -> dict[str, int]:
        """Word to number."""
        return dict(self)

    def get_itos(self) -> list[str]:
        """The words, by number."""
        return sorted(self, key=self.__getitem__)


class _PickledVocab:
    """Stands in for torchtext's `Vocab`, in Python (0.8 and older, and the shell around the other one) and in C++."""

    state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def vocabulary(self) -> Vocabulary:
        """Raises ValueError for a pickle of another shape."""
        match self.state:
            case {"vocab": _PickledVocab() as inner}:
                return inner.vocabulary()
            case {"stoi": dict(numbers)}:
                return Vocabulary(numbers, self.state.get("unk_index"))
            case ("0.0.1", _, [*words, unknown], _):
                found = Vocabulary.of_words(words)
                found.default_index = found.get(unknown)
                return found
            case (str(), [*default], [*words], _):
                found = Vocabulary.of_words(words, *default[:1])
                if not default:
                    found.default_index = None  # "<unk>" is a word like any other there
                return found
        raise ValueError("it holds a torchtext Vocab of a release that is not known")


def _unknown_of_torchtext() -> int:
    """Stands in for `torchtext.vocab._default_unk_index`, which a `defaultdict` of an old release calls."""
    return 0


_STAND_INS: list[Any] = [
    defaultdict,
    OrderedDict,
    (_PickledVocab, "torchtext.vocab.Vocab"),
    (_PickledVocab, "torchtext.vocab.vocab.Vocab"),
    (_PickledVocab, "torchtext.legacy.vocab.Vocab"),
    (_PickledVocab, "torchtext._torchtext.Vocab"),
    (_unknown_of_torchtext, "torchtext.vocab._default_unk_index"),
    (_unknown_of_torchtext, "torchtext.legacy.vocab._default_unk_index"),
]


def load_vocabulary(path: Path, weights_only: bool = True) -> Any:
    """What answers `vocabulary[word]` with the word's number.

    Raises RuntimeError for a file that is missing or holds something else, with a sentence that says what is expected.
    """
    if not path.is_file():
        raise RuntimeError(
            f"Missing the source_vocab file {path}: a text handler needs one in the archive (--extra-files), made by"
            f" torch.save from {EXPECTED}."
        )
    try:
        return as_vocabulary(_loaded(path, weights_only))
    except MemoryError:
        raise
    except Exception as error:  # what is no pickle makes the reading of one fail in any way
        advice = ' "handler: {weights_only: false}" in model-config.yaml lets any pickle in.' if weights_only else ""
        raise RuntimeError(
            f"{path} cannot be used: {EXPECTED} is expected.{advice} The reason: {_reason(error)}"
        ) from error


def _loaded(path: Path, weights_only: bool) -> Any:
    try:
        with torch.serialization.safe_globals(_STAND_INS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        if weights_only:
            raise
    return torch.load(path, map_location="cpu", weights_only=False)


def _reason(error: Exception) -> str:
    """Why torch refused a pickle, which it says between much advice that is not for archives."""
    refused = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    return f"it holds a {refused[1]}." if refused else str(error).strip().partition("\n")[0]


def as_vocabulary(loaded: Any) -> Any:
    """What was in the file, as something to ask for words. Raises ValueError or TypeError for what cannot be asked."""
    if isinstance(loaded, _PickledVocab):
        return loaded.vocabulary()
    if isinstance(loaded, defaultdict):
        # Itself, it would keep every word that a request asks for.
        return Vocabulary(loaded, loaded.default_factory and loaded.default_factory())
    if type(loaded) in (dict, OrderedDict):
        return Vocabulary(loaded)
    if isinstance(loaded, list | tuple):
        return Vocabulary.of_words(loaded)
    if callable(getattr(loaded, "get_stoi", None)) and not hasattr(loaded, "__getitem__"):
        return Vocabulary(loaded.get_stoi())
    if hasattr(loaded, "__getitem__") and not isinstance(loaded, str | bytes | torch.Tensor):
        return loaded
    raise ValueError(f"it holds a {type(loaded).__name__}")

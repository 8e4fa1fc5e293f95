"""Words of a text: what TorchServe took over from torchtext, by the same names and with the same results."""

from collections.abc import Callable, Iterator, Sequence

Tokenizer = Callable[[str], list[str]]

_SPACED = {sign: f" {sign} " for sign in "'.,()!?"}
_BASIC_ENGLISH = str.maketrans({**_SPACED, ";": " ", ":": " "})


def ngrams_iterator(token_list: Sequence[str], ngrams: int) -> Iterator[str]:
    """The tokens, then each two neighbours, and so on up to `ngrams` neighbours, joined by a space."""
    yield from token_list
    for length in range(2, ngrams + 1):
        for start in range(len(token_list) - length + 1):
            yield " ".join(token_list[start : start + length])


def get_tokenizer(tokenizer: str | Tokenizer | None, language: str = "en") -> Tokenizer:
    """What splits a text into tokens: at white space for None, by torchtext's English rules for "basic_english"; a callable
    is the tokenizer itself. Raises ValueError for other names, which stand for libraries, and for other languages."""
    if tokenizer is None:
        return str.split
    if callable(tokenizer):
        return tokenizer
    if tokenizer != "basic_english":
        raise ValueError(
            f'The tokenizer {tokenizer!r} is not known: "basic_english", None or a function that splits a text is needed.'
        )
    if language != "en":
        raise ValueError(f'The tokenizer "basic_english" is for the language "en", not {language!r}.')
    return _basic_english


def _basic_english(line: str) -> list[str]:
    """Lower case; quotes and line breaks of HTML go, punctuation becomes words of its own."""
    return line.lower().replace('"', "").replace("<br />", " ").translate(_BASIC_ENGLISH).split()

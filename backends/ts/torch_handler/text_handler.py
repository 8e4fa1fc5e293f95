"""Text in, words out: what the handlers of text models have in common."""

import re
import string
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ringserve.backends.ts.handler_utils.explanations import (
    as_one_target,
    layer_integrated_gradients,
    row_targets,
)
from ringserve.backends.ts.handler_utils.preprocess.rows import refusal, row_input, what_came
from ringserve.backends.ts.handler_utils.text_utils import get_tokenizer
from ringserve.backends.ts.handler_utils.vocabulary import load_vocabulary
from ringserve.backends.ts.torch_handler.base_handler import BaseHandler
from ringserve.backends.ts.torch_handler.contractions import CONTRACTION_MAP
from ringserve.backends.ts.utils.util import CLEANUP_REGEX
from ringserve.backends.ts.utils.weights import weights_only

VOCABULARY_FILE = "source_vocab.pt"


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Matches the words in any case. TorchServe takes the first entry that matches, and "can't" comes before "can't've" there:
    shorter ones win. Sorted by their first letter, few have to be tried at each letter of a text."""
    endings: dict[str, list[str]] = {}
    for word in sorted(words, key=len):
        endings.setdefault(word[0].lower(), []).append(word[1:])
    # In ASCII: without that an "s" is also the long one of old prints, and the map has no such words.
    branches = (f"{first}(?:{'|'.join(rest)})" for first, rest in endings.items())
    return re.compile("|".join(branches), flags=re.IGNORECASE | re.ASCII)


CONTRACTIONS_PATTERN = _any_of(CONTRACTION_MAP)
# What of CLEANUP_REGEX is left where no tag can end.
_ENTITIES = re.compile(r"&(?:[a-z0-9]+|#[0-9]{1,6}|#x[0-9a-f]{1,6});")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


class TextHandler(BaseHandler):
    """A model of words. It needs `source_vocab.pt` in its archive, from words to the numbers that the model knows them by."""

    _explainer: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.source_vocab: Any = None
        self.tokenizer: Any = get_tokenizer("basic_english")
        self.input_text: Any = None

    def initialize(self, context: Any) -> None:
        """As `BaseHandler`, and open the vocabulary. Raises RuntimeError when there is none that can be used."""
        super().initialize(context)
        self.initialized = False
        path = Path(self._vocabulary_path(context))
        self.source_vocab = load_vocabulary(path, weights_only(self.model_yaml_config))
        self.initialized = True

    def _vocabulary_path(self, context: Any) -> str:
        named = self.manifest["model"].get("sourceVocab")  # old archives name it
        if not named:
            return self.get_source_vocab_path(context)
        return str(Path(context.system_properties.get("model_dir")) / named)

    def get_source_vocab_path(self, ctx: Any) -> str:
        """Where the vocabulary lies. A hook."""
        return str(Path(ctx.system_properties.get("model_dir")) / VOCABULARY_FILE)

    @property
    def lig(self) -> Any:
        """Integrated gradients of the model's layer `embedding`: captum's if it is installed. Made by the first explanation.

        Raises `PredictionException` (400) for a model that cannot be explained.
        """
        if self._explainer is None:
            layer = getattr(self.model, "embedding", None)
            if layer is None:
                raise refusal('Explaining a text needs a model with a layer called "embedding"; this one has none.')
            try:
                self._explainer = layer_integrated_gradients(self.model, layer)
            except TypeError as error:
                raise refusal(str(error)) from error
        return self._explainer

    @lig.setter
    def lig(self, explainer: Any) -> None:
        self._explainer = explainer

    def explain_handle(self, data_preprocess: Any, raw_data: Any) -> Any:
        """As `BaseHandler`, with every row's own `target`: a number for all, or a list where the rows differ."""
        insights: Any = self  # the method is the subclass'
        return insights.get_insights(data_preprocess, row_input(raw_data[0])[1], as_one_target(row_targets(raw_data)))

    def _text_of(self, row: Any) -> str:
        """The text a request brought. Raises `PredictionException` (400) when it is none."""
        name, value = row_input(row)
        if isinstance(value, bytes | bytearray):
            try:
                value = value.decode()
            except UnicodeDecodeError as error:
                raise refusal(f'The input "{name}" should be text in UTF-8: {error}.') from None
        if not isinstance(value, str):
            raise refusal(f'The input "{name}" should be a text; {what_came(value)} came.')
        return value

    def _expand_contractions(self, text: str) -> str:
        """ "I'd" as "I would", its first letter kept as it is written; then no apostrophe is left."""

        def expanded(match: re.Match[str]) -> str:
            words = CONTRACTION_MAP.get(match[0]) or CONTRACTION_MAP[match[0].lower()]
            return match[0][0] + words[1:]

        return CONTRACTIONS_PATTERN.sub(expanded, text).replace("'", "")

    def _remove_accented_characters(self, text: str) -> str:
        """Letters without their accents; what is no ASCII then goes."""
        return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()

    def _remove_html_tags(self, text: str) -> str:
        """What `CLEANUP_REGEX` leaves. It looks to the end of the line for what closes each "<", which takes minutes for a
        megabyte of them: here only where something does."""
        if "<" not in text:
            return CLEANUP_REGEX.sub("", text)
        cleaned = []
        for line in text.split("\n"):
            end = line.rfind(">") + 1
            cleaned.append(CLEANUP_REGEX.sub("", line[:end]) + _ENTITIES.sub("", line[end:]))
        return "\n".join(cleaned)

    def _remove_punctuation(self, text: str) -> str:
        return text.translate(_WITHOUT_PUNCTUATION)

    def _remove_puncutation(self, *args: Any, **kwargs: Any) -> str:
        """The name it once had, which handlers still call."""
        return self._remove_punctuation(*args, **kwargs)

    def _tokenize(self, text: str) -> list[str]:
        tokens: list[str] = self.tokenizer(text)
        return tokens

    def get_word_token(self, input_tokens: Sequence[str]) -> list[str]:
        """Tokens without the sign that byte-pair encoders write for a space."""
        return [token.replace("Ġ", "") for token in input_tokens]

    def summarize_attributions(self, attributions: torch.Tensor) -> torch.Tensor:
        """Attributions as shares that add up to one in each row, divided by the norm of the rows' sums."""
        shares = torch.softmax(attributions, dim=0 if attributions.ndim in (0, 1, 3) else 1)
        summary: torch.Tensor = shares / torch.linalg.vector_norm(shares.sum(dim=-1))
        return summary

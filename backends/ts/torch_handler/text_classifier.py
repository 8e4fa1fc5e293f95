"""`--handler text_classifier`: what a text is about, and how sure the model is."""

from collections.abc import Sequence
from typing import Any

import torch

from ringserve.backends.ts.handler_utils.explanations import explained
from ringserve.backends.ts.handler_utils.preprocess.rows import refusal
from ringserve.backends.ts.handler_utils.preprocess.texts import TextBatch, rows_of
from ringserve.backends.ts.handler_utils.text_utils import ngrams_iterator
from ringserve.backends.ts.handler_utils.timer import timed
from ringserve.backends.ts.torch_handler.text_handler import TextHandler
from ringserve.backends.ts.utils.util import map_class_to_label


class TextClassifier(TextHandler):
    """For models that take the numbers of all texts' words in one tensor, int64 [words], and where each text begins, int64
    [rows], as `torch.nn.EmbeddingBag` does, and give a score per class, [rows, classes]."""

    ngrams = 2

    @timed
    def preprocess(self, data: Any) -> Any:
        """The rows' texts cleaned, as the numbers of their words and word pairs.

        Raises `PredictionException` (400) for an input that is no text, or has a word that the vocabulary lacks and has no
        number for.
        """
        return TextBatch([self._numbered(self._text_of(row)) for row in data])

    def _numbered(self, text: str) -> tuple[torch.Tensor, list[str]]:
        text = self._expand_contractions(self._remove_html_tags(text).lower())
        words = self._tokenize(self._remove_punctuation(self._remove_accented_characters(text)))
        try:
            numbers = [self.source_vocab[word] for word in ngrams_iterator(words, self.ngrams)]
        except KeyError as error:
            raise refusal(f'The vocabulary has no number for {error}, and none for unknown words ("<unk>").') from None
        return torch.as_tensor(numbers, dtype=torch.int64, device=self.device), words

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """The scores of all rows, from one call of the model with the numbers and where each row's begin."""
        rows = rows_of(data)
        begins = torch.zeros(len(rows), dtype=torch.int64, device=self.device)
        begins[1:] = torch.as_tensor([len(numbers) for numbers, _ in rows[:-1]]).cumsum(0)
        return super().inference(data[0], begins, *args, **kwargs)

    @timed
    def postprocess(self, data: Any) -> list[dict[str, Any]]:
        """Per row `{label: probability}` of all classes."""
        return map_class_to_label(torch.softmax(data, dim=1).tolist(), self.mapping)

    def get_insights(self, text_preprocess: Any, _: Any, target: int | Sequence[int] = 0) -> list[dict[str, Any]]:
        """Per row how much what the layer `embedding` gave adds to the score of class `target`, in shares, beside the words.

        A layer that gives a vector per word and pair has a list for each of them; one that adds them up, as
        `torch.nn.EmbeddingBag` does, a single list for the text.
        """
        rows = rows_of(text_preprocess)
        targets = [target] * len(rows) if isinstance(target, int) else target
        return [self._insight(*row, wanted) for row, wanted in zip(rows, targets, strict=True)]

    def _insight(self, numbers: torch.Tensor, words: list[str], target: int) -> dict[str, Any]:
        attributions = explained(
            self.lig,
            numbers,
            target,
            baselines=torch.zeros_like(numbers),  # a text of the same length, of the vocabulary's first word
            additional_forward_args=torch.zeros(1, dtype=torch.int64, device=self.device),
        )
        return {
            "importances": self.summarize_attributions(attributions).tolist(),
            "words": self.get_word_token(words),
        }

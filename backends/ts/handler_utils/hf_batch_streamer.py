"""`TextIteratorStreamerBatch`: the texts of a batch while transformers generates them. Importing this imports transformers."""

from typing import Any

from transformers.generation.streamers import BaseStreamer, TextIteratorStreamer


class TextIteratorStreamerBatch(BaseStreamer):
    """Given to `model.generate` as its streamer, and iterated over by the handler: each step is a list with `{"text": ...}` for
    each row. A row that has ended gives "" until all have; TorchServe's stops with the first, and what the others still had to
    say is lost. `timeout` is in seconds, for one piece of text; `decode_kwargs` are those of `tokenizer.decode`."""

    def __init__(
        self,
        tokenizer: Any,
        batch_size: int,
        skip_prompt: bool = False,
        timeout: float | None = None,
        **decode_kwargs: Any,
    ) -> None:
        self.batch_size = batch_size
        self.streamers: list[Any] = [
            TextIteratorStreamer(tokenizer, skip_prompt, timeout, **decode_kwargs) for _ in range(batch_size)
        ]
        self.streamer_iterators = [iter(streamer) for streamer in self.streamers]
        self._ended = [False] * batch_size

    def put(self, value: Any) -> None:
        """Take the next tokens of all rows, `[rows]` or `[rows, tokens]`. Raises ValueError for another number of rows."""
        if value.shape[0] != self.batch_size:
            raise ValueError(
                f"TextIteratorStreamerBatch was made for {self.batch_size} rows and got tokens of the shape {value.shape}"
            )
        for row, streamer in enumerate(self.streamers):
            streamer.put(value[row : row + 1])

    def end(self) -> None:
        """Nothing more comes."""
        for streamer in self.streamers:
            streamer.end()

    def __iter__(self) -> "TextIteratorStreamerBatch":
        return self

    def __next__(self) -> list[dict[str, str]]:
        texts = [{"text": self._next_of(row)} for row in range(self.batch_size)]
        if all(self._ended):
            raise StopIteration
        return texts

    def _next_of(self, row: int) -> str:
        if not self._ended[row]:
            for text in self.streamer_iterators[row]:
                return str(text)
            self._ended[row] = True
        return ""

"""`--handler densenet_handler`: a tensor in, as `torch.save` writes it, and the model's tensor out in the same form."""

import io
import zipfile
from typing import Any

import torch

from ringserve.backends.ts.handler_utils.preprocess.rows import refusal, row_input, what_came
from ringserve.backends.ts.handler_utils.timer import timed
from ringserve.backends.ts.torch_handler.base_handler import BaseHandler

ZIP = b"PK"


class DenseNetHandler(BaseHandler):
    """For models that take and give one tensor. Requests bring one row of it each, all of one shape."""

    @timed
    def preprocess(self, data: Any) -> Any:
        """The rows' tensors as one. Raises `PredictionException` (400) for an input that is no saved tensor, or one whose
        values take more bytes than it has."""
        return torch.stack([self._tensor(row) for row in data])

    def _tensor(self, row: Any) -> torch.Tensor:
        name, value = row_input(row)
        came: str | None = what_came(value)
        if isinstance(value, bytes | bytearray):
            try:
                _check_entries(value)
                # Weights only: this comes from a client, and a pickle may be a program.
                loaded = torch.load(io.BytesIO(value), map_location=self.device, weights_only=True)
            except MemoryError:
                raise
            except Exception:  # noqa: BLE001 - what is no pickle makes the reading of one fail in any way
                came = f"{len(value)} bytes of something else"
            else:
                came = _objection(loaded, len(value))
                if came is None:
                    return loaded  # type: ignore[no-any-return]
        raise refusal(f'The input "{name}" should be a dense tensor as torch.save writes it; {came} came.')

    @timed
    def postprocess(self, data: Any) -> list[torch.Tensor]:
        """Per row the model's tensor with a first dimension of 1, as the answer to a batch of one has it."""
        return list(data.split(1))


def _check_entries(data: bytes | bytearray) -> None:
    """Raises ValueError or BadZipFile for a zip file whose entries are larger than it is. torch writes them as they are, but
    would read compressed ones, which grow a thousandfold."""
    if data.startswith(ZIP):
        with zipfile.ZipFile(io.BytesIO(data)) as file:
            if sum(entry.file_size for entry in file.infolist()) > len(data):
                raise ValueError("entries larger than their file")


def _objection(loaded: Any, bytes_max: int) -> str | None:
    """What speaks against an object that was in a file of so many bytes, None for a tensor that a model can be given."""
    if type(loaded) not in (torch.Tensor, torch.nn.Parameter):
        return f"a saved {type(loaded).__name__}"
    if loaded.is_meta:
        return "a saved tensor without values"
    if loaded.layout is not torch.strided or loaded.is_quantized or loaded.is_nested:
        return "a saved tensor that is not dense"
    size = loaded.numel() * loaded.element_size()
    return f"a saved tensor of {size} bytes in a file of {bytes_max}" if size > bytes_max else None

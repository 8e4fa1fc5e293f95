"""Images in, a batch of tensors out: what the handlers of vision models have in common, and users' own are derived from."""

import base64
import binascii
import io
from typing import Any

import torch
from PIL import Image, UnidentifiedImageError

from ringserve.backends.ts.handler_utils.explanations import as_one_target, explained, integrated_gradients, row_targets
from ringserve.backends.ts.handler_utils.preprocess.rows import refusal, row_input, what_came
from ringserve.backends.ts.handler_utils.timer import timed
from ringserve.backends.ts.torch_handler.base_handler import BaseHandler
from ringserve.backends.ts.utils.util import PredictionException

EXPLANATION_STEPS = 15
# How a file begins that Pillow would have run by Ghostscript, if that is installed: no client may do that.
POSTSCRIPT = (b"%!PS", b"\xc5\xd0\xd3\xc6")


class VisionHandler(BaseHandler):
    """A model of images. A subclass says as `image_processing` what makes a tensor of an opened image: any callable, for
    example `torchvision.transforms.Compose([...])`, and as `postprocess` what is answered."""

    image_processing: Any
    _explainer: Any = None  # of the class: subclasses may have an __init__ that does not call this one's

    def initialize(self, context: Any) -> None:
        """As `BaseHandler`, and lift Pillow's limit on an image's pixels if the server's `limit_max_image_pixels` is false."""
        super().initialize(context)
        if not context.system_properties.get("limit_max_image_pixels"):
            Image.MAX_IMAGE_PIXELS = None  # of this process, which is this model's alone

    @timed
    def preprocess(self, data: Any) -> Any:
        """The rows' images, or the tensors that they brought as nested lists of numbers, as one batch on the model's device.

        Raises `PredictionException` (400) that says which input is no image, and why.
        """
        return torch.stack([self._image_tensor(row) for row in data]).to(self.device)

    def _image_tensor(self, row: Any) -> Any:
        name, value = row_input(row)
        if isinstance(value, str):
            try:
                value = base64.b64decode(value)
            except (binascii.Error, ValueError) as error:
                raise _no_image(name, f"as text it should be the image's bytes in base64: {error}") from None
        if isinstance(value, bytes | bytearray):
            return self._processed(name, value)
        if not isinstance(value, list | tuple | torch.Tensor):
            raise _no_image(
                name, f"bytes, base64 text or nested lists of numbers were expected, {what_came(value)} came"
            )
        try:
            return torch.as_tensor(value, dtype=torch.float32)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise _no_image(name, f"as lists it should be numbers in the shape of a tensor: {error}") from None

    def _processed(self, name: str, data: bytes | bytearray) -> Any:
        if data.startswith(POSTSCRIPT):
            raise _no_image(name, "it is a program in PostScript")
        try:
            with Image.open(io.BytesIO(data)) as image:
                return self.image_processing(image)
        except MemoryError:
            raise
        except Exception as error:
            # The image is to blame if it cannot be read by itself either; else `image_processing` is, and its error counts.
            problem = error if isinstance(error, Image.DecompressionBombError) else _problem_of(data)
            if problem is None:
                raise
            if isinstance(problem, UnidentifiedImageError):
                raise _no_image(name, f"its {len(data)} bytes are in none of the formats that Pillow reads") from error
            raise _no_image(name, f"{problem}") from error

    @property
    def ig(self) -> Any:
        """Integrated gradients of the model: captum's if it is installed. Made by the first explanation."""
        if self._explainer is None:
            self._explainer = integrated_gradients(self.model)
        return self._explainer

    @ig.setter
    def ig(self, explainer: Any) -> None:
        self._explainer = explainer

    def explain_handle(self, data_preprocess: Any, raw_data: Any) -> Any:
        """As `BaseHandler`, with every row's own `target`: a number for all, or a list where the rows differ."""
        return self.get_insights(data_preprocess, row_input(raw_data[0])[1], as_one_target(row_targets(raw_data)))

    def get_insights(self, tensor_data: Any, _: Any, target: Any = 0) -> list[Any]:
        """Per row how much each number of its tensor adds to the score of class `target`, as nested lists in its shape."""
        insights: list[Any] = explained(self.ig, tensor_data, target, n_steps=EXPLANATION_STEPS).tolist()
        return insights


def _no_image(name: str, why: str) -> PredictionException:
    return refusal(f'The input "{name}" is no image that can be used: {why}.')


def _problem_of(data: bytes | bytearray) -> Exception | None:
    """Why Pillow cannot read an image, None when it can."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - hostile bytes make its readers raise anything
        return error
    return None

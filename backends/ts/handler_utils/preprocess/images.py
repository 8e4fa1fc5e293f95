"""From an opened image to the tensor a vision model was trained on, in steps that give the numbers torchvision gives.

image ─▶ ToRgb ─▶ Resize(256) ─▶ CenterCrop(224) ─▶ ToTensor ─▶ Normalize ─▶ float32 [3, 224, 224]

The rules are those of `torchvision.transforms` on PIL images (its documentation of `Resize`, `CenterCrop`, `ToTensor` and
`Normalize`): Pillow resizes, which smooths what it makes smaller and rounds to 8 bits after each of its two passes, so the
same library gives the same numbers. An image is never turned by its EXIF orientation, as it is not there either.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

# What the models of ImageNet's challenge were trained with: per channel, of values between 0 and 1.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

PIXELS_MAX = 2**30 // 4 // 3  # Pillow's own limit, of which it lets twice as many pass

# What one step makes of what the step before it made: first images, then tensors.
Step = Callable[[Any], Any]


class Compose:
    """Steps, one after the other."""

    def __init__(self, transforms: Sequence[Step]) -> None:
        self.transforms = list(transforms)

    def __call__(self, image: Any) -> Any:
        for step in self.transforms:
            image = step(image)
        return image


class ToRgb:
    """Any image as 8 bits of red, green and blue: transparency is dropped, grey is three times itself, and of 16 bits the
    upper 8 count. torchvision has no such step, and its `Normalize` for three channels refuses all other images."""

    def __call__(self, image: Image.Image) -> Image.Image:
        if image.mode == "RGB":
            return image
        if image.mode == "I" or image.mode.startswith("I;16"):  # what Pillow makes of a grey PNG with 16 bits
            image = Image.fromarray((np.asarray(image).clip(0, 0xFFFF) >> 8).astype(np.uint8))
        elif image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # Pillow warns about the direct way
        elif image.mode == "F":
            image = image.convert("L")
        return image.convert("RGB")


class Resize:
    """The shorter side becomes `size` pixels, the longer one keeps the proportion, its fraction of a pixel cut off."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        width, height = image.size
        short, long = sorted(image.size)
        longer = int(self.size * long / short)
        wanted = (self.size, longer) if width <= height else (longer, self.size)
        if wanted == image.size:
            return image
        # A strip one pixel wide, a few hundred bytes as a file, may ask for gigabytes here: Pillow's limit on what an image
        # may be decoded to is the limit on what it may be enlarged to. It holds where the other one is lifted.
        limit = Image.MAX_IMAGE_PIXELS or PIXELS_MAX
        if self.size * longer > 2 * limit:
            raise Image.DecompressionBombError(
                f"{width} x {height} pixels would become {wanted[0]} x {wanted[1]}, and {2 * limit} in all is the limit"
            )
        return image.resize(wanted, Image.Resampling.BILINEAR)


class CenterCrop:
    """`size` by `size` pixels from the middle, black where the image is smaller."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, image: Image.Image) -> Image.Image:
        left, top = (self._start(side) for side in image.size)
        return image.crop((left, top, left + self.size, top + self.size))

    def _start(self, side: int) -> int:
        """The first pixel kept. Half pixels are rounded to the even side when cutting, and cut off when padding."""
        spare = side - self.size
        return round(spare / 2) if spare >= 0 else -(-spare // 2)


class ToTensor:
    """An image as float32 [channels, height, width]; 8 bits become numbers between 0 and 1, wider ones stay what they are."""

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels = np.array(image)
        if pixels.ndim == 2:
            pixels = pixels[:, :, None]
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
        return tensor.div_(255) if pixels.dtype == np.uint8 else tensor


class Normalize:
    """(values - mean) / std, per channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean = torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1)
        self._std = torch.tensor(std, dtype=torch.float32).view(-1, 1, 1)

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.sub(self._mean).div_(self._std)


def imagenet_steps() -> Compose:
    """What models of ImageNet's classes, and others that were made from them, expect: float32 [3, 224, 224]."""
    return Compose([ToRgb(), Resize(256), CenterCrop(224), ToTensor(), Normalize(IMAGENET_MEAN, IMAGENET_STD)])

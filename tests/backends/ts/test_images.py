"""The steps from an image to a tensor, against the rules of torchvision and Pillow written out in numpy."""

import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ringserve.backends.ts.handler_utils.preprocess.images import (
    PIXELS_MAX,
    CenterCrop,
    Compose,
    Resize,
    ToRgb,
    ToTensor,
    imagenet_steps,
)

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
DIFFERENCE_MAX = 1e-5
FIXED_POINT = 22  # Pillow's resampling weights are whole numbers of 2 ** -22 for images of 8 bits
sides = st.integers(1, 90)


def random_image(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def bilinear_weights(old: int, new: int) -> np.ndarray:
    """How much each of `old` pixels counts in each of `new` ones: a triangle as wide as what becomes one pixel."""
    scale = old / new
    reach = max(scale, 1.0)
    weights = np.zeros((new, old))
    for place in range(new):
        center = (place + 0.5) * scale
        first, last = int(max(center - reach + 0.5, 0)), int(min(center + reach + 0.5, old))
        pixels = np.arange(first, last)
        triangle = np.clip(1 - np.abs((pixels - center + 0.5) / reach), 0, None)
        weights[place, first:last] = triangle / triangle.sum()
    fixed: np.ndarray = np.floor(weights * 2**FIXED_POINT + 0.5)
    return fixed


def resampled(lines: np.ndarray, new: int) -> np.ndarray:
    """Along the first axis, rounded to 8 bits."""
    # As float64, which is exact for whole numbers of this size, and multiplies much faster than int64.
    sums = np.tensordot(bilinear_weights(lines.shape[0], new), lines.astype(np.float64), axes=1)
    rounded: np.ndarray = np.floor(sums / 2**FIXED_POINT + 0.5).clip(0, 255)
    return rounded


def resized(pixels: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """[height, width, 3] with the shorter side of `size`, by both orders of the two passes: Pillow goes along the lines
    first, since its release 13 across them first where an image gets much lower."""
    height, width = pixels.shape[:2]
    wanted = (int(size * height / width), size) if width <= height else (size, int(size * width / height))

    def along(lines: np.ndarray) -> np.ndarray:
        return resampled(lines.swapaxes(0, 1), wanted[1]).swapaxes(0, 1)

    yield resampled(along(pixels), wanted[0])
    yield along(resampled(pixels, wanted[0]))


def cropped(pixels: np.ndarray, size: int) -> np.ndarray:
    """The middle; what is smaller is padded first, by less before than after."""
    short = [max(size - side, 0) for side in pixels.shape[:2]]
    pixels = np.pad(pixels, [*((less // 2, (less + 1) // 2) for less in short), (0, 0)])
    top, left = (int(np.rint((side - size) / 2)) for side in pixels.shape[:2])  # rint: halves to the even number
    return pixels[top : top + size, left : left + size]


def furthest_off(tensor: torch.Tensor, image: Image.Image) -> float:
    """The largest difference between a tensor and what the reference formula makes of the image, in double precision."""
    furthest = np.inf
    for pixels in resized(np.asarray(image), 256):
        expected = ((cropped(pixels, 224) / 255 - MEAN) / STD).transpose(2, 0, 1)
        furthest = min(furthest, float(np.abs(tensor.numpy() - expected).max()))
        if furthest < DIFFERENCE_MAX:
            break
    return furthest


@given(width=sides, height=sides, times=st.integers(1, 5), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_the_steps_for_imagenet_are_the_reference_formula(width: int, height: int, times: int, seed: int) -> None:
    # Not longer than five times its width: the reference computes all of what is cut off, too.
    image = random_image(min(width * times, height * 5), min(height, width * times * 5), seed)
    tensor = imagenet_steps()(image)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (3, 224, 224)
    assert furthest_off(tensor, image) < DIFFERENCE_MAX


@pytest.mark.parametrize(
    "size", [(256, 256), (255, 257), (224, 224), (1, 12), (12, 1), (1, 1), (640, 427), (301, 1024)]
)
def test_sizes_at_the_edges_of_the_rules_are_the_reference_formula_too(size: tuple[int, int]) -> None:
    image = random_image(*size)
    assert furthest_off(imagenet_steps()(image), image) < DIFFERENCE_MAX


@given(width=sides, height=sides, size=st.integers(1, 90))
@settings(max_examples=60, deadline=None)
def test_a_crop_takes_the_middle_and_pads_with_black(width: int, height: int, size: int) -> None:
    image = random_image(width, height)
    assert np.array_equal(np.asarray(CenterCrop(size)(image)), cropped(np.asarray(image), size))


def test_an_image_that_has_the_size_already_is_not_computed_again() -> None:
    image = random_image(300, 256)
    assert Resize(256)(image) is image


@pytest.mark.parametrize("limit", [PIXELS_MAX, None], ids=str)
def test_a_strip_that_would_become_gigabytes_is_refused_by_whatever_limit(
    monkeypatch: pytest.MonkeyPatch, limit: int | None
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    strip = Image.new("RGB", (1, 65_000))
    with pytest.raises(Image.DecompressionBombError, match=r"1 x 65000 pixels would become 256 x 16640000"):
        Resize(256)(strip)
    assert Resize(2)(strip).size == (2, 130_000)


def test_an_image_of_any_size_is_made_smaller_when_the_limit_is_lifted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr("ringserve.backends.ts.handler_utils.preprocess.images.PIXELS_MAX", 100)
    assert Resize(10)(Image.new("L", (30, 40))).size == (10, 13)


def opened(image: Image.Image, kind: str = "PNG", **how: Any) -> Image.Image:
    """Written to a file and read again."""
    file = io.BytesIO()
    image.save(file, kind, **how)
    return Image.open(file)


def test_transparency_is_dropped() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (4, 5, 4), dtype=np.uint8)
    image = opened(Image.fromarray(pixels))
    assert image.mode == "RGBA"
    assert np.array_equal(np.asarray(ToRgb()(image)), pixels[:, :, :3])


@pytest.mark.parametrize("mode", ["L", "LA", "1"])
def test_grey_is_three_times_itself(mode: str) -> None:
    grey = random_image(6, 3).convert("L")
    image = opened(grey.convert(mode))
    assert image.mode == mode
    expected = np.asarray(grey.convert(mode).convert("L"))
    assert np.array_equal(np.asarray(ToRgb()(image)), np.repeat(expected[:, :, None], 3, axis=2))


@pytest.mark.parametrize("how", [{}, {"transparency": bytes(range(16))}], ids=["opaque", "transparent"])
def test_a_palette_becomes_its_colours(how: dict[str, Any]) -> None:
    image = random_image(4, 4).quantize(16)
    expected = np.asarray(image.convert("RGB"))
    read = opened(image, **how)
    assert read.mode == "P"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(np.asarray(ToRgb()(read)), expected)


def test_of_16_bits_the_upper_8_count() -> None:
    values = np.array([[0, 255, 256], [0x1234, 0xFF00, 0xFFFF]], dtype=np.uint16)
    image = opened(Image.fromarray(values))
    assert image.mode.startswith("I")
    assert np.asarray(ToRgb()(image))[:, :, 1].tolist() == [[0, 0, 1], [0x12, 0xFF, 0xFF]]


def test_colours_of_print_become_those_of_a_screen() -> None:
    image = random_image(4, 4).convert("CMYK")
    assert ToRgb()(image).mode == "RGB"


def test_an_image_is_not_turned_by_its_exif_orientation() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    image = opened(random_image(30, 20), "JPEG", exif=exif)
    assert image.getexif()[0x0112] == 6
    assert ToTensor()(image).shape == (3, 20, 30)


def test_a_jpeg_is_decoded_in_its_full_size_before_it_is_made_smaller() -> None:
    file = io.BytesIO()
    random_image(1024, 768).save(file, "JPEG")
    with Image.open(file) as image, Image.open(file) as full:
        full.load()
        assert furthest_off(imagenet_steps()(image), full) < DIFFERENCE_MAX


@pytest.mark.parametrize(("dtype", "divisor"), [(np.uint8, 255), (np.int32, 1), (np.float32, 1)])
def test_only_8_bits_are_scaled(dtype: Any, divisor: int) -> None:
    values = np.array([[0, 1, 200]], dtype=dtype)
    expected = torch.tensor([[[0.0, 1.0, 200.0]]]) / divisor
    torch.testing.assert_close(ToTensor()(Image.fromarray(values)), expected, atol=1e-7, rtol=0)


def test_steps_are_taken_one_after_the_other_and_can_be_looked_at() -> None:
    steps = Compose([lambda text: text + "b", str.upper])
    assert steps("a") == "AB"
    assert steps.transforms[1] is str.upper


def test_the_image_itself_stays_as_it_is() -> None:
    image = random_image(300, 400)
    before = image.tobytes()
    imagenet_steps()(image)
    assert image.tobytes() == before

"""scikit-learn's bundled handwritten digits, split once: what `train.py` may see and what it may not.

The split is by a fixed seed, so the pictures under `images/`, cut from the held-out part, stay unseen by every training.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

SPLIT_SEED = 0
HELD_OUT_SHARE = 0.2
GREY_MAX = 16  # the data set's pixels are 0..16


class Digits(NamedTuple):
    """Images `[rows, 8, 8]` of float32 in 0..1 and the digit each one shows."""

    images: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]


class Split(NamedTuple):
    """`training` is learned from, `held_out` only ever measured on."""

    training: Digits
    held_out: Digits


def load_split() -> Split:
    """The same split every time."""
    images, labels = load_digits(return_X_y=True)
    scaled = (images.reshape(-1, 8, 8) / GREY_MAX).astype(np.float32)
    parts = train_test_split(scaled, labels, test_size=HELD_OUT_SHARE, random_state=SPLIT_SEED, stratify=labels)
    training_images, held_out_images, training_labels, held_out_labels = parts
    return Split(Digits(training_images, training_labels), Digits(held_out_images, held_out_labels))


def one_of_each(digits: Digits) -> Digits:
    """The first image of every class, in the order of the classes."""
    first = [int(np.flatnonzero(digits.labels == digit)[0]) for digit in range(10)]
    return Digits(digits.images[first], digits.labels[first])

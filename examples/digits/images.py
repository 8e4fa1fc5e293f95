"""Draw the ten pictures under `images/`: one held-out digit per class, named after what it shows. From the root:

    python -m examples.digits.images [DIR]

Each 8x8 image is enlarged by repeating its pixels, so that a person can see it and the handler can undo it exactly.
"""

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from examples.digits.dataset import load_split, one_of_each

IMAGES = Path(__file__).parent / "images"
ENLARGEMENT = 8  # 8x8 pixels become 64x64


def picture(image: npt.NDArray[np.float32]) -> Image.Image:
    """One 8x8 image of 0..1 as a grey picture."""
    grey = np.rint(image * 255).astype(np.uint8)
    return Image.fromarray(grey.repeat(ENLARGEMENT, axis=0).repeat(ENLARGEMENT, axis=1))


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the example's ten pictures.")
    parser.add_argument("directory", type=Path, nargs="?", default=IMAGES, help="where to (default: beside this file)")
    directory: Path = parser.parse_args().directory

    directory.mkdir(parents=True, exist_ok=True)
    chosen = one_of_each(load_split().held_out)
    for image, digit in zip(chosen.images, chosen.labels, strict=True):
        picture(image).save(directory / f"{digit}.png", optimize=True)


if __name__ == "__main__":
    main()

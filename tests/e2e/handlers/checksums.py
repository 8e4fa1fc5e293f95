"""A class on two arrays, an image and some bytes: answers the CRC-32 of each row's own."""

import zlib

import numpy as np

Arrays = dict[str, np.ndarray]


class Checksums:
    def predict(self, inputs: Arrays, outputs: Arrays) -> None:
        for row in range(len(outputs["crcs"])):
            outputs["crcs"][row] = [zlib.crc32(inputs[name][row].tobytes()) for name in ("image", "mask")]

"""A module two folders down."""

from ..constants import MARK


def strip(text):
    return text.strip().replace(MARK, "")

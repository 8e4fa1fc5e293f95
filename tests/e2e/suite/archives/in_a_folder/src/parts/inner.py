"""Has a relative import."""

from .secret import NAME


def name():
    return NAME

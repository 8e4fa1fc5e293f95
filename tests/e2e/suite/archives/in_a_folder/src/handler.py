"""Lies in a folder of the archive, and finds its neighbours as well as what lies at the root."""

import beside_the_manifest
import neighbour
from parts.inner import name


def handle(data, context):
    if data is None:
        return None
    return [[neighbour.NAME, beside_the_manifest.NAME, name()]] * len(data)

"""Imports packages of the archive in all the ways there are."""

import importlib

import textkit
import textkit.clean.html as html_cleaner
from textkit.clean import spaces


def handle(data, context):
    if data is None:
        return None
    late = importlib.import_module("no_init.late")
    from textkit.constants import MARK

    texts = [bytes(row["body"]).decode() for row in data]
    return [f"{MARK}{late.shout(spaces.strip(html_cleaner.untagged(text)))}{textkit.MARK}" for text in texts]

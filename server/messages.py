"""The bases of what processes say to each other (control.py), for modules that have messages of their own."""

import msgspec


class Message(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of every message."""


class Word(msgspec.Struct, frozen=True, tag=True, array_like=True):
    """Base of what a message may say several of."""

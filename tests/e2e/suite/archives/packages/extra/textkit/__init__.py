"""A package."""

from .constants import MARK

__all__ = ["MARK"]

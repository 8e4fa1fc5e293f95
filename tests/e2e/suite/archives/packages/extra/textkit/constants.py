"""A module."""

MARK = "*"

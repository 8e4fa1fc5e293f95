"""At the root."""

NAME = "root"

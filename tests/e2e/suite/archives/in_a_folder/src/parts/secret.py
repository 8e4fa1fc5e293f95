"""A module of a package."""

NAME = "package"

"""Beside the handler."""

NAME = "neighbour"

"""What JSON values are, as far as arrays are made of them: for error messages, and before numpy makes something else of them."""

import numpy as np

KIND_LISTS_MAX = 8


def holds_text(value: object) -> bool:
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, str):
            return True
        if isinstance(each, list):
            left += each
    return False


def misfit_of(found: np.ndarray, target: np.dtype) -> str | None:
    """The first value that would not survive as `target` (no number, out of range, a fraction for an integer), if any."""
    if found.dtype.kind not in "biuf":
        values = found.ravel().tolist()
        return kind_of(next((value for value in values if not isinstance(value, int | float)), values))
    if found.dtype.kind == "b":
        return None  # true and false are 1 and 0 of any type
    if target.kind == "b":
        fits = np.zeros(found.shape, bool)
    elif target.kind == "f":
        fits = np.abs(found) <= float(np.finfo(target).max)
    elif found.dtype.kind == "f":
        fits = found == np.floor(found)
        if fits.all():
            fits = np.zeros(found.shape, bool)  # 1.0 is no integer either, only not the first one to name
    else:
        limits = np.iinfo(target)
        fits = (found >= limits.min) & (found <= limits.max)
    if np.all(fits):
        return None
    return str(found.ravel()[~np.ravel(fits)][0].item())


def kind_of(value: object) -> str:
    """What a JSON value is, in words; of lists deeper than anybody means, only the outer ones are told."""
    lists = 0
    while isinstance(value, list) and value and lists < KIND_LISTS_MAX:
        value, lists = value[0], lists + 1
    names = {
        list: "lists" if value else "an empty list",
        dict: "an object",
        str: "a string",
        int: "a number",
        float: "a number",
        bool: "a boolean",
        type(None): "null",
    }
    return "a list of " * lists + names.get(type(value), type(value).__name__)

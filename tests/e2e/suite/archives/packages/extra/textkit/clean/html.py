"""A module two folders down."""

import re


def untagged(text):
    return re.sub("<[^>]*>", "", text)

"""In a folder without __init__.py."""


def shout(text):
    return text.upper()

"""Prints and logs a lot, on every way there is."""

import logging
import sys
import warnings

logging.basicConfig(level=logging.DEBUG, force=True)
logger = logging.getLogger("chatty")


def handle(data, context):
    print("no line break", end="")
    if data is None:
        warnings.warn("deprecated", DeprecationWarning)
        return None
    sys.stderr.write("to standard error\n")
    logger.debug("debug")
    logger.error("an error that is none", exc_info=True)
    warnings.warn("a warning")
    for _ in range(2_000):
        print("m" * 1_000)
    sys.stdout.buffer.write(b"\xff\x00 binary\n")
    return ["said a lot"] * len(data)

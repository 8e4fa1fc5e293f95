"""Its process ends in the middle of a request, and another one takes its place."""

import os
import signal


def handle(data, context):
    if data is None:
        return None
    word = bytes(data[0]["body"]).decode()
    if word == "exit":
        print("the last words of " + context.model_name, flush=True)
        os._exit(7)
    if word == "signal":
        os.kill(os.getpid(), signal.SIGSEGV)
    return ["alive"] * len(data)

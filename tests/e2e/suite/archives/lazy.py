"""Loads what it needs with the first request, which is slow."""

import time

model = None


def load():
    time.sleep(0.3)
    return {"weights": 3}


def handle(data, context):
    global model
    if data is None:
        return None
    first = model is None
    if first:
        model = load()
    return [{"first": first, "answer": model["weights"]} for _ in data]

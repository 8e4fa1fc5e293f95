"""The smallest handler: a function, and a model that lives in the module."""

greeting = None


def handle(data, context):
    global greeting
    if data is None:
        greeting = "hello from " + context.model_name
        return None
    return [greeting] * len(data)

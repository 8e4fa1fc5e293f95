"""The idiom of nearly every handler: `data`, else `body`; writes into what it is given, and gives it back."""


def handle(data, context):
    if data is None:
        return None
    answers = []
    for row in data:
        value = row.get("data") or row.get("body")
        if isinstance(value, bytearray):
            value.extend(b"!")
            value[:1] = value[:1].upper()
        answers.append(value)
    return answers

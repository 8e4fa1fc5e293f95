"""What befalls all of a batch: the status for all, an answer too few, one too many, and a row that nobody can serialise."""


def handle(data, context):
    if data is None:
        return None
    words = [bytes(row["body"]).decode() for row in data]
    if "all" in words:
        context.set_all_response_status(207, "Every One")
    if "too few" in words:
        return words[1:]
    if "too many" in words:
        return [*words, "more"]
    return [{1} if word == "a set" else word for word in words]

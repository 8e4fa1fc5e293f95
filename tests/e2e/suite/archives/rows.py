"""Batches: every row is answered with its own number, and some of them with a status of their own."""


def handle(data, context):
    if data is None:
        return None
    answers = []
    for i, row in enumerate(data):
        word = bytes(row["body"]).decode()
        context.set_response_header(i, "x-row", word)
        if word.startswith("bad"):
            context.set_response_status(code=422, phrase="Not This One", idx=i)
        answers.append({"word": word, "rows": len(data), "ids": len({*context.request_ids.values()})})
    return answers

"""Runs what each row says as `code`, statements of Python, and answers what they call `answer`."""


def handle(data, context):
    if data is None:
        return None
    answers = []
    for index, row in enumerate(data):
        names = {"context": context, "index": index, "row": row, "data": data, "answer": "done"}
        exec(bytes(row.get("code", b"answer = sorted(row)")).decode(), names)  # noqa: S102 (what the conversation is made of)
        answers.append(names["answer"])
    return answers

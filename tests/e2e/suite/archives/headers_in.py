"""Answers with the request's headers that the body names, and with all of them that begin with x-."""


def handle(data, context):
    if data is None:
        return None
    answers = []
    for i, row in enumerate(data):
        asked = bytes(row["body"]).decode().split()
        everything = context.get_all_request_header(i)
        answers.append(
            {
                "asked": [context.get_request_header(i, name) for name in asked],
                "mine": {name: everything[name] for name in sorted(everything) if name.lower().startswith("x-mine")},
                "of body": everything.get("body"),
                "explain": everything.get("explain"),
                "url_path": everything.get("url_path"),
            }
        )
    return answers

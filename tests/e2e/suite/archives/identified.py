"""Answers with the id that the server gave the request."""


def handle(data, context):
    if data is None:
        return None
    assert list(context.request_ids) == list(range(len(data)))
    assert [context.get_request_id(i) for i in context.request_ids] == list(context.request_ids.values())
    return [context.get_request_id(i) for i in range(len(data))]

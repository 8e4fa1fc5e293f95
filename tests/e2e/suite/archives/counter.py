"""Module-level state lives as long as the worker."""

calls = 0
rows_seen = 0


def handle(data, context):
    global calls, rows_seen
    calls += 1
    if data is None:
        return
    rows_seen += len(data)
    return [{"calls": calls, "rows": rows_seen} for _ in data]

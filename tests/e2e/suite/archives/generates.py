"""Answers in parts by being a generator."""


def handle(data, context):
    if data is None:
        return
    for number in range(3):
        yield [f"{bytes(row['body']).decode()}{number};" for row in data]

"""A class that has nothing to load."""


class Upper:
    def handle(self, data, context):
        return [bytes(row["body"]).upper() for row in data]

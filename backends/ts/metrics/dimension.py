"""A label of a metric."""


class Dimension:
    """One label: a name and its value, printed `name:value`."""

    def __init__(self, name: str, value: object) -> None:
        self.name = name
        self.value = value

    def __str__(self) -> str:
        return f"{self.name}:{self.value}"

    def to_dict(self) -> dict[str, object]:
        """Name and value."""
        return {"Name": self.name, "Value": self.value}

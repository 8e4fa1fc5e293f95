"""Short names of units, as handlers give them, and the names that are reported."""

UNITS: dict[str | None, str] = {
    "ms": "Milliseconds",
    "s": "Seconds",
    "percent": "Percent",
    "count": "Count",
    "MB": "Megabytes",
    "GB": "Gigabytes",
    "kB": "Kilobytes",
    "B": "Bytes",
    "": "unit",
    None: "unit",
}


class Units:
    """TorchServe's form of the table."""

    def __init__(self) -> None:
        self.units = dict(UNITS)

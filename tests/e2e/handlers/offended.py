"""Answers every row with its own text in capitals, under its own status; one row that says `offend` fails the whole batch."""

from pathlib import Path
from typing import Any


def handle(data: Any, context: Any) -> list[str] | None:
    if data is None:
        return None
    bodies = [bytes(row["body"]).decode() for row in data]
    with (Path(context.system_properties["model_dir"]) / "calls").open("a") as calls:
        calls.write(f"{len(bodies)}\n")
    if "too few" in bodies:
        return ["one"] * (len(bodies) - 1)
    if any(body.startswith("offend") for body in bodies):
        raise ValueError("a row offends")
    for index, body in enumerate(bodies):
        context.set_response_status(220 + int(body.partition(" ")[2]), "", index)
        context.set_response_header(index, "x-rows", len(bodies))
    return [body.upper() for body in bodies]

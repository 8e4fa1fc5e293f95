"""Holds every request until the folder named by its body has a file `open`; tells by a file `started` that it came."""

import time
from pathlib import Path
from typing import Any

HOLD_S_MAX = 30.0


def handle(data: Any, context: Any) -> list[str] | None:
    if data is None:
        return None
    for row in data:
        folder = Path(bytes(row["body"]).decode())
        (folder / "started").touch()
        end = time.monotonic() + HOLD_S_MAX
        while not (folder / "open").exists() and time.monotonic() < end:
            time.sleep(0.005)
    return ["passed"] * len(data)

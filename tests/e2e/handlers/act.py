"""Does what each row's body, a JSON object, says, and answers its name with how many rows there were.

`count`: a file that gains a line with the row's name; `hold`: a folder, waits there for a file `open`; `size`: answers that
many bytes instead.
"""

import time
from pathlib import Path
from typing import Any

HOLD_S_MAX = 30.0


def handle(data: Any, context: Any) -> list[Any] | None:
    return None if data is None else [_act(row["body"], len(data)) for row in data]


def _act(wanted: dict[str, Any], rows: int) -> Any:
    if "count" in wanted:
        with open(wanted["count"], "a") as file:
            file.write(f"{wanted['name']}\n")
    if "hold" in wanted:
        gate = Path(wanted["hold"]) / "open"
        end = time.monotonic() + HOLD_S_MAX
        while not gate.exists() and time.monotonic() < end:
            time.sleep(0.005)
    if "size" in wanted:
        return bytes(wanted["size"])
    return {"name": wanted.get("name"), "rows": rows}

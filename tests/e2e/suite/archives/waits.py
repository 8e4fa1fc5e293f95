"""Says that it has begun, and answers when it may, as files in the folder that the body names."""

import time
from pathlib import Path


def handle(data, context):
    if data is None:
        return None
    for row in data:
        folder = Path(bytes(row["body"]).decode())
        (folder / "began").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
    return ["waited"] * len(data)

"""What processes have open: a server that gives back what it takes has as much open after each round of a test."""

import os


def fd_counts(*pids: int) -> list[int]:
    """How many files each of them has open, but for logs, which are opened for their first line."""
    return [sum(not _is_log(entry) for entry in os.scandir(f"/proc/{pid}/fd")) for pid in pids]


def _is_log(entry: "os.DirEntry[str]") -> bool:
    try:
        return os.readlink(entry.path).endswith(".log")
    except FileNotFoundError:  # closed meanwhile
        return True

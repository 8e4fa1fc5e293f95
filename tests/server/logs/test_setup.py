"""The handlers of a whole process, in one of their own: what is said reaches files and console, and a console that nobody reads holds up
nobody."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SAYING = """
import logging, sys
from pathlib import Path
from ringserve.server.logs.setup import Logs
from ringserve.server.logs.writer import Writer
logs = Logs(Path(sys.argv[1]), "text")
for number in range(int(sys.argv[2])):
    logging.getLogger("ringserve.test").info("line %d %s", number, "x" * 100)
logging.getLogger("MODEL_LOG").warning("printed", extra={"ringserve_source": "W-1-a_1.0-stderr"})
logs._files.close()
"""


def say(folder: Path, count: int, stderr: int) -> None:
    """Ends without waiting for its console."""
    script = f"{SAYING}\nimport os; os._exit(0)"
    command = [sys.executable, "-P", "-c", script, str(folder), str(count)]
    assert subprocess.run(command, stderr=stderr, timeout=30, check=False).returncode == 0


def test_a_console_that_nobody_reads_holds_up_nobody(tmp_path: Path) -> None:
    unread, console = os.pipe()
    say(tmp_path, 5000, console)
    os.close(console)
    os.close(unread)
    lines = (tmp_path / "ts_log.log").read_text().splitlines()
    assert len(lines) == 5001
    assert lines[4999].endswith(f"ringserve.test - line 4999 {'x' * 100}")
    (model_line,) = (tmp_path / "model_log.log").read_text().splitlines()
    assert model_line == lines[-1]
    assert model_line.endswith("[WARN ] W-1-a_1.0-stderr MODEL_LOG - printed")


@pytest.mark.parametrize(("name", "lines"), [("elsewhere.log", 3), ("ringserve.log", 0)])
def test_the_console_has_what_the_log_has_unless_it_lies_beside_it(tmp_path: Path, name: str, lines: int) -> None:
    with (tmp_path / name).open("wb") as console:
        say(tmp_path, 2, console.fileno())
    assert len((tmp_path / name).read_text().splitlines()) == lines
    assert len((tmp_path / "ts_log.log").read_text().splitlines()) == 3

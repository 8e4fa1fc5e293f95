"""Starting and stopping the server from a Python program, as `ts.launcher` does (contract section 7.2).

    from ringserve.server import launcher

    lines = launcher.start("model_store", models="digits.mar", disable_token=True)
    launcher.register_model("other", "other.mar")
    launcher.stop()

The server is a process of its own, found by `ringserve stop` like any other, and it outlives the program that started it. Nothing of
it is imported here.
"""

import atexit
import contextlib
import http.client
import json
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlencode, urlsplit

STARTED = "Model server started"
LINES_MAX = 1000
LINE_BYTES_MAX = 65_536
TAIL_LINES = 20
MANAGEMENT_ADDRESS = "http://localhost:8081"
# Whoever prints at the very end of the interpreter from another thread makes it fail.
_echoing = threading.Lock()
_COMMAND = (sys.executable, "-P", "-m", "ringserve.tools.cli.main")


class ServerNotStarted(RuntimeError):
    """The server ended before it listened; the message has its exit code and its last lines."""


class _Lines(queue.Queue[str | None]):
    """The last lines that nobody has taken yet. Who puts one never waits: the oldest goes, and the reader is told how many did."""

    _dropped = 0

    def _put(self, item: str | None) -> None:
        if self._qsize() >= LINES_MAX:
            self.queue.popleft()
            self._dropped += 1
        super()._put(item)

    def _get(self) -> str | None:
        dropped, self._dropped = self._dropped, 0
        return f"({dropped} lines are left out here: nobody read them)\n" if dropped else super()._get()


@dataclass(frozen=True)
class Response:
    """What the management API answered, with the names that the `requests` package has for it."""

    status_code: int
    headers: Mapping[str, str]
    content: bytes

    @property
    def ok(self) -> bool:
        return self.status_code < 400

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")

    def json(self) -> Any:
        """Raises `ValueError` when it is not JSON."""
        return json.loads(self.content)


def start(
    model_store: str | None = None,
    snapshot_file: str | None = None,
    no_config_snapshots: bool = False,
    plugin_folder: str | None = None,
    disable_token: bool = False,
    models: str | None = None,
    enable_model_api: bool = False,
) -> "queue.Queue[str | None]":
    """Stop the server that runs, start another, echo what it says; returns when it listens, with what it says from then on: the last
    1000 lines that nobody has taken, and None when it has ended. Raises `ServerNotStarted`."""
    stop()
    words = ["start", "--foreground"]
    for flag, value in (
        ("--model-store", model_store),
        ("--plugins-path", plugin_folder),
        ("--ts-config", snapshot_file),
        ("--models", models),
    ):
        words += [flag, str(value)] if value else []
    for flag, wanted in (
        ("--no-config-snapshots", no_config_snapshots),
        ("--disable-token-auth", disable_token),
        ("--enable-model-api", enable_model_api),
    ):
        words += [flag] if wanted else []
    # In a session of its own: what interrupts this program, or a cell of a notebook, is not for the server.
    process = subprocess.Popen(
        [*_COMMAND, *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    output = process.stdout
    assert output is not None
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    for line in _lines_of(output):
        print(line.rstrip())
        if STARTED in line:
            return _followed(process, output)
        tail.append(line)
    output.close()
    said = "".join(tail).rstrip()
    raise ServerNotStarted(f"RingServe did not start (exit code {process.wait()}). Its last lines:\n{said}")


def stop(wait: bool = True) -> None:
    """Stop the server that runs, if one does. Without `wait`, return when it has been told to."""
    command = [*_COMMAND, "stop"]
    if wait:
        subprocess.run(command, check=False)
    else:
        threading.Thread(target=subprocess.run, args=(command,), kwargs={"check": False}, daemon=True).start()


def register_model(model_name: str, url: str, *, management_address: str = MANAGEMENT_ADDRESS) -> Response:
    """Register an archive, with one worker, and wait until that has loaded it."""
    params = (("model_name", model_name), ("url", url), ("initial_workers", "1"), ("synchronous", "true"))
    return register_model_with_params(params, management_address=management_address)


def register_model_with_params(
    params: Mapping[str, object] | Iterable[tuple[str, object]], *, management_address: str = MANAGEMENT_ADDRESS
) -> Response:
    """`POST /models` with these parameters. Raises `OSError` when nobody answers there."""
    query = urlencode(list(params.items() if isinstance(params, Mapping) else params), doseq=True)
    connection = http.client.HTTPConnection(urlsplit(management_address).netloc)
    try:
        connection.request("POST", f"/models?{query}")
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, headers, response.read())
    finally:
        connection.close()


def _lines_of(output: IO[bytes]) -> Iterable[str]:
    """With their ends, until the last. A line without one comes in pieces."""
    while line := output.readline(LINE_BYTES_MAX):
        yield line.decode("utf-8", "replace")


def _followed(process: "subprocess.Popen[bytes]", output: IO[bytes]) -> _Lines:
    """Take what the server says for as long as this program runs: a full pipe would hold it up. One thread reads, another echoes,
    since writing to our own output may take its time."""
    lines, echoed = _Lines(), _Lines()

    def read() -> None:
        with output:
            for line in _lines_of(output):
                lines.put(line)
                echoed.put(line)
        process.wait()
        lines.put(None)
        echoed.put(None)

    def echo() -> None:
        with contextlib.suppress(OSError, ValueError):  # our own output has ended
            while (line := echoed.get()) is not None:
                with _echoing:
                    print(line.rstrip())

    for work in (read, echo):
        threading.Thread(target=work, name=f"ringserve-{work.__name__}", daemon=True).start()
    return lines


atexit.register(_echoing.acquire, timeout=1.0)

"""Serve the example: build the archives, start the server on them, show one prediction of each, stay until Ctrl-C.

    python examples/digits/serve.py          (or: make serve)

Every child runs in a process group of its own. A Ctrl-C at the terminal then reaches this process alone, which passes
it on once; a child in our group would be told twice, and two are what makes a server stop at once instead of cleanly.
"""

import argparse
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import FrameType

from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RINGSERVE = Path(sys.executable).parent / "ringserve"  # the one installed beside this Python
REPOSITORY = ROOT / "model_repository"
MODELS = ("digits", "digits-typed")
PICTURE = HERE / "images" / "7.png"
HOST = "127.0.0.1"
INFERENCE_PORT, MANAGEMENT_PORT, METRICS_PORT = DEFAULT_PORTS = (8080, 8081, 8082)
READY_S_MAX = 120.0
POLL_S = 0.2
REPLY_S_MAX = 30.0


class Stopped(Exception):
    """The user asked to stop before there was anything to serve."""


class Family:
    """The child that runs now, and how it is told to stop."""

    def __init__(self) -> None:
        self.asked_to_stop = False
        self._child: subprocess.Popen[bytes] | None = None
        self._send = os.kill

    def listen(self) -> None:
        """From here on, a stop signal to this process is a stop signal to the child."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._pass_on)

    def start(self, command: list[str], *, stop_group: bool = False) -> subprocess.Popen[bytes]:
        """Start the next child. `stop_group`: its own children are told to stop too, as it would not do that itself."""
        self._child = subprocess.Popen(command, cwd=ROOT, process_group=0)
        self._send = os.killpg if stop_group else os.kill  # the child leads its group: both take the same number
        if self.asked_to_stop:  # between two children, or while this one was being made
            self._stop()
        return self._child

    def _pass_on(self, _number: int, _frame: FrameType | None) -> None:
        self.asked_to_stop = True
        self._stop()

    def _stop(self) -> None:
        # SIGTERM whatever we were sent: unlike SIGINT it ends a plain Python program without a traceback.
        if self._child is not None and self._child.poll() is None:
            self._send(self._child.pid, signal.SIGTERM)


def refuse_busy_ports(ports: tuple[int, ...]) -> None:
    """Say which port is taken before anything is started; the server would say it in the middle of its log."""
    for port in ports:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError as error:
                raise SystemExit(
                    f"Port {port} of {HOST} cannot be used: {error.strerror}. Is a server running?"
                ) from None


def build(family: Family) -> None:
    """Make the archives where they are missing or old."""
    command = [sys.executable, "-m", "examples.digits.build", str(REPOSITORY)]
    code = family.start(command, stop_group=True).wait()
    if family.asked_to_stop:
        raise Stopped
    if code != 0:
        raise SystemExit(code)


def server_command(ports: tuple[int, ...], scratch: Path) -> list[str]:
    """What a user would type; a configuration file is needed for other ports only."""
    command = [str(RINGSERVE), "start", "--foreground", "--model-store", str(REPOSITORY), "--models", "all"]
    command += ["--no-config-snapshots", "--disable-token-auth", "--enable-model-api"]
    if ports != DEFAULT_PORTS:
        config = scratch / "config.properties"
        names = ("inference_address", "management_address", "metrics_address")
        lines = [f"{name}=http://{HOST}:{port}\n" for name, port in zip(names, ports, strict=True)]
        config.write_text("".join([*lines, "enable_grpc=false\n"]))  # whose ports may be another server's
        command += ["--ts-config", str(config)]
    return command


def ask(url: str, body: bytes | None = None) -> bytes:
    """GET, or POST when there is a body."""
    # Named, because urllib would call it a form.
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/octet-stream"})
    with urllib.request.urlopen(request, timeout=REPLY_S_MAX) as reply:
        answer: bytes = reply.read()
    return answer


def is_ready(model: str, management_port: int) -> bool:
    """Whether the model has workers and all of them are ready. A server that does not answer yet is not ready."""
    try:
        described = json.loads(ask(f"http://{HOST}:{management_port}/models/{model}"))
    except (OSError, ValueError):  # urllib's errors are OSErrors
        return False
    workers = described[0]["workers"]
    return bool(workers) and all(worker["status"] == "READY" for worker in workers)


def wait_until_ready(family: Family, server: subprocess.Popen[bytes], management_port: int) -> None:
    """Return when every model of the example can answer."""
    end = time.monotonic() + READY_S_MAX
    missing = list(MODELS)
    while missing:
        if family.asked_to_stop:
            raise Stopped
        if server.poll() is not None:
            print(f"The server ended before it was ready, with exit code {server.returncode}.", file=sys.stderr)
            raise SystemExit(server.returncode or 1)
        if time.monotonic() > end:
            raise SystemExit(f"{', '.join(missing)} did not become ready within {READY_S_MAX:.0f} s.")
        missing = [model for model in missing if not is_ready(model, management_port)]
        if missing:
            time.sleep(POLL_S)


def pixels(picture: Path) -> bytes:
    """The picture as the typed model's row: 64 little-endian float32 of 0..1."""
    with Image.open(picture) as image:
        grey = image.convert("L").resize((8, 8), Image.Resampling.BOX).tobytes()
    return struct.pack("<64f", *(value / 255 for value in grey))


def show_predictions(inference_port: int) -> None:
    """One real answer of each model, and how to ask for more."""
    url = f"http://{HOST}:{inference_port}/predictions"
    picture = PICTURE.relative_to(ROOT)
    try:
        digit = json.loads(ask(f"{url}/digits", PICTURE.read_bytes()))
        scores = json.loads(ask(f"{url}/digits-typed", pixels(PICTURE)))
    except (OSError, ValueError) as error:
        raise SystemExit(f"The models are ready, but the first prediction failed: {error}") from None
    print(f"\n  {picture} to digits:       {digit}")
    print(f"  {picture} to digits-typed: {[round(score, 4) for score in scores]}")
    print(f"\n  Try it:  curl {url}/digits -T {picture}\n  Ctrl-C stops the server.\n", flush=True)


def serve(family: Family, ports: tuple[int, ...]) -> int:
    """The whole life of the server; its exit code."""
    build(family)
    refuse_busy_ports(ports)
    with tempfile.TemporaryDirectory(prefix="digits-serve-") as scratch:
        server = family.start(server_command(ports, Path(scratch)))
        try:
            wait_until_ready(family, server, ports[1])
            show_predictions(ports[0])
            server.wait()
            if not family.asked_to_stop:
                print(f"The server ended on its own, with exit code {server.returncode}.", file=sys.stderr)
        except Stopped:
            server.wait()  # it has been told
        finally:
            if server.poll() is None:  # we gave up on it
                server.terminate()
                server.wait()
    return server.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description="Build and serve the digits example.")
    parser.add_argument("--inference-port", type=int, default=INFERENCE_PORT)
    parser.add_argument("--management-port", type=int, default=MANAGEMENT_PORT)
    parser.add_argument("--metrics-port", type=int, default=METRICS_PORT)
    options = parser.parse_args()
    family = Family()
    family.listen()
    try:
        return serve(family, (options.inference_port, options.management_port, options.metrics_port))
    except Stopped:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())

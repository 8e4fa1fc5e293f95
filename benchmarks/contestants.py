"""The servers that are measured: each a context manager that starts one, waits for it and stops all that it started."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec
import psutil

ROOT = Path(__file__).resolve().parent.parent
RINGSERVE = Path(sys.executable).parent / "ringserve"  # the one installed beside this Python
HOST = "127.0.0.1"
FRONT_END = "ringserve.server.frontend"
READY_S_MAX = 90.0
STOP_S_MAX = 20.0
POLL_S = 0.1
REPLY_S_MAX = 10.0
LOG_TAIL_LINES = 30
# One thread for the model, in the worker as in the process that measures it alone.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PREDICTIONS_HEADERS = {"Content-Type": "application/octet-stream"}


class Target(msgspec.Struct, frozen=True):
    """Where to send the load, and the process that answers."""

    port: int
    path: str
    pid: int
    management_port: int = 0
    model: str = ""

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}{self.path}"


class Archive(msgspec.Struct, frozen=True):
    """A model for our server. An archive needs a handler also where its configuration names a backend, which goes first."""

    name: str
    config: str
    handler: str = "base_handler"
    weights: Path | None = None


class Memory(msgspec.Struct, frozen=True):
    """Resident bytes, by what the process is for."""

    supervisor: int
    front_ends: int
    workers: int


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; all held until all are found, so that they differ."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind((HOST, 0))
        return [probe.getsockname()[1] for probe in probes]


@contextmanager
def process(
    command: list[str], directory: Path, log: Path, environment: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A child that leads its own group: a Ctrl-C reaches it from here only, and what it leaves behind can be killed.

    Its temporary folder is `directory`: a PID file there cannot meet that of a server which runs for other reasons.
    """
    environment = {**ENVIRONMENT, "TMPDIR": str(directory), **(environment or {})}
    with log.open("wb") as out:
        child = subprocess.Popen(
            command, cwd=directory, env=environment, stdout=out, stderr=subprocess.STDOUT, process_group=0
        )
    try:
        yield child
    finally:
        child.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_S_MAX)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def wait_until(ready: Callable[[], bool], child: subprocess.Popen[bytes], log: Path) -> None:
    """Poll until the child is ready; a child that has ended or takes too long is shown with the end of its log."""
    end_s = time.monotonic() + READY_S_MAX
    while child.poll() is None and time.monotonic() < end_s:
        with contextlib.suppress(OSError, ValueError):  # refused, or not yet what it will be
            if ready():
                return
        time.sleep(POLL_S)
    why = f"ended with {child.returncode}" if child.returncode is not None else f"was not ready in {READY_S_MAX:.0f} s"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
    raise SystemExit(f"{Path(child.args[0]).name} {why}:\n{tail}")  # type: ignore[index,arg-type]


def ask(url: str, body: bytes | None = None, headers: Mapping[str, str] | None = None) -> bytes:
    """GET, or POST when there is a body."""
    # The type of the content is named, because urllib would call it a form.
    request = urllib.request.Request(url, data=body, headers={**PREDICTIONS_HEADERS, **(headers or {})})
    with urllib.request.urlopen(request, timeout=REPLY_S_MAX) as reply:
        answer: bytes = reply.read()
    return answer


def describe(management_port: int, model: str) -> dict[str, object]:
    """What our server says about a model."""
    described: dict[str, object] = json.loads(ask(f"http://{HOST}:{management_port}/models/{model}"))[0]
    return described


def worker_pids(management_port: int, model: str) -> list[int]:
    """The model's workers, when all of them are ready; else none."""
    workers = describe(management_port, model)["workers"]
    assert isinstance(workers, list)
    return [worker["pid"] for worker in workers] if all(worker["status"] == "READY" for worker in workers) else []


def pack(archive: Archive, store: Path, workshop: Path) -> None:
    """Write the archive into the store, by our own command."""
    config = workshop / f"{archive.name}.yaml"
    config.write_text(archive.config)
    command = [str(RINGSERVE), "archive", "--model-name", archive.name, "--version", "1.0"]
    command += ["--handler", archive.handler, "--config-file", str(config)]
    if archive.weights is not None:
        command += ["--serialized-file", str(archive.weights)]
    subprocess.run([*command, "--export-path", str(store), "--force"], check=True, stdout=subprocess.DEVNULL)


@contextmanager
def ringserve(
    archive: Archive,
    directory: Path,
    settings: Mapping[str, object] | None = None,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Target]:
    """Our server with one model, in a folder of its own below `directory`. One front end unless the settings say more."""
    home = directory / f"ringserve-{len(list(directory.iterdir()))}"
    store, log = home / "store", home / "server.log"
    store.mkdir(parents=True)
    pack(archive, store, home)
    inference, management, metrics = free_ports(3)
    lines = {
        "inference_address": f"http://{HOST}:{inference}",
        "management_address": f"http://{HOST}:{management}",
        "metrics_address": f"http://{HOST}:{metrics}",
        "job_queue_size": 1000,
        "frontends": 1,
        "enable_grpc": "false",
        **(settings or {}),
    }
    (home / "config.properties").write_text("".join(f"{key}={value}\n" for key, value in lines.items()))
    command = [str(RINGSERVE), "start", "--foreground", "--model-store", str(store), "--models", "all"]
    command += ["--ts-config", "config.properties", "--no-config-snapshots", "--disable-token-auth"]
    with process([*command, "--enable-model-api"], home, log, environment) as child:
        wait_until(lambda: bool(worker_pids(management, archive.name)), child, log)
        yield Target(inference, f"/predictions/{archive.name}", child.pid, management, archive.name)


@contextmanager
def sanic_without_a_model(body: bytes, answer: bytes, directory: Path) -> Iterator[Target]:
    """Ceiling 1. It answers everything with the one right answer, so a body of ours costs what a real one does."""
    (port,) = free_ports(1)
    log, file = directory / f"ceiling-{port}.log", directory / f"answer-{port}"
    file.write_bytes(answer)
    command = [sys.executable, str(ROOT / "benchmarks" / "ceiling_app.py"), str(port), str(file)]
    with process(command, directory, log) as child:
        wait_until(lambda: ask(f"http://{HOST}:{port}/predict", body) == answer, child, log)
        yield Target(port, "/predict", child.pid)


def front_end_pids(target: Target, module: str = FRONT_END) -> list[int]:
    """The processes of our server that take requests, by default those over HTTP."""
    found = []
    for child in psutil.Process(target.pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if module in child.cmdline():
                found.append(child.pid)
    return sorted(found)


def cpu_s(pids: list[int]) -> list[float]:
    """What each process has used so far, user and system."""
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return [used.user + used.system for used in times]


def waits(pids: list[int]) -> int:
    """How often the processes together have given up a CPU of their own accord: there was nothing to do."""
    return sum(psutil.Process(pid).num_ctx_switches().voluntary for pid in pids)


def memory(target: Target) -> Memory:
    """What our server's processes occupy. A child that is no worker of the model is a front end or one's helper."""
    supervisor = psutil.Process(target.pid)
    workers = set(worker_pids(target.management_port, target.model))
    front_ends = in_workers = 0
    for child in supervisor.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.pid in workers:
                in_workers += child.memory_info().rss
            else:
                front_ends += child.memory_info().rss
    return Memory(supervisor.memory_info().rss, front_ends, in_workers)

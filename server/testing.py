"""A whole server for tests: the real command on free ports, with folders of its own, stopped and searched for remains.

    with ServerProcess(model_store=Path("model_store")) as server:
        httpx.post(f"{server.inference_url}/predictions/digits", content=image)
    assert server.remains() == []

Nothing here imports the server: it is started and watched from outside, as its users do.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import SystemRandom
from typing import Self

import psutil

LISTENERS = ("inference", "management", "metrics")
GRPC_STARTED = "gRPC: inference on"
STARTED = "Model server started."
FLAGS = ("--ncs", "--enable-model-api")
POLL_S = 0.01
COMMAND_S_MAX = 60.0
SHM = Path("/dev/shm")
PORT_MIN = 10_000
_chance = SystemRandom()  # hypothesis starts the other one anew, in every process alike
_SHM_NAME = re.compile(r"ringserve-(\d+)-[0-9a-f]+")
_LOGGED_PID = re.compile(r"\bpid (\d+)")


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on at the moment, below those that the kernel gives to whoever
    connects: one of these may be some client's before the server has it."""
    ephemeral = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = _chance.randrange(PORT_MIN, max(ephemeral, PORT_MIN + 1000))
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind(("127.0.0.1", port))
            return port


def zombies(parent: int) -> list[int]:
    """The processes below `parent` that have ended and that nobody has waited for."""
    found = []
    for each in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):  # it has been waited for between the two looks
            found += [each.pid] if each.status() == psutil.STATUS_ZOMBIE else []
    return found


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Ask until the answer is true. Raises `TimeoutError` saying `what` did not come."""
    end = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(POLL_S)


def command() -> str:
    """The `ringserve` beside the running interpreter."""
    return str(Path(sys.executable).parent / "ringserve")


class ServerProcess:
    """`ringserve start --foreground` as a subprocess.

    `config` holds the lines of its config.properties; the three addresses are free ports unless given there. Everything it
    writes lies below `folder` (a temporary one by default): config.properties, server.log and `tmp`, its TMPDIR.
    """

    def __init__(
        self,
        model_store: Path,
        *,
        models: Sequence[str] = ("all",),
        config: Mapping[str, object] | None = None,
        flags: Sequence[str] = FLAGS,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        grpc: bool = False,
    ) -> None:
        self._made_folder = folder is None
        self.folder = Path(tempfile.mkdtemp(prefix="ringserve-test-")) if folder is None else folder
        self.tmp_dir = self.folder / "tmp"
        self.tmp_dir.mkdir(parents=True, exist_ok=True)
        addresses = {f"{name}_address": f"http://127.0.0.1:{free_port()}" for name in LISTENERS}
        # What a test puts into the store, it registers itself.
        defaults = {"frontends": 1, "model_control_mode": "none", "disable_token_authorization": "true"}
        names = ("inference", "management") if grpc else ()
        defaults |= {"enable_grpc": str(grpc).lower(), **{f"grpc_{name}_port": free_port() for name in names}}
        self.config: dict[str, object] = {**addresses, **defaults, **(config or {})}
        self._grpc = grpc
        self.grpc_address = f"127.0.0.1:{self.config.get('grpc_inference_port')}"
        self.grpc_management_address = f"127.0.0.1:{self.config.get('grpc_management_port')}"
        self.inference_url = str(self.config["inference_address"])
        self.management_url = str(self.config["management_address"])
        self.metrics_url = str(self.config["metrics_address"])
        self.config_file = self.folder / "config.properties"
        self.log_file = self.folder / "server.log"
        self.env = {**os.environ, "TMPDIR": str(self.tmp_dir), **(env or {})}
        named = [word for entry in models for word in ("--models", entry)]
        self.arguments = ["--model-store", str(model_store), *named, "--ts-config", str(self.config_file), *flags]
        self._process: subprocess.Popen[bytes] | None = None

    # ---- the life of it

    def start(self, timeout_s: float = 60.0) -> Self:
        """Start and wait until it listens. Raises `RuntimeError` with its log when it ends instead, or `TimeoutError`."""
        self.launch()
        try:
            self.wait_for_log(STARTED, timeout_s)
            if self._grpc:
                self.wait_for_log(GRPC_STARTED, timeout_s)
        except BaseException:
            self.stop(0)
            raise
        return self

    def launch(self) -> None:
        """Start without waiting."""
        assert self._process is None or self._process.poll() is not None, "one process at a time"
        self.write_config()
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [command(), "start", "--foreground", *self.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.env,
                cwd=self.folder,
                process_group=0,
            )

    def write_config(self) -> None:
        self.config_file.write_text("".join(f"{key}={value}\n" for key, value in self.config.items()))

    def run(self, *words: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Another `ringserve` command that finds this server, called in `folder`, or else in this server's own."""
        return subprocess.run(
            [command(), *map(str, words)],
            env=self.env,
            cwd=folder or self.folder,
            capture_output=True,
            text=True,
            timeout=COMMAND_S_MAX,
            check=False,
        )

    def wait(self, timeout_s: float) -> int:
        """Wait for its end; the exit code. Raises `TimeoutError`."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"the server has not ended within {timeout_s:.0f} s\n{self.log}") from None

    def stop(self, timeout_s: float = 40.0) -> int | None:
        """SIGTERM, a bounded wait, then SIGKILL for whatever it started that still runs. Its exit code; None when it was
        never started."""
        if self._process is None:
            return None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        self.kill_all()
        return self._process.wait()

    def kill_all(self) -> list[int]:
        """SIGKILL for everything it started that still runs, which is returned."""
        running = self.processes()
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return running

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *raised: object) -> None:
        self.stop()
        if self._made_folder and not self.remains():
            shutil.rmtree(self.folder, ignore_errors=True)

    # ---- looking at it

    @property
    def pid(self) -> int:
        """The supervisor's."""
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it has printed so far, both streams."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def wait_for_log(self, text: str, timeout_s: float = 30.0) -> None:
        """Raises `RuntimeError` when it ends without having said `text`, `TimeoutError` when it says nothing in time."""
        end = time.monotonic() + timeout_s
        while text not in self.log:
            if not self.running and text not in self.log:
                raise RuntimeError(f"the server ended without saying {text!r}\n{self.log}")
            if time.monotonic() > end:
                raise TimeoutError(f"the server did not say {text!r} within {timeout_s:.0f} s\n{self.log}")
            time.sleep(POLL_S)

    def children(self) -> list[int]:
        """The processes below the supervisor, front ends and workers, in no order."""
        return [child.pid for child in psutil.Process(self.pid).children(recursive=True)] if self.running else []

    def front_ends(self) -> list[int]:
        return self._running_module("ringserve.server.frontend")

    def grpc_front_ends(self) -> list[int]:
        return self._running_module("ringserve.server.rpc.frontend")

    def workers(self) -> list[int]:
        """The workers of all models; a model's own come from `describe`."""
        return self._running_module("ringserve.server.worker")

    def _running_module(self, module: str) -> list[int]:
        found = []
        for pid in self.processes():
            with contextlib.suppress(psutil.Error):
                if module in psutil.Process(pid).cmdline():
                    found.append(pid)
        return sorted(found)

    def processes(self) -> list[int]:
        """Everything alive that was started with this server's TMPDIR: also what outlived the supervisor."""
        mark, found = f"TMPDIR={self.tmp_dir}".encode(), []
        for pid in psutil.pids():
            with contextlib.suppress(OSError):
                # A zombie has no environment any more.
                if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                    found.append(pid)
        return found

    def remains(self) -> list[str]:
        """What a server that ended has left behind, one sentence each: processes, names in shared memory, files. The log
        says which processes it had, so that other servers' names are not taken for its own."""
        processes = [f"process {pid} is alive" for pid in self.processes()]
        owners = {int(number) for number in _LOGGED_PID.findall(self.log)}
        if self._process is not None:
            owners.add(self._process.pid)
        names = [f"{SHM / name} exists" for name, owner in sorted(_shm_names().items()) if owner in owners]
        files = [f"{path} exists" for path in sorted(self.tmp_dir.rglob("*"))] if self.tmp_dir.exists() else []
        return processes + names + files


def _shm_names() -> dict[str, int]:
    """The names of segments, with the process that made each."""
    try:
        matches = [_SHM_NAME.fullmatch(entry) for entry in os.listdir(SHM)]
    except OSError:
        return {}
    return {match[0]: int(match[1]) for match in matches if match}

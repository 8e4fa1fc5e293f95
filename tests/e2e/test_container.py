"""The server as process 1 of a real PID namespace, as in a container."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from ringserve.server.testing import ServerProcess, command, wait_until, zombies

NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
# Leaves a process behind that is nobody's child, in a session of its own, and ends soon.
ORPHANING = """
import subprocess, sys
ORPHAN = "import os, time\\nif os.fork() == 0:\\n    os.setsid()\\n    if os.fork() == 0:\\n        time.sleep(0.05)\\nos._exit(0)"
def handle(data, context):
    if data is None:
        return None
    subprocess.run([sys.executable, "-S", "-c", ORPHAN], check=True)
    return ["left"] * len(data)
"""


class Container:
    """A namespace whose process 1 is `ringserve start --foreground`; seen from outside."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server
        server.write_config()
        with server.log_file.open("wb") as log:
            self.unshare = subprocess.Popen(
                [*NAMESPACE, command(), "start", "--foreground", *server.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=server.env,
                cwd=server.folder,
            )

    @property
    def init(self) -> psutil.Process:
        return psutil.Process(self.unshare.pid).children()[0]

    def predict(self) -> str:
        return httpx.get(f"{self.server.inference_url}/predictions/orphans", trust_env=False).text

    def inside(self, *words: str) -> subprocess.CompletedProcess[str]:
        enter = ["nsenter", "--target", str(self.init.pid), "--pid", "--mount", f"--wd={self.server.folder}"]
        return subprocess.run(
            [*enter, command(), *words], env=self.server.env, capture_output=True, text=True, timeout=60, check=False
        )


@pytest.fixture
def container(archive: Callable[..., Path], tmp_path: Path) -> Iterator[Container]:
    tried = subprocess.run([*NAMESPACE, "true"], capture_output=True, text=True, timeout=20, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no PID namespace may be made here: {tried.stderr.strip()}")
    archive(tmp_path / "store", "orphans", "orphans.py:handle", source=ORPHANING)
    server = ServerProcess(tmp_path / "store", folder=tmp_path / "server", config={"default_workers_per_model": 1})
    container = Container(server)
    try:
        wait_until(lambda: "Model server started." in server.log, 30, "a server")
        yield container
    finally:
        container.unshare.kill()
        container.unshare.wait()
    wait_until(lambda: server.remains() == [], 5, "nothing left")


def test_process_1_reaps_orphans_goes_on_with_a_new_instance_and_passes_signals_on(container: Container) -> None:
    init, server = container.init, container.server
    assert [container.predict() for _ in range(3)] == ["left"] * 3
    wait_until(lambda: zombies(init.pid) == [], 5, "orphans are reaped")
    (worker,) = server.workers()
    os.kill(worker, signal.SIGKILL)
    wait_until(lambda: server.workers() not in ([worker], []), 10, "the server still hears of its own processes' ends")
    assert "was killed by signal 9" in server.log

    restarted = container.inside("restart")
    assert restarted.returncode == 0, restarted.stderr
    wait_until(lambda: "Torchserve stopped." in server.log, 10, "the end of the first instance")
    assert init.is_running()
    assert container.predict() == "left"

    init.send_signal(signal.SIGTERM)
    assert container.unshare.wait(10) == 0
    log = (server.folder / "logs" / "ts_log.log").read_text()
    assert "stopping: answering what is in flight" in log, "the new instance was told"


def test_the_end_of_the_server_is_the_end_of_process_1_with_its_exit_code(container: Container) -> None:
    (server,) = container.init.children()
    assert "start" in server.cmdline()
    server.kill()
    assert container.unshare.wait(10) == 128 + signal.SIGKILL
    (container.server.tmp_dir / ".model_server.pid").unlink()
    for folder in container.server.tmp_dir.glob("ringserve-*"):
        shutil.rmtree(folder)

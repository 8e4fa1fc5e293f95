"""Hold the conversation with a Triton and write down what it says:

    python tests/e2e/triton/record.py TRITON FILE [CHAPTER ...]

TRITON is the folder of a tritonserver with `bin/tritonserver` and `backends/python`, as it lies in an environment of nvidia-pytriton,
whose numpy the stub of its Python backend finds. With chapters named, only those are written anew.
"""

import contextlib
import gzip
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import urllib.request
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from ringserve.server.testing import free_port, wait_until
from tests.e2e.triton.repository import REPOSITORY, write_repository
from tests.e2e.triton.steps import CHAPTERS
from tests.e2e.triton.steps_control import KEY, KEY_BYTES
from tests.e2e.triton.talk import Said, Step, Talk, client_region

START_S_MAX = 180.0


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        return bool(urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=1).status == 200)
    return False


@contextlib.contextmanager
def triton(root: Path, folder: Path) -> Iterator[tuple[int, int]]:
    """A Triton that serves the repository, as its HTTP and gRPC ports, until the block ends."""
    write_repository(folder / "repository")
    shutil.copytree(root / "backends" / "python", folder / "backends" / "python")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stubs = root / "python_backend_stubs" / version
    if stubs.is_dir():
        for stub in stubs.iterdir():
            shutil.copy(stub, folder / "backends" / "python")
    http, rpc, metrics = free_port(), free_port(), free_port()
    words = [root / "bin" / "tritonserver", f"--model-repository={folder}/repository"]
    words += [f"--backend-directory={folder}/backends", f"--cache-directory={root}/caches", f"--http-port={http}"]
    words += [f"--grpc-port={rpc}", f"--metrics-port={metrics}", "--model-control-mode=explicit"]
    words += [f"--load-model={name}" for name in REPOSITORY]
    cudart = next(iter(root.parents[3].rglob("libcudart-*")), root)
    env = {
        **os.environ,
        "LD_LIBRARY_PATH": f"{cudart.parent}:{sysconfig.get_config_var('LIBDIR')}",
        "PATH": f"{root.parents[4] / 'bin'}:{os.environ['PATH']}",
        "PYTHONPATH": str(root.parents[1]),
    }
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log, cwd=folder, env=env)
    try:
        wait_until(lambda: _answers(http), START_S_MAX, "Triton")
        yield http, rpc
    finally:
        server.terminate()
        server.wait(60)
        shutil.copy(folder / "log", "/tmp/triton-record.log")


class Recording:
    """One Triton after the other: some steps end it, after which there is another."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root = root
        self._folder = folder
        self._stack = contextlib.ExitStack()
        self._begun = 0

    def begin(self) -> None:
        self._begun += 1
        folder = self._folder / str(self._begun)
        folder.mkdir()
        self._talk = Talk(*self._stack.enter_context(triton(self._root, folder)))

    def end(self) -> None:
        self._talk.close()
        self._stack.close()

    def said(self, step: Step) -> Said:
        """What it says; that it died, if it did."""
        said = self._talk.take(step)
        if (said.get("code") == "UNAVAILABLE" and "Connection refused" in said["details"]) or "lost" in said:
            self.end()
            self.begin()
            return {"died": True}
        return said


def main(root: str, file: str, *chosen: str) -> None:
    path = Path(file)
    before: dict[str, list[str]] = {}
    if path.exists():
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                before.setdefault(json.loads(line)["chapter"], []).append(line)
    with tempfile.TemporaryDirectory() as folder, client_region(KEY, KEY_BYTES):
        recording = Recording(Path(root), Path(folder))
        recording.begin()
        try:
            for chapter in chosen or CHAPTERS:
                steps = list(CHAPTERS[chapter]())
                said = [{"chapter": chapter, "step": step, "said": recording.said(step)} for step in steps]
                before[chapter] = [json.dumps(each, ensure_ascii=False) + "\n" for each in said]
                print(f"{chapter}: {len(said)} steps", flush=True)
        finally:
            recording.end()
            with gzip.open(path, "wt", compresslevel=9, encoding="utf-8") as out:
                out.writelines(line for chapter in CHAPTERS for line in before.get(chapter, ()))


if __name__ == "__main__":
    main(*sys.argv[1:])

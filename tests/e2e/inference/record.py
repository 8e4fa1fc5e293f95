"""Hold the conversation with a TorchServe and write down what it says:

    python tests/e2e/inference/record.py COMMAND FILE [SCENE ...]

COMMAND is its `torchserve`. With scenes named, only their lines of FILE are written anew.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import psutil

from ringserve.server.testing import free_port, wait_until
from tests.e2e.inference.scenes import SCENES, Scene, file_of, held, settings_of, write_store
from tests.e2e.inference.talk import Peer

START_S_MAX = 120.0


@contextmanager
def torchserve(command: Path, scene: Scene, folder: Path) -> Iterator[Peer]:
    """TorchServe with the models of the scene, until the block ends."""
    write_store(scene, folder / "store")
    names = ("inference", "management", "metrics")
    urls = {name: f"http://127.0.0.1:{free_port()}" for name in names}
    settings = {f"{name}_address": url for name, url in urls.items()}
    settings |= {f"grpc_{name}_port": str(free_port()) for name in names[:2]} | settings_of(scene)
    (folder / "config.properties").write_text("".join(f"{key}={value}\n" for key, value in settings.items()))
    words = [command, "--start", "--foreground", "--ncs", "--ts-config", folder / "config.properties"]
    words += ["--model-store", folder / "store", "--models", *map(file_of, scene.archives)]
    env = {**os.environ, "TMPDIR": str(folder), "PATH": f"{command.parent}:{os.environ['PATH']}"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log, cwd=folder, env=env)
    try:
        wait_until(lambda: b"Model server started." in (folder / "log").read_bytes(), START_S_MAX, "TorchServe")
        peer = Peer(urls["inference"], urls["management"])
        peer.wait_for(*{archive.name for archive in scene.archives}, patience_s=START_S_MAX)
        yield peer
    finally:
        for child in psutil.Process(server.pid).children(recursive=True):
            child.kill()
        server.kill()
        server.wait()


def main(command: str, file: str, *chosen: str) -> None:
    path = Path(file)
    before = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    lines = []
    for scene in SCENES:
        if chosen and scene.name not in chosen:
            lines += [line for line in before if line[0] in scene.chapters]
            continue
        with tempfile.TemporaryDirectory() as folder, torchserve(Path(command), scene, Path(folder)) as peer:
            for name, chapter in scene.chapters.items():
                begun = len(lines)
                for label, seen in held(chapter, peer):
                    lines.append([name, label, seen])
                    print(f"{name}: {label}", flush=True)
                print(f"{name}: {len(lines) - begun} steps", flush=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


if __name__ == "__main__":
    main(*sys.argv[1:])

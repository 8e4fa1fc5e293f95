"""Every format that archivers write is served from the store: named at the start, registered, restored and dropped in."""

import gzip
import io
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from ringserve.server.testing import FLAGS, ServerProcess, wait_until
from ringserve.tools.archiver import ArchiveRequest, write_archive

WAIT_S = 30.0
# It writes beside its code while it is loaded and whenever it is asked, as models do that keep a cache.
HANDLER = """
import os, time

def handle(data, context):
    with open("cache.txt", "w") as file:
        file.write(str(time.time()))
    if data is None:
        print("loaded as", context.model_name)
        return None
    manifest = context.manifest.get("model", {}).get("modelName") if context.manifest else None
    files = sorted(name for name in os.listdir(context.system_properties["model_dir"]) if name not in ("__pycache__", "cache.txt"))
    return [{"manifest": manifest, "files": files}] * len(data)
"""
FILES = ["MAR-INF", "h.py"]


def pack(folder: Path, name: str, archive_format: str = "tgz", *, theirs: bool = False) -> Path:
    """By our archiver, or by TorchServe's."""
    made = folder.parent / f"made-{name}"
    made.mkdir()
    (made / "h.py").write_text(HANDLER)
    if not theirs:
        return write_archive(
            ArchiveRequest(name, "1.0", str(made / "h.py"), export_path=folder, archive_format=archive_format)
        )
    tool = Path(sys.executable).with_name("torch-model-archiver")
    flags = ["--model-name", name, "-v", "1.0", "--handler", made / "h.py", "--export-path", folder]
    command = [str(word) for word in (tool, *flags, "--archive-format", archive_format)]
    subprocess.run(command, check=True, capture_output=True, timeout=60, env={**os.environ, "TMPDIR": str(made)})
    return folder / f"{name}.tar.gz"


def bare_tar(path: Path) -> None:
    """A tar without a manifest, as SageMaker's users pack one: weights, and code in a folder."""
    with tarfile.open(path, "w:gz") as bundle:
        for name, data in (("model.pth", b"weights"), ("code/h.py", HANDLER.encode())):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            bundle.addfile(entry, io.BytesIO(data))


def answer(server: ServerProcess, model: str) -> Any:
    response = httpx.get(f"{server.inference_url}/predictions/{model}", timeout=WAIT_S, trust_env=False)
    return response.json() if response.status_code == 200 else response.status_code


def test_tars_and_folders_are_loaded_registered_and_restored(
    tmp_path: Path, start_server: Callable[..., ServerProcess]
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    pack(store, "theirs", theirs=True)
    pack(store, "ours").rename(store / "ours.tgz")
    pack(store, "old").rename(store / "old.model")
    pack(store, "folder", "no-archive")
    flags = ("--enable-model-api", "--model-control-mode", "none")  # and with snapshots
    server = start_server(store, models=("all",), flags=flags)
    for name in ("theirs", "ours", "old", "folder"):
        assert answer(server, name) == {"manifest": name, "files": FILES}, server.log

    def register(**parameters: str | int) -> tuple[int, str]:
        url = f"{server.management_url}/models"
        response = httpx.post(url, params={"initial_workers": 1, **parameters}, timeout=WAIT_S, trust_env=False)
        return response.status_code, response.text

    later = pack(store, "later")
    assert register(url=later.name)[0] == 200, server.log
    assert answer(server, "later") == {"manifest": "later", "files": FILES}

    # Without a manifest, as in TorchServe: whoever registers it says what it is.
    bare_tar(store / "bare.tar.gz")
    status, text = register(url="bare.tar.gz")
    assert (status, "Model name is not defined. MAR-INF/MANIFEST.json is missing" in text) == (400, True)
    status, text = register(url="bare.tar.gz", model_name="bare")
    assert (status, "nothing else names a handler" in text) == (400, True)
    assert register(url="bare.tar.gz", model_name="bare", handler="h:handle")[0] == 200, server.log
    assert answer(server, "bare") == {"manifest": None, "files": ["h.py", "model.pth"]}

    # Hostile and broken ones are refused, and leave nothing.
    unpacked = sorted(server.tmp_dir.glob("ringserve-*/models/*"))
    with tarfile.open(store / "link.tar.gz", "w:gz") as bundle:
        link = tarfile.TarInfo("m/h.py")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        bundle.addfile(link)
    (store / "cut.tar.gz").write_bytes(later.read_bytes()[:-20])
    (store / "bomb.tar.gz").write_bytes(gzip.compress(bytes(80 << 20)))
    for name, cause in (("link", "a symbolic link"), ("cut", "expected "), ("bomb", "expected ")):
        status, text = register(url=f"{name}.tar.gz", model_name=name)
        assert (status, cause in text) == (400, True), text
    assert sorted(server.tmp_dir.glob("ringserve-*/models/*")) == unpacked
    for name in ("link", "cut", "bomb"):
        (store / f"{name}.tar.gz").unlink()

    server.stop()
    server.start()
    wait_until(lambda: answer(server, "bare") != 503, WAIT_S, f"restored\n{server.log}")
    assert answer(server, "bare") == {"manifest": None, "files": ["h.py", "model.pth"]}
    assert answer(server, "later") == {"manifest": "later", "files": FILES}


def test_a_tar_that_is_dropped_is_taken_when_it_is_whole(
    tmp_path: Path, start_server: Callable[..., ServerProcess]
) -> None:
    store = tmp_path / "store"
    server = start_server(store, models=(), flags=(*FLAGS, "--model-control-mode", "watch"))
    made = pack(tmp_path, "dropped").rename(tmp_path / "dropped.tgz")
    whole = made.read_bytes()

    def row() -> dict[str, Any]:
        rows = httpx.get(f"{server.management_url}/status", timeout=WAIT_S, trust_env=False).json()["repository"]
        return next((each for each in rows if each["file"] == "dropped.tgz"), {})

    # As a copy that stands still in the middle: the size has settled, the end is missing.
    (store / "dropped.tgz").write_bytes(whole[:-4])
    wait_until(lambda: "without the end of one" in row().get("reason", ""), WAIT_S, f"incomplete\n{server.log}")
    assert row()["state"] == "incomplete"
    with (store / "dropped.tgz").open("ab") as file:
        file.write(whole[-4:])
    wait_until(lambda: answer(server, "dropped") == {"manifest": "dropped", "files": FILES}, WAIT_S, server.log)
    shutil.copyfile(pack(tmp_path, "versioned"), tmp_path / "v.tar.gz")
    (store / "versioned/2.0").mkdir(parents=True)
    (tmp_path / "v.tar.gz").rename(store / "versioned/2.0/any.tar.gz")
    wait_until(lambda: answer(server, "versioned") == {"manifest": "versioned", "files": FILES}, WAIT_S, server.log)
    # An unpacked one is not loaded again because of what it writes: not until the next folder has settled and is served.
    for name in ("writer", "next"):
        pack(tmp_path, name, "no-archive").rename(store / name)
        expected = {"manifest": name, "files": FILES}
        wait_until(lambda: answer(server, name) == expected, WAIT_S, server.log)  # noqa: B023 - called in this round
    assert server.log.count("loaded as writer") == 1
    assert sorted(path.name for path in (store / "writer").iterdir()) == FILES
    (store / "dropped.tgz").unlink()
    wait_until(lambda: answer(server, "dropped") == 404, WAIT_S, server.log)

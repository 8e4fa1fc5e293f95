"""A registration that fails says why and leaves nothing: no model, no process, no folder, and its name is free."""

import io
import json
import os
import shutil
import stat
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until

MANIFEST = {"runtime": "python", "model": {"modelName": "broken", "handler": "h.py:handle", "modelVersion": "1.0"}}
HANDLER = "def handle(data, context):\n    return None if data is None else ['ok'] * len(data)\n"
MakeArchive = Callable[..., Path]


@pytest.fixture(autouse=True)
def nothing_left(server: ServerProcess, management: httpx.Client, store: Path) -> Iterator[None]:
    """Around every test: the same models, processes, unpacked folders and archives."""

    def state() -> tuple[object, ...]:
        models = [entry["modelName"] for entry in management.get("/models").json()["models"]]
        unpacked = sorted(path.name for path in server.tmp_dir.glob("ringserve-*/models/*"))
        return models, server.processes(), unpacked, sorted(path.name for path in store.iterdir())

    before = state()
    yield
    assert state() == before


@pytest.fixture
def broken(store: Path) -> Iterator[Path]:
    """Where a bad archive goes; removed again."""
    path = store / "broken.mar"
    yield path
    path.unlink(missing_ok=True)


def register(management: httpx.Client, **more: str | int) -> httpx.Response:
    return management.post("/models", params={"url": "broken.mar", "initial_workers": 1, **more})


def write_zip(path: Path, members: dict[str, bytes | str], manifest: object = MANIFEST) -> zipfile.ZipFile:
    with zipfile.ZipFile(path, "w") as bundle:
        if manifest is not None:
            bundle.writestr("MAR-INF/MANIFEST.json", json.dumps(manifest))
        for name, content in members.items():
            bundle.writestr(name, content)
    return bundle


def check_name_is_free(client: httpx.Client, management: httpx.Client, broken: Path) -> None:
    """A good archive registers at once under the name of the one that failed."""
    assert management.get("/models/broken").status_code == 404
    assert client.get("/predictions/broken").status_code == 404
    write_zip(broken, {"h.py": HANDLER})
    assert register(management).status_code == 200
    assert client.get("/predictions/broken").text == "ok"
    assert management.delete("/models/broken").status_code == 200


def refused(response: httpx.Response, status: int, kind: str) -> str:
    assert response.status_code == status, response.text
    error = response.json()
    assert list(error) == ["code", "type", "message"]
    assert (error["code"], error["type"]) == (status, kind)
    return str(error["message"])


def tar(path: Path) -> None:
    with tarfile.open(path, "w:gz") as bundle:
        bundle.addfile(tarfile.TarInfo("x"), io.BytesIO())


def symlink(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("MAR-INF/MANIFEST.json", json.dumps(MANIFEST))
        link = zipfile.ZipInfo("h.py")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        bundle.writestr(link, "/etc/passwd")


def cut_off(path: Path) -> None:
    write_zip(path, {"h.py": HANDLER})
    path.write_bytes(path.read_bytes()[:-30])


def damaged(path: Path) -> None:
    write_zip(path, {"h.py": HANDLER})
    data = path.read_bytes()
    at = data.index(b"def handle")
    path.write_bytes(data[:at] + b"DEF" + data[at + 3 :])


BAD_ARCHIVES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no zip": (lambda path: path.write_bytes(b"this is no archive"), "expected a zip archive"),
    "empty file": (lambda path: path.touch(), "expected a zip archive"),
    "a tar": (tar, "expected a zip archive"),
    "cut off": (cut_off, "expected a zip archive"),
    "damaged": (damaged, "expected intact data"),
    "no manifest": (lambda path: write_zip(path, {"h.py": HANDLER}, None), "MAR-INF/MANIFEST.json is missing"),
    "manifest is no object": (lambda path: write_zip(path, {}, [1]), "Failed to parse signature.json."),
    "no model": (lambda path: write_zip(path, {}, {"runtime": "python"}), "Missing Model entry in manifest file."),
    "bad runtime": (
        lambda path: write_zip(path, {}, {**MANIFEST, "runtime": "cobol"}),
        "Runtime is not defined or invalid.",
    ),
    "missing handler": (lambda path: write_zip(path, {}), "holds no file 'h.py'"),
    "escapes": (lambda path: write_zip(path, {"h.py": HANDLER, "../../escaped.txt": "x"}), "../../escaped.txt"),
    "absolute": (lambda path: write_zip(path, {"h.py": HANDLER, "/tmp/absolute.txt": "x"}), "/tmp/absolute.txt"),
    "backslashes": (lambda path: write_zip(path, {"h.py": HANDLER, "..\\up.txt": "x"}), "up.txt"),
    "a link": (symlink, "h.py"),
}


@pytest.mark.parametrize("kind", BAD_ARCHIVES)
def test_an_archive_that_cannot_be_served_is_refused_and_leaves_nothing(
    client: httpx.Client, management: httpx.Client, broken: Path, server: ServerProcess, kind: str
) -> None:
    write, cause = BAD_ARCHIVES[kind]
    write(broken)
    assert cause in refused(register(management), 400, "InvalidModelException")
    assert list(server.tmp_dir.rglob("escaped.txt")) == []
    assert not Path("/tmp/absolute.txt").exists()
    check_name_is_free(client, management, broken)


def test_a_folder_whose_manifest_is_a_pipe_is_refused_and_hangs_nobody(management: httpx.Client, store: Path) -> None:
    folder = store / "piped"
    (folder / "MAR-INF").mkdir(parents=True)
    os.mkfifo(folder / "MAR-INF/MANIFEST.json")
    try:
        answer = management.post("/models", params={"url": "piped"})
        assert "expected a regular file, got a named pipe" in refused(answer, 400, "InvalidModelException")
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("config", ["x: 0x1" + "0" * 5000, 'x: "\\ud800"', "1: x"])
def test_a_configuration_that_no_worker_can_be_given_is_refused_and_leaves_nothing(
    management: httpx.Client, broken: Path, config: str
) -> None:
    model = {**MANIFEST["model"], "configFile": "c.yaml"}  # type: ignore[dict-item]
    write_zip(broken, {"h.py": HANDLER, "c.yaml": config}, {**MANIFEST, "model": model})
    assert refused(register(management), 400, "InvalidModelException").startswith("c.yaml")
    assert management.get("/models/broken").status_code == 404


BAD_HANDLERS = {
    "syntax error": ("def handle(:\n", ["SyntaxError", "h.py"]),
    "missing import": ("import not_installed_anywhere\n", ["ModuleNotFoundError", "not_installed_anywhere"]),
    "no function": ("VALUE = 1\n", ["handle"]),
    "raises": (
        "def handle(data, context):\n    raise OSError('the weights are gone')\n",
        ["OSError: the weights are gone", "h.py", "line 2"],
    ),
    "sys.exit": ("import sys\nsys.exit(5)\n", ["SystemExit: 5"]),
    "dies": (
        "import os, sys\nprint('my last words', file=sys.stderr, flush=True)\nos._exit(9)\n",
        ["exited with code 9", "my last words"],
    ),
    "kills itself": (
        "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n",
        ["was killed by signal 9 (SIGKILL)"],
    ),
}


@pytest.mark.parametrize("kind", BAD_HANDLERS)
def test_a_handler_that_does_not_load_is_reported_with_its_last_lines_and_leaves_nothing(
    client: httpx.Client, management: httpx.Client, broken: Path, kind: str
) -> None:
    source, words = BAD_HANDLERS[kind]
    write_zip(broken, {"h.py": source})
    response = register(management)
    message = response.json()["message"]
    assert response.status_code in (400, 500), message
    assert [word for word in [*words, "broken"] if word not in message] == []
    assert message.startswith("Failed to start workers for model broken version: 1.0.")
    check_name_is_free(client, management, broken)


def test_a_load_that_runs_out_of_memory_is_507(management: httpx.Client, broken: Path) -> None:
    write_zip(broken, {"h.py": "raise MemoryError('too much')\n"})
    assert "too much" in refused(register(management), 507, "InternalServerException")


def test_a_handler_that_takes_longer_than_startup_timeout_is_stopped_and_leaves_nothing(
    client: httpx.Client, management: httpx.Client, broken: Path
) -> None:
    write_zip(broken, {"h.py": "import time\nprint('still loading', flush=True)\ntime.sleep(60)\n"})
    started = time.monotonic()
    message = refused(register(management, startup_timeout=1), 500, "InternalServerException")
    assert time.monotonic() - started < 10
    assert "within 1 s (startup_timeout)" in message
    assert "still loading" in message
    check_name_is_free(client, management, broken)


def test_of_two_workers_one_that_fails_takes_the_registration_back(
    client: httpx.Client, management: httpx.Client, broken: Path, tmp_path: Path
) -> None:
    first = f"import os\nos.open({str(tmp_path / 'first')!r}, os.O_CREAT | os.O_EXCL)\n"  # only one process can
    write_zip(broken, {"h.py": first + HANDLER})
    message = refused(register(management, initial_workers=2), 500, "InternalServerException")
    assert "FileExistsError" in message
    check_name_is_free(client, management, broken)


def test_a_failed_new_version_leaves_the_old_one_serving(
    client: httpx.Client, management: httpx.Client, store: Path
) -> None:
    manifest = {"runtime": "python", "model": {"modelName": "plain", "handler": "h.py:handle", "modelVersion": "2.0"}}
    path = store / "plain-2.mar"
    write_zip(path, {"h.py": "raise ValueError('no')\n"}, manifest)
    response = management.post("/models", params={"url": path.name, "initial_workers": 1})
    path.unlink()
    assert response.status_code == 500
    assert [each["modelVersion"] for each in management.get("/models/plain/all").json()] == ["1.0"]
    assert client.get("/predictions/plain").text == "plain 1.0"


def test_an_asynchronous_registration_that_fails_stays_listed_and_can_be_removed(
    client: httpx.Client, management: httpx.Client, broken: Path, server: ServerProcess
) -> None:
    write_zip(broken, {"h.py": "raise ValueError('no')\n"})
    assert register(management, synchronous="false").status_code == 202
    server.wait_for_log("Failed to start workers for model broken", 10)
    assert management.get("/models/broken").json()[0]["workers"][0]["status"] == "UNLOADING"
    assert management.delete("/models/broken").status_code == 200
    check_name_is_free(client, management, broken)


def test_the_same_archive_registered_by_many_at_once_is_registered_once(management: httpx.Client, broken: Path) -> None:
    write_zip(broken, {"h.py": HANDLER})
    with ThreadPoolExecutor(6) as pool:
        statuses = sorted(pool.map(lambda _: register(management).status_code, range(6)))
    assert statuses == [200] + [409] * 5
    assert management.delete("/models/broken").status_code == 200


def test_a_client_that_hangs_up_during_a_registration_does_not_leave_half_of_one(
    client: httpx.Client, management: httpx.Client, broken: Path, tmp_path: Path
) -> None:
    gate, started = tmp_path / "open", tmp_path / "started"
    source = f"""
import pathlib, time
pathlib.Path({str(started)!r}).touch()
end = time.monotonic() + 20
while not pathlib.Path({str(gate)!r}).exists() and time.monotonic() < end:
    time.sleep(0.005)
"""
    write_zip(broken, {"h.py": source + HANDLER})
    with pytest.raises(httpx.ReadTimeout):
        management.post("/models", params={"url": "broken.mar", "initial_workers": 1}, timeout=1.0)
    wait_until(started.exists, 10, "the worker loads")
    gate.touch()
    wait_until(lambda: client.get("/predictions/broken").text == "ok", 10, "the model serves")
    assert management.delete("/models/broken").status_code == 200


def test_a_registration_that_fails_after_its_client_hung_up_is_told_to_the_log_and_taken_back(
    server: ServerProcess, management: httpx.Client, broken: Path, tmp_path: Path
) -> None:
    gate, started = tmp_path / "open", tmp_path / "started"
    source = f"""
import pathlib, time
pathlib.Path({str(started)!r}).touch()
end = time.monotonic() + 20
while not pathlib.Path({str(gate)!r}).exists() and time.monotonic() < end:
    time.sleep(0.005)
raise ValueError("too late to tell")
"""
    write_zip(broken, {"h.py": source + HANDLER})
    with pytest.raises(httpx.ReadTimeout):
        management.post("/models", params={"url": "broken.mar", "initial_workers": 1}, timeout=1.0)
    wait_until(started.exists, 10, "the worker loads")
    gate.touch()
    wait_until(lambda: "before it hung up failed: Failed to start workers" in server.log, 10, "the log says so")
    assert management.get("/models/broken").status_code == 404

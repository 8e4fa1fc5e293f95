"""Whose module a name means: an archive's own files come before everything that is not loaded yet, `ts` is always the server's, and
nothing of the server's is ever taken from an archive."""

import sys
from collections.abc import Callable, Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import httpx
import pytest

from ringserve.backends.standard_library import TAKEN
from ringserve.server.testing import ServerProcess, wait_until

START_S_MAX = 60

# Packed into an archive under every name that Python or an installed package has. None is imported by the handler.
TRAP = "raise RuntimeError(__name__ + ' of an archive was imported')\n"
# Uses whatever may make a worker import something late: failures with and without traceback, parts, large answers, metrics.
TRAPPED = """
def handle(data, context):
    if data is None:
        return None
    word = bytes(data[0].get("body", b"describe")).decode()
    context.metrics.add_counter("Trapped", 1)
    if word == "raise":
        raise ValueError("é on purpose")
    if word == "large":
        return ["m" * 3_000_000]
    if word == "object":
        return [object()]
    if word == "json":
        return [{"nested": [[1, 2.5], None, "é"], "nan": float("nan")}]
    if word == "parts":
        return (each for each in [["a"], ["b"]])
    if word == "status":
        context.set_response_status(418, "teapot", 0)
        context.set_response_header(0, "x-mine", "1")
    return [word]
"""
# torch loads much of the standard library, and it is the handler that loads torch.
LATE_TORCH = """
from ts.torch_handler.base_handler import BaseHandler
import profile
class Late(BaseHandler):
    def initialize(self, context):
        import torch
        self.tensor = torch.ones(2)
    def handle(self, data, context):
        return [[self.tensor.sum().item(), profile.WHO]] * len(data)
"""
# Of the names below `ts`, and of the server's own, nothing is the archive's.
OWN_TS = """
import ringserve.backends
import ts
import ts.utils.util
from ts.torch_handler import request_envelope
try:
    import ts.mine
    found = "its own"
except ModuleNotFoundError as error:
    found = str(error)
def handle(data, context):
    if data is None:
        return None
    try:
        raise ts.utils.util.PredictionException("understood", 422)
    except ZeroDivisionError:
        pass
"""
MINE = "raise RuntimeError('the archive has another one')\n"
# `utils` is on the server's PYTHONPATH too, `only_there` only there.
PATHS = """
import only_there
import utils
import yaml
def handle(data, context):
    return None if data is None else [[utils.WHO, only_there.WHO, yaml.WHO]] * len(data)
"""
WHO_AM_I = "import os\nWHO = 'the archive'\n"
BYTECODE = """
import helper
def handle(data, context):
    return None if data is None else [helper.WHO] * len(data)
"""


def extra(folder: Path, files: dict[str, str]) -> str:
    """A folder to be packed beside a handler."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(folder)


def trap_names() -> set[str]:
    installed = {name for name in packages_distributions() if name.isidentifier()}
    return (set(sys.stdlib_module_names) | installed) - {"ringserve", "trapped"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("names")
    store, parts = folder / "store", folder / "parts"
    traps = {f"{name}.py": TRAP for name in trap_names()}
    archive(store, "trapped", "trapped.py:handle", source=TRAPPED, extra_files=extra(parts / "traps", traps))
    taken = {f"{name}.py": TRAP for name in TAKEN} | {"profile.py": WHO_AM_I}
    archive(store, "late-torch", "late_torch.py", source=LATE_TORCH, extra_files=extra(parts / "taken", taken))
    own = {"ts/__init__.py": MINE, "ts/mine.py": MINE, "ts/utils/util.py": MINE, "ringserve/__init__.py": MINE}
    archive(store, "own-ts", "own_ts.py:handle", source=OWN_TS, extra_files=extra(parts / "ts", own))
    archive(store, "own-ts-file", "own_ts.py:handle", source=OWN_TS, extra_files=extra(parts / "file", {"ts.py": MINE}))
    mine = {"utils.py": WHO_AM_I, "yaml.py": WHO_AM_I}
    archive(store, "paths", "paths.py:handle", source=PATHS, extra_files=extra(parts / "paths", mine))
    helpers = {"helper.py": WHO_AM_I}
    archive(
        store,
        "in-place",
        "bytecode.py:handle",
        source=BYTECODE,
        extra_files=extra(parts / "helper", helpers),
        archive_format="no-archive",
    )
    (store / "in-place.mar").rename(store / "in-place")
    theirs = extra(parts / "theirs", {"utils.py": "WHO = 'the path'\n", "only_there.py": "WHO = 'the path'\n"})
    names = ["trapped.mar", "late-torch.mar", "own-ts.mar", "own-ts-file.mar", "paths.mar", "in-place"]
    server = ServerProcess(
        store,
        models=names,
        config={"default_workers_per_model": 1},
        folder=folder / "server",
        env={"PYTHONPATH": theirs},
    )
    with server:
        ping = f"{server.inference_url}/ping"
        wait_until(lambda: httpx.get(ping, trust_env=False).is_success, START_S_MAX, f"healthy models\n{server.log}")
        yield server
    assert server.remains() == []
    assert "of an archive was imported" not in server.log
    assert "the archive has another one" not in server.log


def ask(server: ServerProcess, model: str, body: bytes = b"") -> httpx.Response:
    return httpx.post(f"{server.inference_url}/predictions/{model}", content=body, trust_env=False, timeout=30)


def test_a_worker_imports_nothing_of_its_own_from_an_archive(server: ServerProcess) -> None:
    assert len(trap_names()) > 300
    assert ask(server, "trapped", b"hello").text == "hello"
    assert ask(server, "trapped", b"raise").json()["message"] == "Prediction failed"
    assert len(ask(server, "trapped", b"large").content) == 3_000_000
    assert ask(server, "trapped", b"object").status_code == 503
    assert ask(server, "trapped", b"json").json()["nested"] == [[1, 2.5], None, "é"]
    assert ask(server, "trapped", b"parts").text == "ab"
    assert ask(server, "trapped", b"status").status_code == 418
    described = httpx.get(f"{server.management_url}/models/trapped?customized=true", trust_env=False, timeout=30)
    assert described.status_code == 200
    server.wait_for_log("ValueError: é on purpose")
    pid = described.json()[0]["workers"][0]["pid"]
    assert pid in server.workers(), "it is the first process still"


def test_what_torch_needs_of_the_standard_library_is_not_an_archives(server: ServerProcess) -> None:
    assert ask(server, "late-torch").json() == [2.0, "the archive"]


@pytest.mark.parametrize("model", ["own-ts", "own-ts-file"])
def test_ts_is_the_servers_whatever_an_archive_brings(server: ServerProcess, model: str) -> None:
    answer = ask(server, model)
    assert (answer.status_code, answer.json()["message"]) == (422, "understood")


def test_an_archives_files_come_before_the_servers_path_and_installed_packages(server: ServerProcess) -> None:
    assert ask(server, "paths").json() == ["the archive", "the path", "the archive"]


def test_a_model_served_from_its_folder_may_leave_bytecode_there(server: ServerProcess) -> None:
    assert ask(server, "in-place").text == "the archive"

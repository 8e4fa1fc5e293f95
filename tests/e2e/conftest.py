"""One server for the whole folder, archives made from `handlers/`, and a look at what every server leaves behind."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from ringserve.server.testing import ServerProcess, wait_until
from ringserve.tools.archiver import ArchiveRequest, write_archive

HANDLERS = Path(__file__).parent / "handlers"
CLIENT_S_MAX = 60.0
# What a log holds when the server itself, not a model, did something wrong.
BUG_WORDS = (
    "a request failed inside the server",
    "could not be delivered",
    "was never retrieved",
    "was never awaited",
    "Exception in callback",
    "AssertionError",
    "ResourceWarning",
)

SUMS_CONFIG = """
backend: python
batchSize: 8
inputs:
  - {name: left, dtype: float32, shape: [3]}
  - {name: right, dtype: float32, shape: [3]}
outputs:
  - {name: sum, dtype: float32, shape: [3]}
  - {name: double, dtype: float32, shape: [3]}
"""
SCRIPT_CONFIG = """
backend: torchscript
inputs:
  - {name: x, dtype: float32, shape: [4]}
outputs:
  - {name: y, dtype: float32, shape: [3]}
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)


def make_archive(
    store: Path,
    name: str,
    handler: str,
    *,
    version: str = "1.0",
    source: str | None = None,
    config: str = "",
    **more: Any,
) -> Path:
    """`{store}/{name}.mar` (or `file`.mar) from a handler of the folder, or from `source`. Beside the store lies its workshop."""
    workshop = store.parent / "workshop" / f"{name}-{version}"
    workshop.mkdir(parents=True, exist_ok=True)
    file_name, _, function = handler.partition(":")
    path = HANDLERS / file_name
    if source is not None:
        path = workshop / file_name
        path.write_text(source)
    if config:
        more["config_file"] = workshop / "model-config.yaml"
        more["config_file"].write_text(config)
    wanted = f"{path}:{function}" if function else str(path) if file_name.endswith(".py") else handler
    file = more.pop("file", name)
    made = write_archive(
        ArchiveRequest(model_name=name, version=version, handler=wanted, export_path=workshop, force=True, **more)
    )
    store.mkdir(exist_ok=True)
    return made.rename(store / f"{file}.mar")


def _archive_by_torch_model_archiver(store: Path, name: str, handler: Path, *more: object) -> None:
    """With the package that TorchServe's users have, by its command."""
    tool = Path(sys.executable).parent / "torch-model-archiver"
    flags = ["--model-name", name, "--version", "1.0", "--handler", handler, "--export-path", store, *more]
    subprocess.run([str(word) for word in (tool, *flags)], check=True, capture_output=True, timeout=60)


def _two_layers() -> Any:
    """The eager model with fixed weights."""
    with pytest.MonkeyPatch.context() as path:
        path.syspath_prepend(HANDLERS)
        from two_layers import TwoLayers  # type: ignore[import-not-found,unused-ignore]

    torch.manual_seed(7)
    return TwoLayers().eval()


@pytest.fixture(scope="session")
def two_layers() -> Any:
    return _two_layers()


@pytest.fixture(scope="session")
def archive() -> Callable[..., Path]:
    return make_archive


@pytest.fixture(scope="session")
def sums_config() -> str:
    """For `sums.py`: two arrays in, two out."""
    return SUMS_CONFIG


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory, two_layers: Any) -> Path:
    """The model store of the shared server. Tests may add archives and remove them again."""
    folder = tmp_path_factory.mktemp("shared") / "store"
    folder.mkdir()
    make_archive(folder, "probe", "probe.py:handle", config="batchSize: 8\n")
    make_archive(folder, "probe", "probe.py:handle", version="2.0", file="probe-2")
    make_archive(folder, "answers", "answers.py:handle")
    make_archive(folder, "faulty", "faulty.py:handle")
    make_archive(folder, "gate", "gate.py:handle")
    make_archive(folder, "sums", "sums.py", config=SUMS_CONFIG)
    _archive_by_torch_model_archiver(folder, "echo", HANDLERS / "echo.py")
    _archive_by_torch_model_archiver(folder, "plain", HANDLERS / "plain.py")
    weights, script = folder.parent / "two_layers.pt", folder.parent / "script.pt"
    torch.save(two_layers.state_dict(), weights)
    model_file = ("--model-file", HANDLERS / "two_layers.py", "--serialized-file", weights)
    _archive_by_torch_model_archiver(folder, "eager", HANDLERS / "two_layers_handler.py", *model_file)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # TorchScript itself, which this archive is about
        torch.jit.script(two_layers).save(str(script))
    make_archive(folder, "script", "base_handler", config=SCRIPT_CONFIG, serialized_file=script)
    return folder


@pytest.fixture(scope="session")
def server(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The shared server: every archive of the store, one worker each, room for many requests to wait."""
    config = {"default_workers_per_model": 1, "job_queue_size": 1000}
    server = ServerProcess(store, config=config, folder=tmp_path_factory.mktemp("server"))
    with server:
        healthy = f"{server.inference_url}/ping"
        wait_until(lambda: httpx.get(healthy, trust_env=False).status_code == 200, 60, f"healthy models\n{server.log}")
        yield server
    assert server.wait(1) == 0, server.log
    assert server.remains() == []
    assert [words for words in BUG_WORDS if words in server.log] == []


def _client(url: str) -> httpx.Client:
    return httpx.Client(base_url=url, timeout=CLIENT_S_MAX, trust_env=False)


@pytest.fixture(scope="session")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    """Speaks to the shared server's inference address."""
    with _client(server.inference_url) as client:
        yield client


@pytest.fixture(scope="session")
def management(server: ServerProcess) -> Iterator[httpx.Client]:
    """Speaks to the shared server's management address."""
    with _client(server.management_url) as client:
        yield client


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers of a test's own, and finds nothing of them afterwards."""
    servers: list[ServerProcess] = []

    def start(store: Path, **options: Any) -> ServerProcess:
        store.mkdir(exist_ok=True)
        config = {"default_workers_per_model": 1, **options.pop("config", {})}
        server = ServerProcess(store, config=config, folder=tmp_path / f"server-{len(servers)}", **options)
        servers.append(server)
        return server.start()

    yield start
    for server in servers:
        server.stop()
    assert [remain for server in servers for remain in server.remains()] == []

"""A suite of archives as users of TorchServe write them, served by the real CLI: every answer is what the contract says."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until
from tests.e2e.suite.asking import wrong
from tests.e2e.suite.behaviours import BEHAVIOURS
from tests.e2e.suite.building import build
from tests.e2e.suite.cases import Ask, Case, Refusal, Together, Tool
from tests.e2e.suite.entry_points import ENTRY_POINTS, REFUSALS
from tests.e2e.suite.modes import MODES
from tests.e2e.suite.payloads import PAYLOADS

CASES: tuple[Case, ...] = (*ENTRY_POINTS, *PAYLOADS, *BEHAVIOURS, *MODES)
START_S_MAX = 120
CLIENT_S_MAX = 60
BUG_WORDS = (
    "a request failed inside the server",
    "could not be delivered",
    "was never retrieved",
    "Exception in callback",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Every archive that can be served, one worker each. The others wait beside them to be registered."""
    folder = tmp_path_factory.mktemp("suite")
    store = folder / "store"
    build([case.archive for case in CASES] + [each.archive for each in REFUSALS], store, folder / "workshop")
    names = [f"{case.archive.name}.mar" for case in CASES]
    config = {"default_workers_per_model": 1, "job_queue_size": 100}
    with ServerProcess(store, models=names, config=config, folder=folder / "server") as server:
        ping = f"{server.inference_url}/ping"
        wait_until(lambda: httpx.get(ping, trust_env=False).is_success, START_S_MAX, f"healthy models\n{server.log}")
        yield server
    assert server.remains() == []
    assert [words for words in BUG_WORDS if words in server.log] == []


@pytest.fixture(scope="module")
def client(server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.inference_url, timeout=CLIENT_S_MAX, trust_env=False) as client:
        yield client


def conversations() -> Iterator[Any]:
    for case in CASES:
        for number, ask in enumerate(case.asks):
            yield pytest.param(case, ask, id=f"{case.archive.name}-{number}-{ask.what.replace(' ', '-')}")


@pytest.mark.parametrize(("case", "ask"), list(conversations()))
def test_the_answer_is_the_contracts(client: httpx.Client, case: Case, ask: Ask | Together) -> None:
    asks = (ask,) if isinstance(ask, Ask) else ask.asks
    with ThreadPoolExecutor(len(asks)) as pool:
        found = list(pool.map(lambda each: wrong(client, case.archive.name, each), asks))
    if any(found):
        pytest.fail("\n".join(filter(None, found)), pytrace=False)


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda each: each.archive.name)
def test_a_model_that_cannot_be_loaded_is_refused_with_the_reason(server: ServerProcess, refusal: Refusal) -> None:
    with httpx.Client(base_url=server.management_url, timeout=CLIENT_S_MAX, trust_env=False) as management:
        wanted: dict[str, str | int] = {"url": f"{refusal.archive.name}.mar", "initial_workers": 1}
        answer = management.post("/models", params=wanted)
        assert answer.is_error
        message = answer.json()["message"]
        assert [word for word in refusal.words if word not in message] == [], message
        assert management.get(f"/models/{refusal.archive.name}").status_code == 404


def test_a_model_with_tickets_takes_what_it_can_begin_at_once(client: httpx.Client, tmp_path: Path) -> None:
    url, body = "/predictions/waits", str(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.post, url, content=body)
        try:
            wait_until((tmp_path / "began").exists, START_S_MAX, "the first request's turn")
            refused = client.post(url, content=body)
        finally:
            (tmp_path / "go").touch()
        assert first.result().text == "waited"
    assert refused.status_code == 503
    assert refused.json()["message"].startswith('Model "waits" has no worker to serve inference request.')
    wait_until(lambda: client.post(url, content=body).text == "waited", START_S_MAX, "a ticket")


def test_the_suite_is_as_large_as_promised() -> None:
    archives = [case.archive for case in CASES] + [each.archive for each in REFUSALS]
    assert len(archives) >= 60
    assert len({each.name for each in archives}) == len(archives)
    theirs = [each for each in archives if each.tool in (Tool.THEIRS, Tool.THEIR_COMMAND)]
    served = [case.archive for case in CASES]
    assert 3 * len(theirs) >= len(served), "a third is packed by torch-model-archiver"


def test_what_a_model_tells_of_itself_is_in_its_description(server: ServerProcess) -> None:
    url = f"{server.management_url}/models/describes"
    [described] = httpx.get(url, params={"customized": "true"}, trust_env=False, timeout=CLIENT_S_MAX).json()
    assert described["customizedMetadata"] == {"labels": ["cat", "dog"]}


def test_every_file_of_the_folder_is_packed_into_some_archive() -> None:
    packed = {(case.archive.source or case.archive.name) for case in CASES}
    there = {path.name for path in (Path(__file__).parent / "archives").iterdir() if path.name != "__pycache__"}
    assert there == packed

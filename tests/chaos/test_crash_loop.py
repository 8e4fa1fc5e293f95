"""Models that cannot load, or die of their first request: tried less and less often, answered for at once, back by themselves."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from ringserve.server.testing import wait_until

if TYPE_CHECKING:
    from tests.chaos.conftest import Site

pytestmark = pytest.mark.e2e

WORKERS = 6
# It cannot load while `broken` is there, and ends its process with a request while `poisoned` is.
MODEL = """
import os, pathlib

FOLDER = pathlib.Path(FOLDER_NAME)

def handle(data, context):
    if data is None:
        (FOLDER / f"attempt-{os.getpid()}").touch()
        if (FOLDER / "broken").exists():
            print("the weights are broken", flush=True)
            os._exit(4)
        return None
    if (FOLDER / "poisoned").exists():
        os._exit(5)
    return ["served"] * len(data)
"""


def attempts(folder: Path) -> int:
    return len(list(folder.glob("attempt-*")))


def refused_at_once(response: httpx.Response) -> bool:
    """Whether nobody serves the model now; then the answer says when to ask again."""
    if response.status_code != 503:
        return False
    assert response.json()["type"] == "ServiceUnavailableException"
    assert "has no worker to serve inference request" in response.json()["message"]
    assert 1 <= int(response.headers["retry-after"]) <= 60
    return True


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "marks"
    made.mkdir()
    return made


def test_a_model_that_cannot_load_is_tried_seldom_and_serves_as_soon_as_it_can(
    archive: Callable[..., Path], start: "Callable[..., Site]", folder: Path
) -> None:
    archive("flawed", source=MODEL.replace("FOLDER_NAME", repr(str(folder))))
    site = start(archive("actor"))
    assert site.manage("DELETE", "/models/flawed").status_code == 200
    before = attempts(folder)
    (folder / "broken").touch()
    wanted = {"url": "flawed.mar", "initial_workers": WORKERS, "synchronous": "false"}
    assert site.manage("POST", "/models", **wanted).status_code == 202
    with site.load("actor", 2) as load:
        wait_until(lambda: refused_at_once(site.predict("flawed", "")), 20, "a refusal")
        assert site.ping().status_code == 500
        assert attempts(folder) - before < WORKERS, "a few were tried, and then one at a time"
        wait_until(lambda: site.server.log.count("Retry worker: ") >= 4, 20, "a try of one alone")
        (folder / "broken").unlink()
        site.wait_ready("flawed", WORKERS)
        assert site.predict("flawed", "").text == "served"
        assert attempts(folder) - before <= WORKERS + 8
        assert site.ping().status_code == 200
    load.check()
    assert load.errors.total() == 0
    assert "the weights are broken" in site.server.log
    assert len([line for line in site.server.log.splitlines() if "Retry worker: " in line]) >= 4


def test_a_model_that_dies_of_its_first_request_is_not_started_over_and_over(
    archive: Callable[..., Path], start: "Callable[..., Site]", folder: Path
) -> None:
    archive("flawed", source=MODEL.replace("FOLDER_NAME", repr(str(folder))))
    site = start(archive("actor"))
    (folder / "poisoned").touch()
    deaths = 0
    while not refused_at_once(response := site.predict("flawed", "")):
        assert response.status_code == 500
        assert response.json()["message"].startswith("Worker died.")
        deaths += 1
        assert deaths <= 4
    assert deaths == 4, "the first three are replaced at once"
    assert attempts(folder) == deaths
    (folder / "poisoned").unlink()
    wait_until(lambda: site.predict("flawed", "").text == "served", 20, "an answer of the probe")
    # It has proved itself: the next death is an accident again.
    (folder / "poisoned").touch()
    assert site.predict("flawed", "").status_code == 500
    (folder / "poisoned").unlink()
    assert site.predict("flawed", "").text == "served"


def test_a_model_without_retries_stays_down_until_it_is_scaled(
    archive: Callable[..., Path], start: "Callable[..., Site]"
) -> None:
    site = start(archive("actor", config="maxRetryTimeoutInSec: 0\n"))
    site.kill_worker(site.ready_workers("actor")[0])
    wait_until(lambda: site.predict("actor", "1").status_code == 503, 10, "a refusal")
    assert "retry-after" not in site.predict("actor", "1").headers
    assert site.ping().status_code == 500
    assert "is not restarted: maxRetryTimeoutInSec is 0" in site.server.log
    assert site.manage("PUT", "/models/actor", min_worker=1, synchronous="true").status_code == 200
    assert site.predict("actor", "1").text == "1"

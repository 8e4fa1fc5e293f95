"""One request that makes its batch fail is answered with the failure, and every other one with its own answer."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from ringserve.server.testing import ServerProcess, wait_until

FILL_MS = 20_000  # a batch leaves when it is full

PICKY = """
import numpy as np


class Picky:
    def predict(self, inputs, outputs):
        if np.isnan(inputs["x"]).any():
            raise ValueError("not a number")
        outputs["y"][:] = inputs["x"] * 2
"""
PICKY_TENSORS = """
backend: python
inputs:
  - {name: x, dtype: float64, shape: [2]}
outputs:
  - {name: y, dtype: float64, shape: [2]}
"""


def batching(rows: int) -> str:
    return f"batchSize: {rows}\nmaxBatchDelay: {FILL_MS}\nbatching: fill\n"


@pytest.fixture(scope="module")
def url(archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("isolation")
    store = folder / "store"
    for rows in (8, 32):
        archive(store, f"offended-{rows}", "offended.py:handle", config=batching(rows))
        archive(store, f"picky-{rows}", "picky.py", source=PICKY, config=batching(rows) + PICKY_TENSORS)
    config = {"default_workers_per_model": 1, "job_queue_size": 1000}
    with ServerProcess(store, config=config, folder=folder / "server") as server:
        ping = f"{server.inference_url}/ping"
        wait_until(lambda: httpx.get(ping, trust_env=False).status_code == 200, 60, f"healthy models\n{server.log}")
        yield server.inference_url
    assert server.remains() == []


def ask_all(url: str, model: str, bodies: list[bytes]) -> list[httpx.Response]:
    """At once, each on its own connection."""

    def ask(body: bytes) -> httpx.Response:
        return httpx.post(f"{url}/predictions/{model}", content=body, timeout=60, trust_env=False)

    with ThreadPoolExecutor(len(bodies)) as pool:
        return list(pool.map(ask, bodies))


@pytest.mark.parametrize("rows", [8, 32])
def test_the_offender_of_a_handlers_batch_fails_alone(url: str, rows: int) -> None:
    bodies = [f"row {row}".encode() for row in range(rows)]
    bodies[rows // 3] = b"offend"
    responses = ask_all(url, f"offended-{rows}", bodies)
    for row, response in enumerate(responses):
        if row == rows // 3:
            assert response.status_code == 503
            assert response.json()["message"] == "Prediction failed"
        else:
            assert (response.status_code, response.text) == (220 + row, f"ROW {row}")
            assert int(response.headers["x-rows"]) < rows


@pytest.mark.parametrize("rows", [8, 32])
def test_the_offender_of_a_typed_batch_fails_alone(url: str, rows: int) -> None:
    inputs = [np.array([row, -row], np.float64) for row in range(rows)]
    inputs[rows - 1][0] = math.nan
    responses = ask_all(url, f"picky-{rows}", [each.tobytes() for each in inputs])
    for row, response in enumerate(responses[:-1]):
        assert (response.status_code, response.json()) == (200, [2 * row, -2 * row])
    assert responses[-1].status_code == 503


def test_several_offenders_fail_and_nobody_else(url: str) -> None:
    bodies = [b"offend", *(f"row {row}".encode() for row in range(1, 7)), b"offend"]
    responses = ask_all(url, "offended-8", bodies)
    assert [response.status_code for response in responses] == [503, *range(221, 227), 503]


def test_an_answer_with_a_row_too_few_fails_the_batch_and_names_both_numbers(url: str) -> None:
    responses = ask_all(url, "offended-8", [b"too few", *(b"row 1" for _ in range(7))])
    assert {response.json()["message"] for response in responses} == {
        "number of batch response mismatched, expect: 8, got: 7."
    }


def test_after_a_failure_batches_run_whole_again(url: str) -> None:
    ask_all(url, "offended-8", [b"offend"] * 8)
    responses = ask_all(url, "offended-8", [b"row 1"] * 8)
    assert {response.headers["x-rows"] for response in responses} == {"8"}

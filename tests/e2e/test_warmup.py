"""A model answers its samples before it is ready, and one that cannot is never served."""

from collections.abc import Callable, Iterator
from pathlib import Path
from zipfile import ZipFile

import httpx
import pytest

COUNTING = """
seen = []

def handle(data, context):
    if data is None:
        return None
    bodies = [row.get("body") for row in data]
    if "fail" in bodies:
        raise ValueError("a sample that fails")
    seen.append([len(data), type(bodies[0]).__name__, context.get_request_header(0, "content-type")])
    return [seen[:-1]] * len(data)
"""
CONFIG = "batchSize: 4\nwarmup:\n  - {json: {text: hello}, repeat: 2}\n  - {file: cat.jpg}\n"
DOUBLING = """
class Doubler:
    calls = 0

    def predict(self, inputs, outputs):
        self.calls += 1
        outputs["y"][:] = inputs["x"] * 2

    def describe(self):
        return {"calls": self.calls}
"""
TYPED = """
backend: python
inputs:
  - {name: x, dtype: float32, shape: [2]}
outputs:
  - {name: y, dtype: float32, shape: [2]}
"""


@pytest.fixture
def register(management: httpx.Client, store: Path) -> Iterator[Callable[..., httpx.Response]]:
    """Register an archive and wait; at the test's end it is gone, whether it ever was there or not."""
    made: list[Path] = []

    def asked(path: Path) -> httpx.Response:
        made.append(path)
        return management.post("/models", params={"url": path.name, "initial_workers": 1, "synchronous": "true"})

    yield asked
    for path in made:
        management.delete(f"/models/{path.stem}")
        path.unlink()


def test_the_first_client_comes_after_every_sample(
    register: Callable[..., httpx.Response],
    client: httpx.Client,
    store: Path,
    archive: Callable[..., Path],
    tmp_path: Path,
) -> None:
    (tmp_path / "cat.jpg").write_bytes(b"cat")
    path = archive(
        store, "counting", "counting.py:handle", source=COUNTING, config=CONFIG, extra_files=str(tmp_path / "cat.jpg")
    )
    with ZipFile(path, "a") as bundle:
        bundle.writestr("MAR-INF/warmup/note.txt", "a stored sample")
    assert register(path).status_code == 200
    json_kind, cat_kind, note_kind = ["dict", "application/json"], ["bytearray", "image/jpeg"], ["str", "text/plain"]
    assert client.post("/predictions/counting", json=1).json() == [
        *[[1, *json_kind]] * 2,
        *[[4, *json_kind]] * 2,
        [1, *cat_kind],
        [4, *cat_kind],
        [1, *note_kind],
        [4, *note_kind],
    ]


def test_a_typed_model_is_warmed_up_with_arrays(
    register: Callable[..., httpx.Response], management: httpx.Client, store: Path, archive: Callable[..., Path]
) -> None:
    path = archive(store, "warm", "warm.py", source=DOUBLING, config=f"{TYPED}warmup: [{{json: [1, 2], repeat: 5}}]\n")
    assert register(path).status_code == 200
    (described,) = management.get("/models/warm", params={"customized": "true"}).json()
    assert described["customizedMetadata"] == {"calls": 5}


@pytest.mark.parametrize(
    ("config", "cause"),
    [
        ("warmup: [{text: fail}]", "Warm-up with warmup[0] failed: Prediction failed"),
        ("warmup: [{file: absent.jpg}]", "Warm-up with warmup[0], absent.jpg failed: expected a file of the archive"),
    ],
)
def test_a_model_that_cannot_be_warmed_up_is_refused_with_the_sample_and_the_cause(
    register: Callable[..., httpx.Response],
    management: httpx.Client,
    store: Path,
    archive: Callable[..., Path],
    config: str,
    cause: str,
) -> None:
    answer = register(archive(store, "cold", "cold.py:handle", source=COUNTING, config=config))
    assert answer.status_code == 500
    assert cause in answer.json()["message"]
    assert management.get("/models/cold").status_code == 404

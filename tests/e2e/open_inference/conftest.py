"""One server for the tests of the Open Inference Protocol over REST, with a model for each kind of declaration. None of them imports a
framework."""

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from ringserve.protocol.datatypes import DTYPES
from ringserve.server.testing import ServerProcess, wait_until

# An input and an output of each datatype, of which a request brings those it likes.
TYPES = "backend: python\nbatchSize: 8\ninputs:\n"
TYPES += "".join(
    f"  - {{name: {each}, dtype: {dtype}, shape: [-1], optional: true}}\n" for each, dtype in DTYPES.items()
)
TYPES += "outputs:\n" + "".join(
    f"  - {{name: OUT_{each}, dtype: {dtype}, shape: [-1]}}\n" for each, dtype in DTYPES.items()
)
TYPES_SOURCE = f"""
import numpy as np

DTYPES = {DTYPES!r}


class Types:
    def predict(self, inputs):
        rows = len(next(iter(inputs.values()), [None]))
        outputs = {{}}
        for name, dtype in DTYPES.items():
            dtype = {{"bytes": "object", "bfloat16": "uint16"}}.get(dtype, dtype)
            outputs["OUT_" + name] = inputs.get(name, np.zeros((rows, 0), dtype))
        return outputs
"""

SCORES = """
backend: python
max_batch_size: 4
input: [{name: x, data_type: TYPE_FP32, dims: [3]}]
output: [{name: y, data_type: TYPE_FP32, dims: [3], label_filename: labels.txt}, {name: z, data_type: TYPE_INT64, dims: [3]}]
"""
SCORES_SOURCE = """
class Scores:
    def predict(self, inputs):
        x = inputs["x"]
        if (x < 0).any():
            raise ValueError("a negative score")
        return {"y": x * 2, "z": x.astype("int64")}
"""
LARGE = """
backend: python
batchSize: 2
inputs: [{name: x, dtype: float32, shape: [150528]}]
outputs: [{name: y, dtype: float32, shape: [150528]}]
"""
LARGE_SOURCE = """
class Large:
    def predict(self, inputs, outputs):
        outputs["y"][:] = inputs["x"] + 1
"""
WORDS = """
backend: python
max_batch_size: 0
input:
  - {name: text_input, data_type: TYPE_STRING, dims: [1]}
  - {name: fail_after, data_type: TYPE_INT32, dims: [1], optional: true}
output: [{name: text_output, data_type: TYPE_STRING, dims: [1]}]
model_transaction_policy: {decoupled: true}
"""
WORDS_SOURCE = """
import numpy as np


class Words:
    def predict(self, inputs):
        last = int(inputs["fail_after"][0]) if "fail_after" in inputs else None
        for count, word in enumerate(inputs["text_input"][0].decode().split()):
            if count == last:
                raise ValueError("no more words")
            yield {"text_output": np.array([word.encode()], object)}
"""
# Answers as the envelope kservev2 does, from JSON.
HANDLER_SOURCE = """
import json


def handle(data, context):
    return None if data is None else [answer(row["body"]) for row in data]


def answer(said):
    said = json.loads(bytes(said)) if isinstance(said, (bytes, bytearray)) else said
    outputs = [{**each, "name": "out_" + each["name"]} for each in said["inputs"]]
    return {"id": said.get("id", ""), "outputs": outputs}
"""


@pytest.fixture(scope="session")
def v2_server(
    archive: Callable[..., Path], sums_config: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """Models `types`, `sums`, `scores`, `large`, `words` (decoupled) and `handler`."""
    store = tmp_path_factory.mktemp("v2") / "store"
    labels = store.parent / "labels.txt"
    labels.write_text("cat\ndog\nfish\n")
    archive(store, "types", "types_model.py", source=TYPES_SOURCE, config=TYPES)
    archive(store, "scores", "scores.py", source=SCORES_SOURCE, config=SCORES, extra_files=str(labels))
    archive(store, "large", "large.py", source=LARGE_SOURCE, config=LARGE)
    archive(store, "words", "words.py", source=WORDS_SOURCE, config=WORDS)
    archive(store, "handler", "tensors.py:handle", source=HANDLER_SOURCE)
    archive(store, "sums", "sums.py", config=sums_config)
    config = {"default_workers_per_model": 1, "job_queue_size": 1000, "max_request_size": 2_000_000}
    server = ServerProcess(store, config=config, folder=tmp_path_factory.mktemp("v2-server"))
    with server:
        ready = f"{server.inference_url}/v2/health/ready"
        wait_until(lambda: httpx.get(ready, trust_env=False).status_code == 200, 60, f"ready models\n{server.log}")
        yield server
    assert server.remains() == []


@pytest.fixture
def asking_v2(v2_server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=v2_server.inference_url, trust_env=False, timeout=30) as client:
        client.headers["accept-encoding"] = "identity"
        yield client

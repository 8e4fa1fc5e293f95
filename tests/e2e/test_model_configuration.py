"""Models that are configured in Triton's words: in Triton's layout of a repository, in an archive's model-config.yaml, in a
config.pbtxt that an archive holds. One server, asked in the Open Inference Protocol, as its clients do."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from ringserve.server.testing import FLAGS, ServerProcess, wait_until

WAIT_S = 60.0
# A model of Triton's Python backend: the sum of its two inputs, and how many requests came in one call.
MODEL = """
import json
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.add = int(config["parameters"].get("add", {"string_value": "0"})["string_value"])

    def execute(self, requests):
        def tensor(request, name):
            return pb_utils.get_input_tensor_by_name(request, name).as_numpy()

        totals = [tensor(each, "LEFT") + tensor(each, "RIGHT") + self.add for each in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("SUM", total)]) for total in totals]
"""
AUTO = """
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "IN", "data_type": "TYPE_FP32", "dims": [-1]})
        config.add_output({"name": "OUT", "data_type": "TYPE_FP32", "dims": [-1]})
        config.set_max_batch_size(3)
        config.set_dynamic_batching()
        return config

    def execute(self, requests):
        found = [pb_utils.get_input_tensor_by_name(each, "IN").as_numpy() for each in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", each)]) for each in found]
"""
CONFIG = """
name: "adding"
backend: "python"
max_batch_size: 4
input [ { name: "LEFT" data_type: TYPE_INT32 dims: [ 3 ] }, { name: "RIGHT" data_type: TYPE_INT32 dims: [ 3 ] } ]
output [ { name: "SUM" data_type: TYPE_INT32 dims: [ 3 ] label_filename: "labels.txt" } ]
dynamic_batching {}
parameters { key: "add" value { string_value: "ADD" } }
version_policy { latest { num_versions: 2 } }
model_warmup { name: "zeros" batch_size: 2
  inputs { key: "LEFT" value { data_type: TYPE_INT32 dims: [ 3 ] zero_data: true } }
  inputs { key: "RIGHT" value { data_type: TYPE_INT32 dims: [ 3 ] random_data: true } } }
"""
CLASS = """
class Doubling:
    def predict(self, inputs, outputs):
        outputs["y"][:] = inputs["x"] * 2
"""
CLASS_CONFIG = """
backend: python
max_batch_size: 8
input: [{name: x, data_type: TYPE_FP64, dims: [2]}]
output: [{name: y, data_type: TYPE_FP64, dims: [2]}]
dynamic_batching: {max_queue_delay_microseconds: 100}
instance_group: [{count: 2, kind: KIND_CPU}]
"""


class Site:
    def __init__(self, server: ServerProcess, folder: Path) -> None:
        self.server, self.folder = server, folder
        self.http = httpx.Client(base_url=server.inference_url, timeout=WAIT_S, trust_env=False)

    def get(self, path: str) -> Any:
        return self.http.get(f"/v2/models/{path}").json()

    def ready(self, model: str) -> None:
        wait_until(
            lambda: self.http.get(f"/v2/models/{model}/ready").status_code == 200, WAIT_S, f"{model}\n{self.server.log}"
        )

    def infer(self, path: str, **inputs: Any) -> Any:
        tensors = [
            {"name": name, "datatype": datatype, "shape": shape, "data": data}
            for name, (datatype, shape, data) in inputs.items()
        ]
        return self.http.post(f"/v2/models/{path}/infer", json={"inputs": tensors}).json()

    def added(self, path: str = "adding") -> Any:
        """The first element of the sum of ones and twos."""
        said = self.infer(path, LEFT=("INT32", [1, 3], [1, 1, 1]), RIGHT=("INT32", [1, 3], [2, 2, 2]))
        return said["outputs"][0]["data"][0] if "outputs" in said else said["error"]


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("configured") / "repository"
    versions = {f"{version}__model_py": MODEL for version in (1, 2, 10)}
    write(folder / "adding", config_pbtxt=CONFIG.replace("ADD", "10"), labels_txt="cat\ndog\nowl\n", **versions)
    write(folder / "auto", **{"1__model_py": AUTO})
    write(folder / "broken", config_pbtxt="max_batch_sizes: 3", **{"1__model_py": MODEL})
    write(folder / "foreign", config_pbtxt='backend: "onnxruntime"', **{"1__model_onnx": ""})
    archive(folder, "doubling", "doubling.py", source=CLASS, config=CLASS_CONFIG)
    pbtxt = folder.parent / "config.pbtxt"
    pbtxt.write_text(
        CONFIG.replace("ADD", "20").replace('name: "adding"', "").replace('label_filename: "labels.txt"', "")
    )
    archive(folder, "packed", "model.py", source=MODEL, extra_files=str(pbtxt))
    flags = (*FLAGS, "--model-control-mode", "watch")
    config = {"default_workers_per_model": 1}
    with ServerProcess(folder, models=(), config=config, flags=flags, folder=folder.parent / "server") as server:
        found = Site(server, folder)
        for model in ("adding", "adding/versions/2", "auto", "doubling", "packed"):
            found.ready(model)
        yield found
        found.http.close()
    assert server.remains() == []


def test_the_versions_that_the_policy_wants_are_served_and_the_highest_answers(site: Site) -> None:
    assert sorted(site.get("adding")["versions"]) == ["10", "2"]
    assert (
        site.infer("adding", LEFT=("INT32", [1, 3], [1] * 3), RIGHT=("INT32", [1, 3], [2] * 3))["model_version"] == "10"
    )
    assert site.added("adding/versions/2") == 13
    assert "not found" in site.added("adding/versions/1")


def test_samples_are_answered_before_a_model_is_ready(site: Site) -> None:
    assert site.server.log.count("warmed up with 1 samples") >= 3  # two versions of one model, and an archive


def test_metadata_are_those_of_config_pbtxt(site: Site) -> None:
    said = site.get("adding")
    assert said["platform"] == "python"
    assert said["inputs"] == [{"name": name, "datatype": "INT32", "shape": [-1, 3]} for name in ("LEFT", "RIGHT")]


def test_the_configuration_is_shown_with_what_triton_adds_to_it(site: Site) -> None:
    said = site.get("adding/config")
    assert (said["name"], said["max_batch_size"], said["default_model_filename"]) == ("adding", 4, "model.py")
    assert said["dynamic_batching"]["preferred_batch_size"] == [4]
    assert said["instance_group"][0]["name"] == "adding"
    assert said["version_policy"] == {"latest": {"num_versions": 2}}
    assert said["parameters"] == {"add": {"string_value": "10"}}


def test_labels_are_those_of_the_file_that_it_names(site: Site) -> None:
    request = {
        "inputs": [
            {"name": name, "datatype": "INT32", "shape": [1, 3], "data": [0, 5, 1]} for name in ("LEFT", "RIGHT")
        ],
        "outputs": [{"name": "SUM", "parameters": {"classification": 1}}],
    }
    [output] = site.http.post("/v2/models/adding/infer", json=request).json()["outputs"]
    assert output["data"] == ["20:1:dog"]


def test_a_model_without_a_configuration_says_itself_what_it_takes(site: Site) -> None:
    said = site.get("auto/config")
    assert (said["max_batch_size"], said["input"][0]["dims"]) == (3, [-1])
    assert said["dynamic_batching"]["preferred_batch_size"] == [3]
    answer = site.infer("auto", IN=("FP32", [3, 2], [1, 2, 3, 4, 5, 6]))
    assert answer["outputs"][0]["data"] == [1, 2, 3, 4, 5, 6]
    assert "error" in site.infer("auto", IN=("FP32", [4, 1], [1, 2, 3, 4]))


def test_an_archive_is_configured_in_the_same_words(site: Site) -> None:
    said = site.get("doubling/config")
    assert (said["backend"], said["max_batch_size"], said["instance_group"][0]["count"]) == ("python", 8, 2)
    assert site.infer("doubling", x=("FP64", [2, 2], [1, 2, 3, 4]))["outputs"][0]["data"] == [2, 4, 6, 8]
    described = httpx.get(f"{site.server.management_url}/models/doubling", trust_env=False).json()[0]
    assert (described["batchSize"], described["minWorkers"]) == (8, 2)


def test_an_archive_may_hold_a_config_pbtxt(site: Site) -> None:
    assert site.added("packed") == 23
    assert site.get("packed/config")["backend"] == "python"


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("broken/1", 'config.pbtxt: 1:1 : Message type "inference.ModelConfig" has no field named "max_batch_sizes"'),
        ("foreign/1", "config.pbtxt: backend: expected one of python, pytorch, got 'onnxruntime'"),
    ],
)
def test_what_cannot_be_served_is_reported_with_its_reason(site: Site, file: str, reason: str) -> None:
    def reported() -> dict[str, str]:
        status = httpx.get(f"{site.server.management_url}/status", trust_env=False).json()
        [row] = [each for each in status["repository"] if each["file"] == file]
        return dict(row)

    wait_until(lambda: reported()["state"] != "incomplete", WAIT_S, "a look at it when it is complete")
    row = reported()
    assert row["state"] == "refused"
    assert reason in row["reason"]


def test_another_configuration_takes_over(site: Site) -> None:
    """Written beside and moved there: what lies there is never half a file."""
    fresh = site.folder / "adding" / ".config.pbtxt"
    fresh.write_text(CONFIG.replace("ADD", "100").replace("latest { num_versions: 2 }", "specific { versions: [ 2 ] }"))
    fresh.rename(site.folder / "adding" / "config.pbtxt")
    wait_until(lambda: site.added("adding/versions/2") == 103, WAIT_S, f"the new one\n{site.server.log}")
    wait_until(lambda: site.get("adding")["versions"] == ["2"], WAIT_S, f"version 2 alone\n{site.server.log}")
    assert json.loads(json.dumps(site.get("adding/config")))["version_policy"] == {"specific": {"versions": [2]}}

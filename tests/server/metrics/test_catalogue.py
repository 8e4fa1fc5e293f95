"""metrics.yaml."""

import logging
from pathlib import Path

import pytest

from ringserve.server.metrics.catalogue import AsListed, Listed, ListError, open_catalogue, read_catalogue
from ringserve.server.metrics.exposition import collect
from ringserve.server.metrics.family import Family, Kind, family, torchserve_family
from ringserve.server.metrics.listing import ListedMetric

SERVER_NAMES = {
    *("Requests2XX", "Requests4XX", "Requests5XX", "QueueTime", "WorkerThreadTime", "WorkerLoadTime"),
    *("ts_inference_requests_total", "ts_inference_latency_microseconds", "ts_queue_latency_microseconds"),
    *("CPUUtilization", "MemoryUtilization", "DiskUtilization", "MemoryUsed", "MemoryAvailable"),
    *("DiskUsage", "DiskAvailable", "GPUMemoryUtilization", "GPUMemoryUsed", "GPUUtilization"),
}
TEXT = """
dimensions:
  - &model "ModelName"
  - &level "Level"
ts_metrics:
  counter:
    - {name: Requests2XX, unit: Hits, dimensions: [Plane, Machine]}
model_metrics:
  counter:
    - {name: Calls, unit: count, dimensions: [*model, *level]}
  histogram:
    - name: Sizes
      unit: MB
      dimensions: []
"""


def test_the_default_file_lists_torchserves_metrics() -> None:
    """By their names."""
    catalogue = open_catalogue(None)
    assert catalogue.torchserve.keys() == SERVER_NAMES
    assert catalogue.handlers.keys() == {"HandlerTime", "PredictionTime"}
    assert catalogue.handlers["HandlerTime"] == ListedMetric("HandlerTime", "gauge", "ms", ("ModelName", "Level"))


def test_a_file_lists_others(tmp_path: Path) -> None:
    """With anchors, and lists that are empty."""
    file = tmp_path / "metrics.yaml"
    file.write_text(TEXT)
    catalogue = read_catalogue(file)
    assert catalogue.handlers == {
        "Calls": ListedMetric("Calls", "counter", "count", ("ModelName", "Level")),
        "Sizes": ListedMetric("Sizes", "histogram", "MB", ()),
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model_metrics: [", "metrics.yaml, line 1"),
        ("- a", "expected a mapping"),
        ("model_metrics: 5", "model_metrics: expected the keys counter, gauge, histogram, got 5"),
        ("model_metrics: {meter: []}", "model_metrics.meter: expected one of counter, gauge, histogram"),
        ("model_metrics: {gauge: 5}", "model_metrics.gauge: expected a list of metrics, got 5"),
        ("model_metrics: {gauge: [5]}", "model_metrics.gauge[0]: expected a mapping"),
        ("model_metrics: {gauge: [{unit: ms, dimensions: []}]}", "model_metrics.gauge[0].name: expected text"),
        ("model_metrics: {gauge: [{name: A, dimensions: []}]}", "gauge[0].unit: expected text"),
        ("model_metrics: {gauge: [{name: A, unit: ms}]}", "gauge[0].dimensions: expected a list"),
        ("model_metrics: {gauge: [{name: A, unit: ms, dimensions: B}]}", "dimensions: expected a list of"),
        ("model_metrics: {gauge: [{name: A, unit: ms, dimensions: [1]}]}", "dimensions[0]: expected text"),
        ("ts_metrics: {gauge: [{name: A, unit: u}], counter: [{name: A, unit: u}]}", "expected every name once"),
    ],
)
def test_a_mistake_is_named_by_its_place(tmp_path: Path, text: str, said: str) -> None:
    """File, key, what was expected, what came."""
    file = tmp_path / "metrics.yaml"
    file.write_text(text)
    with pytest.raises(ListError) as raised:
        read_catalogue(file)
    assert said in str(raised.value)
    assert str(file) in str(raised.value)


def test_a_file_of_aliases_of_aliases_is_refused(tmp_path: Path) -> None:
    """A few lines that stand for billions of values."""
    levels = "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12))
    file = tmp_path / "metrics.yaml"
    file.write_text(f"a0: &a0 [x]\n{levels}\n")
    with pytest.raises(ListError, match="expected at most"):
        read_catalogue(file)


def test_a_file_that_cannot_be_used_leaves_the_default_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """TorchServe runs with no metrics at all then."""
    with caplog.at_level(logging.ERROR):
        catalogue = open_catalogue(tmp_path / "absent.yaml")
    assert catalogue == open_catalogue(None)
    assert "absent.yaml" in caplog.text


class Some:
    """A collector."""

    def families(self) -> list[Family]:
        host = (("Level", "Host"), ("Hostname", "h"))
        return [
            torchserve_family("Requests2XX", Kind.COUNTER, "Count", [(host, 3)]),
            torchserve_family("Requests4XX", Kind.COUNTER, "Count", [(host, 3)]),
            family("ringserve_queue_depth", Kind.GAUGE, "Waiting.", []),
        ]


def test_what_is_listed_is_named_before_it_has_a_value(tmp_path: Path) -> None:
    """And what it has counts once it is there; a name that Prometheus cannot read is not told."""
    file = tmp_path / "metrics.yaml"
    file.write_text(TEXT + "    - {name: not readable, unit: ms, dimensions: []}\n")
    catalogue = read_catalogue(file)
    listed = {each.name: each for each in Listed(catalogue).families()}
    assert listed.keys() == {*catalogue.torchserve, *catalogue.handlers} - {"not readable"}
    assert "not readable" in catalogue.handlers
    [told] = [each for each in collect([Some(), Listed(catalogue)]) if each.name == "Requests2XX"]
    assert [sample.value for sample in told.samples] == [3]


def test_torchserves_metrics_are_told_as_they_are_listed(tmp_path: Path) -> None:
    """Those that are not listed are left out; the server's own are always told."""
    file = tmp_path / "metrics.yaml"
    file.write_text(TEXT)
    told = list(AsListed(Some(), read_catalogue(file)).families())
    assert [each.name for each in told] == ["Requests2XX", "ringserve_queue_depth"]
    assert told[0].help.endswith("unit: Hits")
    assert told[0].samples[0].labels == (("Plane", "Host"), ("Machine", "h"))

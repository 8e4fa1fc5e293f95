"""`context.metrics` where there is no server: every call, and the line it prints."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ringserve.backends.ts.metrics.dimension import Dimension
from ringserve.backends.ts.metrics.metric import Metric
from ringserve.backends.ts.metrics.metric_cache_errors import (
    MetricsCacheIOError,
    MetricsCacheKeyError,
    MetricsCachePyYamlError,
    MetricsCacheTypeError,
    MetricsCacheValueError,
)
from ringserve.backends.ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ringserve.backends.ts.metrics.metric_type_enum import MetricTypes
from ringserve.backends.ts.metrics.metrics_store import MetricsStore
from ringserve.backends.ts.metrics.wire import metric_line

MODEL = "ModelName:m,Level:Model"
# TorchServe's grammar of a line, as the contract gives it.
LINE = re.compile(
    r"\[METRICS\]([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)\|#([^|]*)\|#type:(\w+)\|#hostname:([^,]+),(\d+)(,.*)?"
)


@pytest.fixture
def metrics() -> MetricsCacheYamlImpl:
    """The metrics of a model that answers two requests."""
    cache = MetricsCacheYamlImpl()
    cache.model_name = "m"
    cache.request_ids = {0: "r1", 1: "r2"}
    return cache


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[str, ...]:
    """Name, unit, value, dimensions, type and ids of the one line on stdout."""
    match = LINE.fullmatch(capsys.readouterr().out.rstrip("\n"))
    assert match is not None
    name, unit, value, dimensions, kind, _, _, ids = match.groups()
    return name, unit, value, dimensions, kind, ids or ""


def test_the_line_is_torchserves() -> None:
    """Character by character; the host's name is the one part that is not given."""
    line = metric_line("Size", "Megabytes", 1.5, [("A", "b"), ("C", "d")], "GAUGE", "r1,r2", now_s=1700000000.9)
    assert re.sub(r"hostname:[^,]+", "hostname:H", line) == (
        "[METRICS]Size.Megabytes:1.5|#A:b,C:d|#type:GAUGE|#hostname:H,1700000000,r1,r2"
    )


def test_each_helper_has_its_type_and_unit(metrics: MetricsCacheYamlImpl, capsys: pytest.CaptureFixture[str]) -> None:
    """Names, units and types by default."""
    metrics.add_counter("Calls", 2)
    assert printed(capsys) == ("Calls", "Count", "2", MODEL, "COUNTER", ",r1,r2")
    metrics.add_time("Took", 1.25, idx=1)
    assert printed(capsys) == ("Took", "Milliseconds", "1.25", MODEL, "GAUGE", ",r2")
    metrics.add_time("Took", 3, unit="s", metric_type=MetricTypes.HISTOGRAM)
    assert printed(capsys) == ("Took", "Seconds", "3", MODEL, "HISTOGRAM", ",r1,r2")
    metrics.add_size("Weight", 7, None, "kB")
    assert printed(capsys) == ("Weight", "Kilobytes", "7", MODEL, "GAUGE", ",r1,r2")
    half: Any = np.float32(0.5)  # handlers pass what their framework gives them
    metrics.add_percent("Share", half)
    assert printed(capsys) == ("Share", "Percent", "0.5", MODEL, "GAUGE", ",r1,r2")
    metrics.add_error("Bad", 1)
    assert printed(capsys) == ("Bad", "unit", "1", "Level:Error", "COUNTER", "")
    metrics.add_metric("Own", 4, "Pages", dimensions=[Dimension("Kind", "x")])
    assert printed(capsys) == ("Own", "Pages", "4", f"Kind:x,{MODEL}", "COUNTER", ",r1,r2")


def test_an_unknown_row_means_the_whole_batch(
    metrics: MetricsCacheYamlImpl, capsys: pytest.CaptureFixture[str]
) -> None:
    """As in TorchServe, where that is no error."""
    metrics.add_counter("Calls", 1, idx=7)
    assert printed(capsys)[5] == ",r1,r2"
    metrics.set_request_ids(None)
    metrics.add_counter("Calls", 1)
    assert printed(capsys)[3:] == (MODEL, "COUNTER", "")


def test_the_callers_dimensions_are_not_changed(
    metrics: MetricsCacheYamlImpl, capsys: pytest.CaptureFixture[str]
) -> None:
    """TorchServe appends to the caller's list at every call."""
    dimensions = [Dimension("Kind", "x")]
    metrics.add_counter("Calls", 1, dimensions=dimensions)
    metrics.add_counter("Calls", 1, dimensions=dimensions)
    metrics.add_error("Bad", 1, dimensions=dimensions)
    assert len(dimensions) == 1


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), "many", None, 10**400, -1], ids=lambda value: f"{value}"[:6]
)
def test_a_value_that_cannot_be_reported_is_logged(
    metrics: MetricsCacheYamlImpl, value: Any, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The prediction goes on; a counter does not go down."""
    metrics.add_counter("Calls", value)
    assert capsys.readouterr().out == ""
    assert "Calls" in caplog.text


def test_large_numbers_have_no_plus_sign(metrics: MetricsCacheYamlImpl, capsys: pytest.CaptureFixture[str]) -> None:
    """The line's grammar does not know one."""
    metrics.add_time("Took", 1e20)
    assert printed(capsys)[2] == "1e20"


def test_a_clients_words_cannot_make_a_second_line(
    metrics: MetricsCacheYamlImpl, capsys: pytest.CaptureFixture[str]
) -> None:
    """Characters of the grammar are replaced in names and values."""
    metrics.add_counter("Calls", 1, dimensions=[Dimension("User", "a|b:c,d\n[METRICS]")])
    assert printed(capsys)[3] == f"User:a_b_c_d_[METRICS],{MODEL}"


def test_a_unit_that_does_not_exist_is_refused(metrics: MetricsCacheYamlImpl) -> None:
    """Times and sizes have closed lists."""
    with pytest.raises(MetricsCacheValueError, match=r"^the unit for a timed metric should be one of \['ms', 's'\]$"):
        metrics.add_time("Took", 1, unit="hours")
    with pytest.raises(ValueError, match=r"^The unit for size based metric is one of \['MB','kB', 'GB', 'B'\]$"):
        metrics.add_size("Weight", 1, unit="TB")


def test_a_registered_metric_reports_when_it_is_told(
    metrics: MetricsCacheYamlImpl, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Registering alone prints nothing; a wrong number of values is logged."""
    metric = metrics.add_metric_to_cache("Depth", "count", ["Queue"], MetricTypes.GAUGE)
    assert capsys.readouterr().out == ""
    assert metrics.get_metric("Depth", MetricTypes.GAUGE) is metric
    assert metrics.cache_keys() == ["gauge:Depth"]
    metric.add_or_update(3, ["q"], "r9")
    assert printed(capsys) == ("Depth", "Count", "3", "Queue:q", "GAUGE", ",r9")
    metric.add_or_update(3, ["q", "extra"])
    metric.add_or_update(3, None)
    assert capsys.readouterr().out == ""
    assert caplog.text.count("expected values for the dimensions ['Queue']") == 2
    metric.update(4, dimensions=[Dimension("Queue", "p"), Dimension("Side", "left")])
    assert printed(capsys) == ("Depth", "Count", "4", "Queue:p,Side:left", "GAUGE", "")
    with pytest.raises(MetricsCacheKeyError):
        metrics.get_metric("Depth", MetricTypes.COUNTER)


def test_what_is_registered_must_be_of_the_right_types(metrics: MetricsCacheYamlImpl) -> None:
    """TorchServe's error for each."""
    wrong: list[Any] = [(5, "ms"), ("Took", 5), ("Took", "ms", "ModelName"), ("Took", "ms", [], "counter")]
    for arguments in wrong:
        with pytest.raises(MetricsCacheTypeError):
            metrics.add_metric_to_cache(*arguments)


def test_a_file_of_metrics_may_be_given(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As TorchServe's users' unit tests do."""
    file = tmp_path / "metrics.yaml"
    file.write_text("model_metrics:\n  gauge:\n    - {name: Depth, unit: count, dimensions: [Queue]}\n")
    metrics = MetricsCacheYamlImpl(config_file_path=str(file))
    metrics.initialize_cache()
    metrics.get_metric("Depth", MetricTypes.GAUGE).add_or_update(1.5, ["q"])
    assert printed(capsys)[:4] == ("Depth", "Count", "1.5", "Queue:q")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("model_metrics: [", MetricsCachePyYamlError),
        ("ts_metrics: {}", MetricsCacheKeyError),
        ("model_metrics: {}", MetricsCacheValueError),
        ("model_metrics: {meter: []}", MetricsCacheKeyError),
        ("model_metrics: {gauge: [{name: Depth}]}", MetricsCacheKeyError),
    ],
)
def test_a_file_that_cannot_be_used_raises(tmp_path: Path, text: str, error: type[Exception]) -> None:
    """Each with TorchServe's error."""
    file = tmp_path / "metrics.yaml"
    file.write_text(text)
    with pytest.raises(error):
        MetricsCacheYamlImpl(str(file)).initialize_cache()
    with pytest.raises(MetricsCacheIOError):
        MetricsCacheYamlImpl(str(tmp_path / "absent.yaml"))


def test_the_store_of_the_first_releases_is_still_there(capsys: pytest.CaptureFixture[str]) -> None:
    """It keeps the first value of a metric, and reports the others."""
    store = MetricsStore({0: "r1"}, "m")
    store.add_counter("Calls", 1)
    store.add_time("Took", 2.0)
    store.add_size("Weight", 3)
    store.add_percent("Share", 4)
    store.add_error("Bad", "why")
    store.add_metric("Own", 5, "Pages", idx=0)
    assert [each.name for each in store.store] == ["Calls", "Took", "Weight", "Share", "Bad", "Own"]
    assert str(store.store[0]).startswith("Calls.Count:1|#ModelName:m,Level:Model|#hostname:")
    assert capsys.readouterr().out == ""
    store.add_counter("Calls", 2)
    assert printed(capsys) == ("Calls", "Count", "2", MODEL, "COUNTER", ",r1")
    with pytest.raises(ValueError):
        store.add_time("Took", 1, unit="hours")


def test_a_metric_may_be_made_by_itself(capsys: pytest.CaptureFixture[str]) -> None:
    """Its fields, and what `update` reports."""
    metric = Metric("Weight", 3, "MB", [Dimension("Level", "Host")], "r1")
    assert metric.to_dict()["Unit"] == "Megabytes"
    metric.update(7)
    assert printed(capsys) == ("Weight", "Megabytes", "7", "Level:Host", "COUNTER", ",r1")

"""`context.metrics` and the line it writes."""

import re
from typing import Any

import numpy as np
import pytest

from ringserve.backends.ts.metrics.dimension import Dimension
from ringserve.backends.ts.metrics.metric_cache_errors import MetricsCacheKeyError, MetricsCacheValueError
from ringserve.backends.ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl
from ringserve.backends.ts.metrics.metric_type_enum import MetricTypes
from ringserve.backends.ts.metrics.wire import metric_line

MODEL = "ModelName:m,Level:Model"
# TorchServe's grammar of a line, as the contract gives it.
LINE = re.compile(
    r"\[METRICS\]([\w\s]+)\.([\w\s]+):([0-9\-,.e]+)\|#([^|]*)\|#type:(\w+)\|#hostname:([^,]+),(\d+)(,.*)?"
)


@pytest.fixture
def metrics() -> MetricsCacheYamlImpl:
    """The metrics of a model that answers two requests."""
    cache = MetricsCacheYamlImpl("m")
    cache.request_ids = ["r1", "r2"]
    return cache


def printed(capsys: pytest.CaptureFixture[str]) -> tuple[str, ...]:
    """Name, unit, value, dimensions, type and ids of the one line on stdout."""
    match = LINE.fullmatch(capsys.readouterr().out.rstrip("\n"))
    assert match is not None
    name, unit, value, dimensions, kind, _, _, ids = match.groups()
    return name, unit, value, dimensions, kind, ids or ""


def test_the_line_is_torchserves() -> None:
    """Character by character; the host's name is the one part that is not given."""
    line = metric_line("Size", "MB", 1.5, [("A", "b"), ("C", "d")], "GAUGE", "r1,r2", now_s=1700000000.9)
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
    assert printed(capsys) == ("Bad", "unit", "1", "Level:Error,ModelName:m", "COUNTER", ",r1,r2")
    metrics.add_metric("Own", 4, "Pages", dimensions=[Dimension("Kind", "x")])
    assert printed(capsys) == ("Own", "Pages", "4", f"Kind:x,{MODEL}", "COUNTER", ",r1,r2")


def test_the_callers_dimensions_are_not_changed(
    metrics: MetricsCacheYamlImpl, capsys: pytest.CaptureFixture[str]
) -> None:
    """TorchServe appends to the caller's list at every call."""
    dimensions = [Dimension("Kind", "x")]
    metrics.add_counter("Calls", 1, dimensions=dimensions)
    metrics.add_counter("Calls", 1, dimensions=dimensions)
    assert len(dimensions) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_without_a_line_is_logged(
    metrics: MetricsCacheYamlImpl, value: float, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """The line's grammar has no infinity."""
    metrics.add_time("Took", value)
    assert capsys.readouterr().out == ""
    assert "Took" in caplog.text


def test_a_counter_does_not_go_down(
    metrics: MetricsCacheYamlImpl, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged and the prediction goes on."""
    metrics.add_counter("Calls", -1)
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
    with pytest.raises(MetricsCacheValueError):
        metrics.add_time("Took", 1, unit="hours")
    with pytest.raises(MetricsCacheValueError):
        metrics.add_size("Weight", 1, unit="TB")


def test_a_registered_metric_reports_when_it_is_told(
    metrics: MetricsCacheYamlImpl, capsys: pytest.CaptureFixture[str]
) -> None:
    """Registering alone prints nothing."""
    metric = metrics.add_metric_to_cache("Depth", "count", ["Queue"], MetricTypes.GAUGE)
    assert capsys.readouterr().out == ""
    assert metrics.get_metric("Depth", MetricTypes.GAUGE) is metric
    metric.add_or_update(3, ["q"], "r9")
    assert printed(capsys) == ("Depth", "Count", "3", "Queue:q", "GAUGE", ",r9")
    metric.update(4, dimensions=[Dimension("Queue", "p")])
    assert printed(capsys) == ("Depth", "Count", "4", "Queue:p", "GAUGE", "")
    with pytest.raises(MetricsCacheValueError):
        metric.add_or_update(3, ["q", "extra"])
    with pytest.raises(MetricsCacheKeyError):
        metrics.get_metric("Depth", MetricTypes.COUNTER)

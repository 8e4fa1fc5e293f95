"""The metrics of handlers in the supervisor."""

import logging
import math

import pytest

from ringserve.server.metrics import custom as bounds
from ringserve.server.metrics.custom import CustomMetrics, LogSeries, valid_label_names, valid_metric_name
from ringserve.server.metrics.exposition import collect, render
from ringserve.server.metrics.listing import Emission, Emitted, ListedMetric, Series

M = (("ModelName", "m"), ("Level", "Model"))
LISTED = {
    name: ListedMetric(name, kind, "ms", ("ModelName", "Level"))
    for name, kind in (("Calls", "counter"), ("Took", "gauge"), ("Sizes", "histogram"))
}


def lines_of(custom: CustomMetrics) -> list[str]:
    """What a scrape has, without comments, and without saying that nothing was dropped."""
    text = render(collect([custom])).decode()
    nothing = 'ringserve_metrics_dropped_total{model_name="m"} 0.0'
    return [line for line in text.splitlines() if not line.startswith("#") and line != nothing]


def emitted(*series: Series) -> Emitted:
    """What a worker says."""
    return Emitted(series)


def counter(name: str, value: float, dimensions: tuple[tuple[str, str], ...] = M) -> Series:
    """One series of a counter."""
    return Series(name, "counter", "Count", dimensions, value)


def test_workers_add_up() -> None:
    """Counters and histograms are sums, gauges are the last value; Hostname is the last label."""
    custom = CustomMetrics(LISTED, "h")
    buckets = [0] * 15
    buckets[3] = 2
    for value in (2.0, 3.0):
        custom.emitted(
            "m",
            emitted(
                counter("Calls", value),
                Series("Took", "gauge", "Milliseconds", M, value),
                Series("Sizes", "histogram", "", M, value, list(buckets)),
            ),
        )
    lines = lines_of(custom)
    labels = 'ModelName="m",Level="Model",Hostname="h",'
    assert f"Calls{{{labels}}} 5.0" in lines
    assert f"Took{{{labels}}} 3.0" in lines
    assert f'Sizes_bucket{{{labels}le="0.05",}} 4.0' in lines
    assert f"Sizes_count{{{labels}}} 4.0" in lines
    assert f"Sizes_sum{{{labels}}} 5.0" in lines


def test_the_unit_is_the_listed_one() -> None:
    """As TorchServe has it in its help text."""
    custom = CustomMetrics(LISTED, "h")
    custom.emitted("m", emitted(counter("Calls", 1)))
    family = next(iter(custom.families()))
    assert family.help == "Torchserve prometheus counter metric with unit: ms"


def test_what_is_not_listed_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """By workers, and by what is printed."""
    custom = CustomMetrics(LISTED, "h")
    with caplog.at_level(logging.INFO):
        custom.emitted("m", Emitted((), unlisted=("Other",)))
        assert custom.printed("m", "[METRICS]Other.Count:5|#A:b|#type:COUNTER|#hostname:H,1")
    assert caplog.text.count("Other") == 1
    assert lines_of(custom) == []


def test_a_printed_line_counts_with_its_own_host() -> None:
    """Any process may print one; what is malformed is not taken."""
    lines: list[object] = []
    custom = CustomMetrics(LISTED, "h", on_lines=lambda series, emissions: lines.append((series, emissions)))
    assert custom.printed("m", "[METRICS]Calls.Count:5|#ModelName:m,Level:Other|#type:COUNTER|#hostname:H,17,a,b")
    assert not custom.printed("m", "[METRICS]Calls.Count:many|#ModelName:m|#type:COUNTER|#hostname:H,17")
    assert not custom.printed("m", "good morning")
    assert lines_of(custom) == ['Calls{ModelName="m",Level="Other",Hostname="H",} 5.0']
    labels = (("ModelName", "m"), ("Level", "Other"))
    assert lines == [([LogSeries("Calls", "ms", labels, "H")], [Emission(0, 5.0, 17, "a,b")])]


def test_what_a_metric_cannot_take_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    """The wrong dimensions, the wrong direction, the wrong kind."""
    custom = CustomMetrics(LISTED, "h")
    assert custom.printed("m", "[METRICS]Calls.Count:5|#ModelName:m|#type:COUNTER|#hostname:H,1")
    assert custom.printed("m", "[METRICS]Calls.Count:-5|#ModelName:m,Level:x|#type:COUNTER|#hostname:H,1")
    custom.emitted("m", emitted(Series("Calls", "gauge", "", M, 1.0)))
    assert lines_of(custom) == ['ringserve_metrics_dropped_total{model_name="m"} 3.0']
    assert "expected the dimensions ['ModelName', 'Level'], got ['ModelName']" in caplog.text
    assert "cannot go down by -5" in caplog.text
    assert "expected a counter, got a gauge" in caplog.text


def test_single_values_go_to_the_log() -> None:
    """With the listed unit, and for which requests."""
    lines: list[object] = []
    custom = CustomMetrics(LISTED, "h", on_lines=lambda series, emissions: lines.append((series, emissions)))
    assert custom.plan.lines
    said = Emitted((counter("Calls", 1, ()), counter("Calls", 3)), (Emission(0, 1, 5, "x"), Emission(1, 3, 6, "a,b")))
    custom.emitted("m", said)
    assert lines == [([None, LogSeries("Calls", "ms", M, "h")], said.lines)]
    assert not CustomMetrics(LISTED, "h").plan.lines


def test_a_metric_of_endless_label_values_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A user's id as a label would fill any memory."""
    monkeypatch.setattr(bounds, "SERIES_MAX", 10)
    custom = CustomMetrics({}, "h", every=True)
    custom.emitted("m", emitted(*(counter("Calls", 1, (("User", f"{n}"),)) for n in range(25))))
    custom.emitted("m", emitted(counter("Calls", 1, (("User", "3"),))))
    lines = lines_of(custom)
    assert len([line for line in lines if line.startswith("Calls{")]) == 10
    assert 'Calls{User="3",Hostname="h",} 2.0' in lines
    assert 'ringserve_metrics_dropped_total{model_name="m"} 15.0' in lines
    assert len(caplog.records) == 1


def test_a_model_of_endless_metrics_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The other models' are not."""
    monkeypatch.setattr(bounds, "METRICS_MAX", 10)
    custom = CustomMetrics({}, "h", every=True)
    custom.emitted("m", emitted(*(counter(f"Calls{n}", 1) for n in range(25))))
    custom.emitted("other", emitted(counter("Own", 1)))
    assert len([line for line in lines_of(custom) if line.startswith("Calls")]) == 10
    assert any(line.startswith("Own") for line in lines_of(custom))
    assert len(caplog.records) == 1


def test_no_handler_can_spoil_the_servers_metrics(caplog: pytest.LogCaptureFixture) -> None:
    """Nor those of another handler."""
    custom = CustomMetrics({}, "h", every=True, reserved={"Requests2XX"})
    custom.emitted(
        "m",
        emitted(
            counter("Requests2XX", 1),
            counter("ringserve_workers", 1),
            Series("Sizes", "histogram", "", M, 1.0, [1] * 15),
            counter("Sizes_sum", 1),
            counter("Calls.a", 1),
            counter("Calls a", 1),
        ),
    )
    names = {line.partition("{")[0] for line in lines_of(custom)}
    assert names == {"Sizes_bucket", "Sizes_sum", "Sizes_count", "Calls_a", "ringserve_metrics_dropped_total"}
    assert 'ringserve_metrics_dropped_total{model_name="m"} 4.0' in lines_of(custom)
    assert "Requests2XX is the name of the server" in caplog.text
    assert "Sizes_sum is the name of metric Sizes" in caplog.text


@pytest.mark.parametrize(
    ("name", "valid"), [("a.b c", "a_b_c"), ("9lives", "_9lives"), ("", "_"), ("größe", "gr__e"), ("a:b", "a:b")]
)
def test_names_are_made_valid(name: str, valid: str) -> None:
    """One bad name would make Prometheus throw away the whole scrape."""
    assert valid_metric_name(name) == valid


def test_label_names_are_made_valid() -> None:
    """Each once, and none that means something to Prometheus."""
    assert valid_label_names(["a.b", "a b", "le", "__name__", "9", "Hostname", ""]) == (
        ("a_b", "_le", "_name__", "_9", "_"),
        (0, 2, 3, 4, 6),
    )


def test_values_that_overflow_are_still_numbers() -> None:
    """A sum may become infinite; Prometheus reads that."""
    custom = CustomMetrics(LISTED, "h")
    for _ in range(2):
        custom.emitted("m", emitted(counter("Calls", 1.7e308)))
    assert lines_of(custom) == ['Calls{ModelName="m",Level="Model",Hostname="h",} +Inf']
    assert math.isinf(next(iter(custom.families())).samples[0].value)

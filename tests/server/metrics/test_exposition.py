"""Metrics as text: TorchServe's habits, Prometheus' grammar."""

import math
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.server.metrics.exposition import collect, render
from ringserve.server.metrics.family import (
    Family,
    Kind,
    Sample,
    family,
    format_value,
    histogram_samples,
    torchserve_family,
)
from tests.server.metrics.prometheus import read, value


class Says:
    def __init__(self, *families: Family) -> None:
        self._families = families

    def families(self) -> Iterable[Family]:
        return self._families


class Fails:
    def families(self) -> Iterable[Family]:
        raise ValueError("no")


def test_torchserves_families_look_as_they_always_have() -> None:
    labels = (("model_name", "m"), ("model_version", "default"), ("hostname", "vm"))
    found = torchserve_family("ts_inference_requests_total", Kind.COUNTER, "Count", [(labels, 3)])
    assert render([found]).decode() == (
        "# HELP ts_inference_requests_total Torchserve prometheus counter metric with unit: Count\n"
        "# TYPE ts_inference_requests_total counter\n"
        'ts_inference_requests_total{model_name="m",model_version="default",hostname="vm",} 3.0\n'
    )


def test_our_own_go_without_the_last_comma() -> None:
    found = family("ringserve_x", Kind.GAUGE, "What it is.", [((("a", "b"),), 1), ((), 2.5)])
    assert render([found]).decode() == (
        '# HELP ringserve_x What it is.\n# TYPE ringserve_x gauge\nringserve_x{a="b"} 1.0\nringserve_x 2.5\n'
    )


def test_a_family_without_samples_is_there_unless_others_are_wanted() -> None:
    found = torchserve_family("QueueTime", Kind.GAUGE, "Milliseconds", [])
    assert render([found]).decode().endswith("# TYPE QueueTime gauge\n")
    assert render([found], {"QueueTime"}) == b""


def test_wanted_names_are_those_of_samples() -> None:
    histogram = Family("h", Kind.HISTOGRAM, "", histogram_samples("h", (), (1, 2), (3, 4, 5), 20))
    other = family("x", Kind.GAUGE, "", [((), 1)])
    assert [name for name, _ in read(render([histogram, other], {"x"}).decode())["x"].samples] == ["x"]
    assert b"h_bucket" not in render([histogram, other], {"h_sum"})
    assert render([histogram, other], {"h"}) == b""


def test_the_buckets_of_a_histogram_add_up() -> None:
    histogram = Family("h", Kind.HISTOGRAM, "", histogram_samples("h", (("a", "b"),), (0.5, 1), (3, 0, 2), 7.25))
    families = read(render([histogram]).decode())
    assert [value(families, "h_bucket", le=le) for le in ("0.5", "1.0", "+Inf")] == [3, 3, 5]
    assert (value(families, "h_count"), value(families, "h_sum")) == (5, 7.25)


@pytest.mark.parametrize(
    ("number", "text"), [(1, "1.0"), (math.inf, "+Inf"), (-math.inf, "-Inf"), (math.nan, "NaN"), (1e300, "1e+300")]
)
def test_numbers_are_those_of_prometheus(number: float, text: str) -> None:
    assert format_value(number) == text


@given(st.text(st.characters(exclude_categories=["Cs"])), st.text(st.characters(exclude_categories=["Cs"])))
def test_label_values_and_helps_come_back_as_they_were(label: str, said: str) -> None:
    found = family("x", Kind.GAUGE, said, [((("a", label),), 1)])
    text = render([found]).decode()
    lines = text.split("\n")
    assert len(lines) == 4
    assert lines[0] == "# HELP x " + said.replace("\\", "\\\\").replace("\n", "\\n")
    if "\r" not in label + said and label.splitlines() in ([], [label]) and said.splitlines() in ([], [said]):
        ((_, pairs),) = read(text)["x"].samples
        assert pairs == {("a", label)}


def test_of_two_who_tell_of_one_family_both_are_heard_and_the_first_of_a_sample_counts() -> None:
    first = family("x", Kind.GAUGE, "One.", [((("a", "1"),), 1)])
    second = family("x", Kind.GAUGE, "Two.", [((("a", "1"),), 5), ((("a", "2"),), 2)])
    (merged,) = collect([Says(first), Says(second)])
    assert merged.help == "One."
    assert merged.samples == [Sample("x", (("a", "1"),), 1), Sample("x", (("a", "2"),), 2)]


def test_what_prometheus_could_not_read_is_left_out_and_the_rest_stays(caplog: pytest.LogCaptureFixture) -> None:
    good = family("x", Kind.GAUGE, "", [((), 1)])
    other_kind = family("x", Kind.COUNTER, "", [((("a", "1"),), 1)])
    bad_name = family("a b", Kind.GAUGE, "", [((), 1)])
    bad_label = family("y", Kind.GAUGE, "", [((("a-b", "1"),), 1)])
    assert collect([Fails(), Says(good, other_kind, bad_name, bad_label)]) == [good]
    assert "Fails has no metrics to offer" in caplog.text
    assert caplog.text.count("is left out") == 3

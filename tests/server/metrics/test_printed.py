"""Lines of a worker's stdout that are metrics."""

import pytest

from ringserve.backends.ts.metrics.wire import metric_line
from ringserve.server.metrics.printed import PrintedMetric, parse


def test_the_line_of_our_own_workers_is_read() -> None:
    """What is written is what is read."""
    line = metric_line("Size of it", "Megabytes", 1.5e-7, [("A", "b"), ("C", "d")], "GAUGE", "r1,r2", now_s=17.9)
    found = parse(line + "  ")
    assert found is not None
    assert found._replace(hostname="h") == PrintedMetric(
        "Size of it", "gauge", "Megabytes", (("A", "b"), ("C", "d")), 1.5e-7, "h", 17, "r1,r2"
    )


@pytest.mark.parametrize(
    ("line", "kind", "dimensions"),
    [
        ("[METRICS]A.B:1|#X:y|#hostname:h,1", "counter", (("X", "y"),)),
        ("[METRICS]A.B:1|#|#type:GAUGE|#hostname:h,1", "gauge", ()),
        ("[METRICS]A.B:1|#type:histogram|#hostname:h,1", "histogram", ()),
        ("[METRICS]A.B:1|#X: y, Z:|#type:COUNTER|#hostname:h,1,r", "counter", (("X", "y"), ("Z", ""))),
    ],
)
def test_what_may_be_left_out(line: str, kind: str, dimensions: tuple[tuple[str, str], ...]) -> None:
    """The type is a counter's unless it is given; there may be no dimensions."""
    found = parse(line)
    assert found is not None
    assert (found.kind, found.dimensions, found.value) == (kind, dimensions, 1.0)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[METRICS]",
        "METRICS A.B:1|#X:y|#hostname:h,1",
        "before [METRICS]A.B:1|#X:y|#hostname:h,1",
        "[METRICS]A.B:inf|#X:y|#type:COUNTER|#hostname:h,1",
        "[METRICS]A.B:1e999|#X:y|#type:COUNTER|#hostname:h,1",
        "[METRICS]A.B:1-2|#X:y|#type:COUNTER|#hostname:h,1",
        "[METRICS]A.B:1|#X:y|#type:METER|#hostname:h,1",
        "[METRICS]A.B:1|#X|#type:COUNTER|#hostname:h,1",
        "[METRICS]A.B:1|#X:y:z|#type:COUNTER|#hostname:h,1",
        "[METRICS]A.B:1|#X:y|#type:COUNTER",
        "[METRICS]A.B:1|#X:y|#type:COUNTER|#hostname:h,now",
        "[METRICS]A.B:1|#X:y|#type:COUNTER|#hostname:h," + "9" * 5000,
    ],
)
def test_anything_else_is_no_metric(line: str) -> None:
    """And stays in the log."""
    assert parse(line) is None


def test_a_long_line_is_refused_in_no_time() -> None:
    """No line may keep the supervisor busy: the pattern has nothing to try twice."""
    assert parse("[METRICS]" + "a b" * 5000) is None
    assert parse("[METRICS]A.B:1|#" + "a:b," * 4000) is None

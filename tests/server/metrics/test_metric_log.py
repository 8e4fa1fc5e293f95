"""The two files of metrics."""

import re
from pathlib import Path

import pytest

from ringserve.server.metrics.catalogue import open_catalogue
from ringserve.server.metrics.custom import LogSeries
from ringserve.server.metrics.family import Family, Kind, family, torchserve_family
from ringserve.server.metrics.listing import Emission
from ringserve.server.metrics.metric_log import MODEL_FILE, SERVER_FILE, MetricLog

HOST = (("Level", "Host"), ("Hostname", "h"))
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3} - (.*),timestamp:(\d+)")


def texts(path: Path) -> list[str]:
    """The lines, without when they were written."""
    matches = [LINE.fullmatch(line) for line in path.read_text().splitlines()]
    assert all(matches)
    return [match[1] for match in matches if match]


def requests(value: float) -> Family:
    """So many responses so far."""
    return torchserve_family("Requests2XX", Kind.COUNTER, "Count", [(HOST, value)])


def queue_time(value: float) -> Family:
    """The last one."""
    return torchserve_family("QueueTime", Kind.GAUGE, "Milliseconds", [(HOST, value)])


def test_a_line_says_what_a_counter_has_gained(tmp_path: Path) -> None:
    """The sum of the lines is the counter. Gauges are said when they change, and the server's own metrics not at all."""
    log = MetricLog(tmp_path, open_catalogue(None), writes=True)
    own = family("ringserve_queue_depth", Kind.GAUGE, "Waiting.", [((), 3)])
    for count, time_ms in ((0, 1.5), (57, 1.5), (57, 1.5), (60, 2)):
        log.changes([requests(count), queue_time(time_ms), own])
    log.changes([queue_time(2)], gauges_always=True)
    log.close()
    assert texts(tmp_path / SERVER_FILE) == [
        "QueueTime.Milliseconds:1.5|#Level:Host|#hostname:h",
        "Requests2XX.Count:57.0|#Level:Host|#hostname:h",
        "Requests2XX.Count:3.0|#Level:Host|#hostname:h",
        "QueueTime.Milliseconds:2.0|#Level:Host|#hostname:h",
        "QueueTime.Milliseconds:2.0|#Level:Host|#hostname:h",
    ]
    assert (tmp_path / MODEL_FILE).read_text() == ""


def test_a_line_for_every_value_of_a_handler(tmp_path: Path) -> None:
    """TorchServe's, with `null` where there is no request; no value can begin a line of its own. What was not taken has none."""
    log = MetricLog(tmp_path, open_catalogue(None), writes=True)
    labels = (("User", "a|b\nc"), ("Level", "Model"))
    series = [LogSeries("Calls", "count", labels, "h"), None, LogSeries("Bad", "", (), "h")]
    log.emissions(series, [Emission(0, 2, 17, "r1,r2"), Emission(1, 5, 17, "r1"), Emission(2, 1.5, 18, "")])
    log.close()
    assert texts(tmp_path / MODEL_FILE) == [
        "Calls.count:2.0|#User:a_b_c,Level:Model|#hostname:h,requestID:r1,r2",
        "Bad.:1.5|#|#hostname:h,requestID:null",
    ]
    assert (tmp_path / SERVER_FILE).read_text() == ""


@pytest.mark.parametrize("there", [True, False])
def test_where_nothing_is_to_be_written_the_files_are_empty(tmp_path: Path, there: bool) -> None:
    """They are there all the same, as TorchServe's are."""
    folder = tmp_path if there else tmp_path / "logs" / "metrics"
    log = MetricLog(folder, open_catalogue(None), writes=False)
    log.changes([requests(5)])
    log.emissions([LogSeries("Calls", "count", (), "h")], [Emission(0, 2, 17, "")])
    log.close()
    assert [(folder / name).read_text() for name in (SERVER_FILE, MODEL_FILE)] == ["", ""]

"""What a worker keeps of its handler's metrics until it tells the supervisor."""

import os
import socket
import threading
from collections.abc import Iterator, Sequence
from select import poll

import pytest

from ringserve.server.channel import Channel
from ringserve.server.control import WorkerMessage
from ringserve.server.metrics import emissions as bounds
from ringserve.server.metrics.emissions import Emissions
from ringserve.server.metrics.listing import Emission, Emitted, ListedMetric, MetricPlan, Series
from ringserve.server.metrics.printed import parse

M = (("ModelName", "m"),)
LISTED = (
    ListedMetric("Calls", "counter", "count", ("ModelName",)),
    ListedMetric("Took", "gauge", "ms", ("ModelName",)),
    ListedMetric("Sizes", "histogram", "MB", ("ModelName",)),
)


@pytest.fixture
def channels() -> Iterator[tuple[Channel, Channel]]:
    """The worker's end and the supervisor's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    yield Channel(ours, WorkerMessage), Channel(theirs, WorkerMessage)
    ours.close()
    theirs.close()


def report(
    emissions: Emissions, name: str, unit: str, kind: str, dimensions: Sequence[tuple[str, str]], value: float, ids: str
) -> None:
    """As a handler's metric does."""
    emissions.recorder(name, unit, kind, dimensions).record(value, ids)


def told(emissions: Emissions, channels: tuple[Channel, Channel]) -> Emitted:
    """What the supervisor hears."""
    emissions.flush(channels[0], at_once=True)
    received = channels[1].receive(wait=False)
    assert received is not None
    assert isinstance(received[0], Emitted)
    return received[0]


def test_values_are_added_up_as_their_kind_is(channels: tuple[Channel, Channel]) -> None:
    """A counter sums, a gauge keeps the last, a histogram counts by size."""
    emissions = Emissions(MetricPlan(LISTED))
    for value in (1, 2.5):
        report(emissions, "Calls", "Count", "COUNTER", M, value, "r")
        report(emissions, "Took", "Milliseconds", "GAUGE", M, value, "r")
        report(emissions, "Sizes", "Megabytes", "HISTOGRAM", M, value, "r")
    said = told(emissions, channels)
    buckets = [0] * 15
    buckets[9] = buckets[10] = 1  # at most 1, at most 2.5
    assert said.series == (
        Series("Calls", "counter", "Count", M, 3.5),
        Series("Took", "gauge", "Milliseconds", M, 2.5),
        Series("Sizes", "histogram", "Megabytes", M, 3.5, buckets),
    )
    assert said.lines == ()
    assert not emissions.pending
    assert emissions.wait_ms() is None


def test_the_listed_kind_counts_not_the_emitted(channels: tuple[Channel, Channel]) -> None:
    """TorchServe's users list what `add_time` emits as a histogram."""
    emissions = Emissions(MetricPlan(LISTED))
    report(emissions, "Sizes", "Milliseconds", "GAUGE", M, 3.0, "")
    report(emissions, "Calls", "Milliseconds", "GAUGE", M, -3.0, "")
    said = told(emissions, channels)
    assert said.series[0].kind == "histogram"
    assert said.dropped_values == 1


def test_single_values_are_told_where_they_are_wanted(channels: tuple[Channel, Channel]) -> None:
    """With their requests and their time, up to a bound."""
    emissions = Emissions(MetricPlan(LISTED, lines=True))
    report(emissions, "Calls", "Count", "COUNTER", M, 1, "a")
    report(emissions, "Took", "Milliseconds", "GAUGE", M, 2, "b,c")
    said = told(emissions, channels)
    assert [(each.series, each.value, each.request_ids) for each in said.lines] == [(0, 1, "a"), (1, 2, "b,c")]
    assert isinstance(said.lines[0], Emission)
    for _ in range(bounds.LINES_MAX + 5):
        report(emissions, "Calls", "Count", "COUNTER", M, 1, "a")
    said = told(emissions, channels)
    assert len(said.lines) == bounds.LINES_MAX
    assert said.dropped_lines == 5
    assert said.series[0].value == bounds.LINES_MAX + 5


def test_what_is_not_listed_is_named_once(channels: tuple[Channel, Channel]) -> None:
    """Unless everything is wanted."""
    emissions = Emissions(MetricPlan(LISTED))
    report(emissions, "Other", "Count", "COUNTER", M, 1, "a")
    said = told(emissions, channels)
    assert said.unlisted == ("Other",)
    assert said.series == ()
    report(emissions, "Other", "Count", "COUNTER", M, 1, "a")
    assert not emissions.pending
    everything = Emissions(MetricPlan(LISTED, every=True))
    report(everything, "Other", "Count", "COUNTER", M, 1, "a")
    assert told(everything, channels).series == (Series("Other", "counter", "Count", M, 1.0),)


def test_endless_dimension_values_take_no_endless_memory(
    channels: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is too much is counted."""
    monkeypatch.setattr(bounds, "SERIES_MAX", 10)
    emissions = Emissions(MetricPlan(LISTED))
    for number in range(25):
        report(emissions, "Calls", "Count", "COUNTER", (("ModelName", f"{number}" * 1000),), 1, "a")
    said = told(emissions, channels)
    assert len(said.series) == 10
    assert said.dropped_values == 15
    assert len(said.series[0].dimensions[0][1]) == bounds.TEXT_CHARS_MAX


def test_what_no_message_can_carry_is_replaced(channels: tuple[Channel, Channel]) -> None:
    """Half a character, as broken JSON may bring it."""
    emissions = Emissions(MetricPlan(LISTED))
    report(emissions, "Calls", "Count", "COUNTER", (("ModelName", "\ud800"),), 1, "a")
    assert told(emissions, channels).series[0].dimensions == (("ModelName", "?"),)


def test_a_supervisor_that_does_not_listen_holds_up_nothing(channels: tuple[Channel, Channel]) -> None:
    """Once it does, it hears everything."""
    emissions, sent = Emissions(MetricPlan(LISTED)), 0
    for _ in range(2000):
        report(emissions, "Calls", "Count", "COUNTER", M, 1, "a")
        emissions.flush(channels[0], at_once=True)
        sent += 1
    assert emissions.pending
    heard = 0.0
    while emissions.pending:
        while (received := channels[1].receive(wait=False)) is not None:
            assert isinstance(received[0], Emitted)
            heard += sum(each.value for each in received[0].series)
        emissions.flush(channels[0], at_once=True)
    while (received := channels[1].receive(wait=False)) is not None:
        assert isinstance(received[0], Emitted)
        heard += sum(each.value for each in received[0].series)
    assert heard == sent


def test_another_thread_wakes_the_one_that_sends(channels: tuple[Channel, Channel]) -> None:
    """Which may be waiting for requests, for ever."""
    emissions, poller = Emissions(MetricPlan(LISTED)), poll()
    poller.register(emissions.wake_fd)
    report(emissions, "Calls", "Count", "COUNTER", M, 1, "a")
    told(emissions, channels)
    assert not [fd for fd, event in poller.poll(0) if event & 1]
    thread = threading.Thread(target=report, args=(emissions, "Calls", "Count", "COUNTER", M, 1, "a"))
    thread.start()
    thread.join()
    assert [fd for fd, event in poller.poll(0) if event & 1] == [emissions.wake_fd]
    emissions.woken()
    assert not [fd for fd, event in poller.poll(0) if event & 1]
    assert told(emissions, channels).series[0].value == 1


def test_a_supervisor_that_is_gone_is_told_nothing(channels: tuple[Channel, Channel]) -> None:
    """And the worker goes on."""
    emissions = Emissions(MetricPlan(LISTED))
    channels[1].close()
    report(emissions, "Calls", "Count", "COUNTER", M, 1, "a")
    emissions.flush(channels[0], at_once=True)
    assert not emissions.pending


def test_a_process_that_the_model_forked_prints(capfd: pytest.CaptureFixture[str]) -> None:
    """It has no way to the supervisor but its standard output, which is read there."""
    emissions = Emissions(MetricPlan(LISTED))
    recorder = emissions.recorder("Calls", "Count", "COUNTER", M)
    pid = os.fork()
    if not pid:
        recorder.record(3, "r")
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    found = parse(capfd.readouterr().out)
    assert found is not None
    assert (found.name, found.kind, found.value, found.dimensions, found.request_ids) == ("Calls", "counter", 3, M, "r")
    assert not emissions.pending

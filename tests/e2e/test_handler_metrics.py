"""What handlers emit, from `context.metrics` to `/metrics` and the log of metrics."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until

METRICS = """
dimensions:
  - &model "ModelName"
  - &level "Level"
ts_metrics:
  counter:
    - {name: Requests2XX, unit: Count, dimensions: [*level, Hostname]}
  gauge:
    - {name: MemoryUsed, unit: Megabytes, dimensions: [*level, Hostname]}
model_metrics:
  counter:
    - {name: Calls, unit: count, dimensions: [*model, *level]}
    - {name: Starts, unit: count, dimensions: [*model, *level]}
    - {name: Users, unit: count, dimensions: [User, *model, *level]}
  gauge:
    - {name: Depth, unit: things, dimensions: [*model, *level]}
    - {name: PredictionTime, unit: ms, dimensions: [*model, *level]}
  histogram:
    - {name: Sizes, unit: things, dimensions: [*model, *level]}
"""
LABELS = r'ModelName="emitter",Level="Model",Hostname="[^"]+",'
LINE = re.compile(
    r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d,\d{3} - (?P<name>\w+)\.(?P<unit>\w+):(?P<value>[-0-9.e]+)"
    r"\|#(?P<dimensions>[^|]*)\|#hostname:[^,]+,(?:requestID:(?P<ids>[^|]*),)?timestamp:\d+"
)


@pytest.fixture(scope="module")
def server(archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """One model with two workers, which emits what it is told to."""
    folder = tmp_path_factory.mktemp("handler-metrics")
    (folder / "metrics.yaml").write_text(METRICS)
    archive(folder / "store", "emitter", "emitter.py:handle", config="batchSize: 1\n")
    config = {
        "default_workers_per_model": 2,
        "metrics_config": folder / "metrics.yaml",
        "metric_time_interval": 1,
    }
    server = ServerProcess(folder / "store", models=("emitter=emitter.mar",), config=config, folder=folder / "server")
    with server:
        wait_until(lambda: values(server, "Starts") == 2.0, 60, f"two workers\n{server.log}")
        yield server
    assert server.wait(1) == 0, server.log
    assert server.remains() == []


def scraped(server: ServerProcess) -> str:
    """The text of all metrics."""
    answer = httpx.get(f"{server.metrics_url}/metrics", trust_env=False)
    assert answer.status_code == 200
    return answer.text


def values(server: ServerProcess, name: str, labels: str = LABELS) -> float:
    """The sum of the samples of that name."""
    found = re.findall(rf"^{name}\{{{labels}\}} (\S+)$", scraped(server), re.MULTILINE)
    return sum(map(float, found))


def ask(server: ServerProcess, text: str) -> int:
    """The process that did as it was told."""
    answer = httpx.post(f"{server.inference_url}/predictions/emitter", content=text.encode(), trust_env=False)
    assert answer.status_code == 200, answer.text
    return int(answer.text)


def logged(server: ServerProcess, file: str) -> list[re.Match[str]]:
    """The lines of one of the files, each of which is well formed."""
    lines = (server.folder / "logs" / file).read_text().splitlines()
    matches = [LINE.fullmatch(line) for line in lines]
    assert [line for line, match in zip(lines, matches, strict=True) if match is None] == []
    return [match for match in matches if match is not None]


def test_sums_over_workers_are_what_was_emitted_also_when_one_is_killed(server: ServerProcess) -> None:
    """Counters and histograms add up, a gauge has the last value, and nothing is forgotten with a process."""
    processes: set[int] = set()
    for number in range(1, 41):
        processes.add(ask(server, f"counter Calls {number}\nhistogram Sizes {number / 10}\ngauge Depth {number}"))
    wait_until(lambda: values(server, "Calls") == 820.0, 10, "the sum of all calls")
    os.kill(max(processes), signal.SIGKILL)
    wait_until(lambda: values(server, "Starts") == 3.0, 30, "a worker in its place")
    ask(server, "counter Calls 1")
    wait_until(lambda: values(server, "Calls") == 821.0, 10, "the sum of all calls")
    assert values(server, "Sizes_count") == 40.0
    assert values(server, "Sizes_sum") == pytest.approx(82.0)
    assert values(server, "Sizes_bucket", LABELS + 'le="1.0",') == 10.0
    assert values(server, "Depth") == 40.0
    assert values(server, "PredictionTime") > 0


def test_every_value_of_a_handler_is_a_line_of_the_log(server: ServerProcess) -> None:
    """With TorchServe's fields, and the request that it belongs to."""
    ask(server, "counter Calls 0.25")
    wait_until(lambda: "Calls.count:0.25|" in (server.folder / "logs/model_metrics.log").read_text(), 10, "a line")
    lines = [
        each for each in logged(server, "model_metrics.log") if each["value"] == "0.25" and each["name"] == "Calls"
    ]
    (line,) = lines
    assert line["dimensions"] == "ModelName:emitter,Level:Model"
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f-]{27}", line["ids"])


def test_the_servers_own_counters_are_lines_as_well(server: ServerProcess) -> None:
    """What the lines add up to is what `/metrics` says."""

    def summed() -> float:
        lines = logged(server, "ts_metrics.log")
        return sum(float(each["value"]) for each in lines if each["name"] == "Requests2XX")

    ask(server, "counter Calls 0")
    count = re.compile(r"^Requests2XX\{.*\} (\S+)$", re.MULTILINE)
    # Every look at the metrics is a response too.
    wait_until(lambda: 0 < summed() <= float(count.findall(scraped(server))[0]), 10, "lines for the requests")
    assert {each["name"] for each in logged(server, "ts_metrics.log")} == {"Requests2XX", "MemoryUsed"}
    assert "CPUUtilization" not in scraped(server)


def test_printed_lines_are_metrics_too(server: ServerProcess) -> None:
    """And no lines of the log, unless they are malformed."""
    good = "[METRICS]Calls.Count:1000|#ModelName:emitter,Level:Printed|#type:COUNTER|#hostname:elsewhere,17,r"
    ask(server, f"print {good}\nprint [METRICS]Calls.Count:many more|#ModelName:emitter")
    labels = 'ModelName="emitter",Level="Printed",Hostname="elsewhere",'
    wait_until(lambda: values(server, "Calls", labels) == 1000.0, 10, "what was printed")
    server.wait_for_log("many more")
    assert "Level:Printed" not in server.log


def test_what_a_handler_may_not_do_is_said_and_costs_nobody_else_anything(server: ServerProcess) -> None:
    """Names that are not listed, dimensions that do not fit, values that are none, and a label of endless values."""
    ask(server, "counter NotListed 1\ncounter Requests2XX 1\nlabel Calls x\ncounter Calls -1\ngauge Depth nan")
    for word in ("metric NotListed of model emitter is not listed", "is not updated: expected a finite number"):
        server.wait_for_log(word)
    ask(server, "\n".join(f"label Users {number}" for number in range(1500)))
    wait_until(lambda: len(re.findall(r"^Users\{", scraped(server), re.MULTILINE)) == 1000, 10, "a bounded metric")
    text = scraped(server)
    dropped = re.findall(r'^ringserve_metrics_dropped_total\{model_name="emitter"\} (\S+)$', text, re.MULTILINE)
    assert float(dropped[0]) >= 500
    assert "NotListed" not in text
    assert text.count("\n# TYPE Requests2XX ") == 1


def test_emissions_of_the_last_moment_are_not_lost(
    archive: Callable[..., Path], start_server: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    """A worker that is stopped tells what it has; here everything is reported, and nothing goes to the files."""
    archive(tmp_path / "store", "emitter", "emitter.py:handle")
    config = {"model_metrics_auto_detect": "true", "metrics_mode": "prometheus", "disable_system_metrics": "true"}
    server = start_server(tmp_path / "store", models=("emitter=emitter.mar",), config=config)
    wait_until(lambda: values(server, "Starts") == 1.0, 30, f"a worker\n{server.log}")
    ask(server, "counter Other 3")
    httpx.put(server.management_url + "/models/emitter", params={"min_worker": 0, "synchronous": True}, trust_env=False)
    assert values(server, "Other") == 3.0
    assert "MemoryUsed{" not in scraped(server)
    assert "HELP Requests2XX" in scraped(server)
    for name in ("model_metrics.log", "ts_metrics.log"):
        assert (server.folder / "logs" / name).read_text() == ""

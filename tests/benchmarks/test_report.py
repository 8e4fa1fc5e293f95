"""From what `wrk` prints, and from rounds, to the figures of the report."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
with pytest.MonkeyPatch.context() as path_patch:  # benchmarks are run from the root; nothing else may import from there
    path_patch.syspath_prepend(ROOT)
    from benchmarks import report, wrk
    from benchmarks.bench import connection_counts
    from benchmarks.contestants import Memory, free_ports
    from benchmarks.loader import Job, Load
    from benchmarks.report import Point, Results

OUTPUT = """\
Running 3s test @ http://127.0.0.1:8080/predictions/mlp
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   680.33us  120.05us   3.10ms   91.23%
    Req/Sec    23.70k     0.52k   24.61k    80.00%
  70000 requests in 3.00s, 12.34MB read
  Non-2xx or 3xx responses: 1000
Requests/sec:  23333.33
Transfer/sec:      4.11MB
load: {"requests": 70000, "duration_us": 3000000, "p50_us": 650, "p99_us": 1480, "bad_status": 1000, "lost": 3}
"""
JOB = Job("127.0.0.1", 8080, "/predictions/mlp", 16, 3, [b"\x00row", b"other"], [[1.0], [2.0]])


def load(rps: float, errors: int = 0) -> Load:
    return Load(requests=int(rps), rps=rps, p50_ms=1.0, p99_ms=2.0, errors=errors)


def results(errors: int = 0) -> Results:
    ours = [load(100.0), load(240.0, errors), load(90.0)]
    point = Point(16, ours, [load(200.0), load(300.0), load(300.0)], 16, [1000.0, 1200.0, 900.0])
    return Results("wrk", 3, [point], Memory(10 << 20, 20 << 20, 200 << 20), (12.0, 40.0))


def test_the_figures_of_wrk_leave_out_what_it_was_refused() -> None:
    assert wrk.parse(OUTPUT) == Load(requests=69_000, rps=23_000.0, p50_ms=0.65, p99_ms=1.48, errors=1003)


def test_wrk_without_figures_shows_what_it_said_instead() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:8080 Connection refused\n")


def test_wrk_is_given_the_first_body_as_it_is(tmp_path: Path) -> None:
    script = wrk.write_script(JOB, tmp_path)
    assert (tmp_path / "body.bin").read_bytes() == b"\x00row"
    assert f'io.open("{tmp_path}/body.bin", "rb")' in script.read_text()
    assert wrk.command(JOB, script)[:4] == ["wrk", "-t1", "-c16", "-d3s"]


def test_ratios_compare_rounds_with_themselves() -> None:
    assert report.ratio([100.0, 240.0, 90.0], [200.0, 300.0, 300.0]) == report.Ratio(0.5, 0.3, 0.8)


def test_the_report_shows_medians_ratios_ceilings_and_memory() -> None:
    text = report.render(results())
    assert "  16       100     1.00     2.00       0   0.50 (0.30..0.80)        0.10 (0.10..0.20)" in text
    assert "  16             300       0           1,000 (batches of 16)" in text
    assert "front end 20 MiB, worker 200 MiB, supervisor 10 MiB" in text
    assert "p50 12.0 µs, p99 40.0 µs" in text


def test_one_error_in_one_round_is_not_averaged_away() -> None:
    assert results().errors == 0
    assert results(errors=1).errors == 1


def test_the_json_report_holds_every_round() -> None:
    written = json.loads(report.to_json(results()))
    assert [one["rps"] for one in written["results"]["points"][0]["ours"]] == [100.0, 240.0, 90.0]
    assert written["ratios"][0]["to_sanic"] == {"median": 0.5, "low": 0.3, "high": 0.8}


def test_points_are_read_from_the_command_line() -> None:
    assert connection_counts("1,16,64") == [1, 16, 64]
    with pytest.raises(ValueError, match="at least one"):
        connection_counts("0")


def test_free_ports_differ() -> None:
    assert len(set(free_ports(3))) == 3

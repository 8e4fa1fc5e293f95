"""From what `wrk` prints, and from rounds, to the figures of the report."""

import json
from argparse import ArgumentTypeError
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
with pytest.MonkeyPatch.context() as path_patch:  # benchmarks are run from the root; nothing else may import from there
    path_patch.syspath_prepend(ROOT)
    from benchmarks import bench, front_ends, large_bodies, overload, report, small_rows, wrk
    from benchmarks.bench import connection_counts, experiment_names
    from benchmarks.contestants import Memory, free_ports
    from benchmarks.loader import Load
    from benchmarks.measuring import Conditions
    from benchmarks.open_loop import OpenLoad
    from benchmarks.peers import compare
    from benchmarks.small_rows import Point, Results

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
CONDITIONS = Conditions("wrk", 3, [16])


def load(rps: float, errors: int = 0) -> Load:
    return Load(requests=int(rps), rps=rps, p50_ms=1.0, p99_ms=2.0, errors=errors)


def open_load(right: int, *, refused: int = 0, expired: int = 0, errors: int = 0) -> OpenLoad:
    statuses = {"200": right, "503": refused, "504": expired}
    return OpenLoad(
        seconds=2.0, offered=right + refused + expired, right=right, refused=refused, expired=expired, errors=errors,
        statuses=statuses, right_p50_ms=30.0, right_p99_ms=80.0, right_max_ms=90.0, refused_p50_ms=0.5, refused_p99_ms=1.5,
        late_p99_ms=1.0,
    )  # fmt: skip


def point(errors: int = 0) -> Point:
    ours = [load(100.0), load(240.0, errors), load(90.0)]
    return Point(16, ours, [load(200.0), load(300.0), load(300.0)], 16, [1000.0, 1200.0, 900.0])


def test_the_figures_of_wrk_leave_out_what_it_was_refused() -> None:
    assert wrk.parse(OUTPUT) == Load(requests=69_000, rps=23_000.0, p50_ms=0.65, p99_ms=1.48, errors=1003)


def test_wrk_without_figures_shows_what_it_said_instead() -> None:
    with pytest.raises(ValueError, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:8080 Connection refused\n")


def test_wrk_is_given_the_body_and_the_headers_as_they_are(tmp_path: Path) -> None:
    script = wrk.write_script(b"\x00row", {"x-say": 'a "word"'}, tmp_path)
    assert (tmp_path / "body.bin").read_bytes() == b"\x00row"
    assert f'io.open("{tmp_path}/body.bin", "rb")' in script.read_text()
    assert 'wrk.headers["x-say"] = "a \\"word\\""' in script.read_text()
    assert wrk.command("http://127.0.0.1:8080/predict", 16, 3, script)[:4] == ["wrk", "-t1", "-c16", "-d3s"]


def test_ratios_compare_rounds_with_themselves() -> None:
    assert report.ratio([100.0, 240.0, 90.0], [200.0, 300.0, 300.0]) == report.Ratio(0.5, 0.3, 0.8)


def test_small_rows_show_medians_ratios_ceilings_and_memory() -> None:
    text = small_rows.render(Results([point()], Memory(10 << 20, 20 << 20, 200 << 20), (12.0, 40.0)))
    assert "  16       100     1.00     2.00       0   0.50 (0.30..0.80)        0.10 (0.10..0.20)" in text
    assert "  16             300       0           1,000 (batches of 16)" in text
    assert "front end 20 MiB, worker 200 MiB, supervisor 10 MiB" in text
    assert "p50 12.0 µs, p99 40.0 µs" in text


def test_large_bodies_show_what_the_straight_way_gains() -> None:
    straight, copied, neither = [load(300.0), load(500.0)], [load(200.0), load(200.0)], [load(100.0), load(100.0)]
    text = large_bodies.render([large_bodies.Point(8, straight, copied, neither)])
    assert "   8  straight        400     1.00     2.00       0" in text
    assert "straight to neither 4.00 (3.00..5.00) (goal 2.5), to copied 2.00 (1.50..2.50)" in text


def test_front_ends_show_the_cpu_of_two_to_that_of_one() -> None:
    one = front_ends.Round(open_load(1000), [0.1], 500)
    two = front_ends.Round(open_load(1000), [0.07, 0.04], 750)
    text = front_ends.render({1: [one], 2: [two]})
    assert "            1            100.0            0.50    30.00    80.00       0   100%" in text
    assert "            2            110.0            0.75    30.00    80.00       0   64% 36%" in text
    assert "two to one: 1.10 (1.10..1.10)" in text


def test_what_is_refused_below_saturation_is_an_error() -> None:
    assert front_ends.errors_of(front_ends.Round(open_load(10, refused=1, expired=2, errors=3), [0.1], 0)) == 6


def test_overload_shows_goodput_to_capacity_and_the_largest_queue() -> None:
    rounds = [overload.Round(load(100.0), open_load(190, refused=400, expired=2), depth) for depth in (90, 100)]
    text = overload.render(rounds)
    assert "goodput to capacity: 0.95 (0.95..0.95)" in text
    assert "largest queue seen 100 (limit 100)" in text
    assert "p50 0.5 ms, p99 1.5 ms" in text
    assert "expired 4; errors 0" in text


def test_a_queue_above_its_size_is_an_error() -> None:
    assert overload.errors_of(overload.Round(load(100.0), open_load(190), overload.QUEUE_MAX + 2)) == 2


def test_a_ratio_to_nothing_is_no_gain() -> None:
    assert report.ratio([5.0], [0.0]).median == 0.0


def test_one_error_in_one_round_is_not_averaged_away() -> None:
    experiment = small_rows.SmallRows(CONDITIONS)
    experiment._points[0] = point(errors=1)
    assert experiment.errors == 1


def test_the_json_report_holds_every_round() -> None:
    experiment = small_rows.SmallRows(CONDITIONS)
    experiment._points[0] = point()
    written = json.loads(bench.to_json({"mlp3k": experiment}, 3, CONDITIONS))
    assert [one["rps"] for one in written["mlp3k"]["results"]["points"][0]["ours"]] == [100.0, 240.0, 90.0]
    assert written["mlp3k"]["ratios"][0]["to_sanic"] == {"median": 0.5, "low": 0.3, "high": 0.8}
    assert written["errors"] == 0


def test_peers_are_compared_with_ours_and_with_the_goals() -> None:
    text = compare.render({("echo602k", 8): {"ringserve": [load(300.0)], "mosec": [load(100.0)]}})
    assert "echo602k c=8     mosec            100     1.00     2.00       0   3.00 (3.00..3.00) (goal 2.0)" in text


def test_a_point_of_the_comparison_is_a_workload_and_a_number_of_connections() -> None:
    assert compare.points("echo602k:8,mlp3k:1") == [("echo602k", 8), ("mlp3k", 1)]
    with pytest.raises(ValueError, match="expected echo602k or mlp3k"):
        compare.points("echo:8")


def test_experiments_are_chosen_by_name_and_measured_in_their_order() -> None:
    assert experiment_names("overload,mlp3k") == ["mlp3k", "overload"]
    with pytest.raises(ArgumentTypeError, match=r"expected some of mlp3k, .*, got speed"):
        experiment_names("speed")


def test_points_are_read_from_the_command_line() -> None:
    assert connection_counts("1,16,64") == [1, 16, 64]
    with pytest.raises(ValueError, match="at least one"):
        connection_counts("0")


def test_free_ports_differ() -> None:
    assert len(set(free_ports(3))) == 3

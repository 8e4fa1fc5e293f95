"""From counters to the protocol's statistics, and to Triton's metrics."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from ringserve.protocol.errors import PredictionFailed
from ringserve.protocol.request import TensorReply
from ringserve.server.control_plane.statistics import cpu_memory, model_statistics
from ringserve.server.device_watch import DeviceWatch
from ringserve.server.devices import Usage
from ringserve.server.metrics.counted_replies import CountedReplies
from ringserve.server.metrics.counts import (
    NO_REQUEST,
    OUTCOME_AT,
    REASON_AT,
    SIZES_MAX,
    VERSION_COUNTS,
    Counts,
    add_size,
    add_up,
    no_counts,
)
from ringserve.server.metrics.exposition import render
from ringserve.server.metrics.meter import Meter, Responses
from ringserve.server.metrics.triton_names import FAILURE_OF, TritonMetrics
from ringserve.server.versions import Versions
from ringserve.shm.ring import Completion

MS = 1_000_000


class Bench:
    """A meter of one version, with batches that were all executed alike: taken up 1 ms after they left, executed from 2 ms to 5 ms,
    heard of 1 ms later."""

    def __init__(self) -> None:
        self.part: Counts = no_counts(VERSION_COUNTS)
        self.meter = Meter(self.part, Responses(), lambda meter: None)

    def batch(self, requests: int, items: int, executions: int = 1, sent_s: float = 1.0) -> Any:
        at = round(sent_s * 1e9)
        done = Completion(0, 0, requests, 0, 0, 0, executions, items, at + MS, at + 2 * MS, at + 5 * MS)
        return self.meter.batch(sent_s, done, at + 6 * MS, requests)

    def described(self, *, decoupled: bool = False) -> dict[str, Any]:
        self.meter.fold()
        return model_statistics("m", "1", self.part, [cpu_memory(77)], decoupled=decoupled)


def test_durations_add_up_over_the_successful_requests() -> None:
    bench = Bench()
    times = bench.batch(2, 8)
    for _ in range(2):
        bench.meter.ended(times, 0.9, 0.95, 1.010, named=False)
    found = bench.described()
    assert (found["inference_count"], found["execution_count"]) == (8, 1)
    stats = found["inference_stats"]
    assert stats["success"] == {"count": 2, "ns": 2 * 60 * MS}  # from the end of the body to the end of the answer
    assert stats["queue"] == {"count": 2, "ns": 2 * 51 * MS}
    assert stats["compute_input"] == {"count": 2, "ns": 2 * MS}
    assert stats["compute_infer"] == {"count": 2, "ns": 6 * MS}
    assert stats["compute_output"] == {"count": 2, "ns": 2 * MS}
    assert stats["fail"] == stats["cache_hit"] == stats["cache_miss"] == {"count": 0, "ns": 0}
    assert found["memory_usage"] == [{"type": "CPU", "id": 0, "byte_size": 77}]
    assert found["last_inference"] > 1_600_000_000_000
    assert found["response_stats"] == {}


def test_failures_are_counted_with_how_long_they_took_and_nothing_of_them_is_computed() -> None:
    bench = Bench()
    bench.meter.ended(bench.batch(1, 1), 0.9, 0.95, 1.010, named=False, reason="prediction_failed")
    bench.meter.ended(None, 2.0, 2.0, 2.004, named=False, reason="queue_full")
    bench.meter.failed("cancelled", named=True, took_s=0.006)
    bench.meter.failed("bad_request", named=True, took_s=5.0)  # what is no request is no failure of the model
    stats = bench.described()["inference_stats"]
    assert stats["fail"] == {"count": 3, "ns": 70 * MS}
    assert stats["success"]["count"] == stats["compute_infer"]["count"] == stats["compute_infer"]["ns"] == 0


def test_batches_are_told_apart_by_the_size_of_their_executions() -> None:
    bench = Bench()
    bench.batch(3, 8)
    bench.batch(1, 8, sent_s=2.0)
    bench.batch(5, 5, executions=5, sent_s=3.0)  # a model that does not batch
    assert bench.described()["batch_stats"] == [
        {
            "batch_size": size,
            "compute_input": {"count": count, "ns": batches * MS},
            "compute_infer": {"count": count, "ns": batches * 3 * MS},
            "compute_output": {"count": count, "ns": batches * MS},
        }
        for size, count, batches in ((1, 5, 1), (8, 2, 2))
    ]


def test_of_more_sizes_than_there_are_lines_the_rest_is_still_counted_as_executed() -> None:
    bench = Bench()
    for size in range(1, SIZES_MAX + 10):
        bench.batch(1, size, sent_s=float(size))
    found = bench.described()
    assert len(found["batch_stats"]) == SIZES_MAX - 1
    assert found["execution_count"] == SIZES_MAX + 9
    assert int(bench.part["size"][0, 1]) == 10


def test_a_clock_that_does_not_agree_makes_no_time_negative() -> None:
    bench = Bench()
    done = Completion(0, 0, 1, 0, 0, 0, 1, 1, 9_000_000_000, 500, 700)  # taken up long after it was executed
    times = bench.meter.batch(1.0, done, 2_000_000_000, 1)
    bench.meter.ended(times, 1.0, 1.0, 2.0, named=False)
    found = bench.described()
    stages = [found["inference_stats"][name]["ns"] for name in ("queue", "compute_input", "compute_infer")]
    assert min(stages) >= 0
    assert sum(stages) <= found["inference_stats"]["success"]["ns"] == 1_000 * MS
    assert min(found["batch_stats"][0][name]["ns"] for name in ("compute_input", "compute_infer")) >= 0


def test_front_ends_add_up_by_the_sizes_that_each_has_met() -> None:
    parts = [no_counts(VERSION_COUNTS) for _ in range(2)]
    for part, sizes in zip(parts, ([4, 2], [2, 16]), strict=True):
        for size in sizes:
            add_size(part["size"], size, 1, 10, 20, 30)
    parts[0]["last_ms"], parts[1]["last_ms"] = 7, 5
    total = add_up(parts, VERSION_COUNTS)
    assert [line for line in total["size"].tolist() if line[1]] == [
        [4, 1, 10, 20, 30],
        [2, 2, 20, 40, 60],
        [16, 1, 10, 20, 30],
    ]
    assert total["last_ms"] == 7


class Replies:
    def __init__(self, *said: TensorReply | Exception | None) -> None:
        self._said = list(said)
        self.closed = False

    async def next(self) -> TensorReply | None:
        said = self._said.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    def close(self) -> None:
        self.closed = True


OUTPUT: Any = (SimpleNamespace(),)


@pytest.mark.parametrize(
    ("said", "outcomes"),
    [
        ([TensorReply(OUTPUT, final=False), TensorReply(OUTPUT)], [(0, "success"), (1, "success")]),
        ([TensorReply(OUTPUT, final=False), None], [(0, "success")]),
        ([TensorReply(()), None], [(0, "empty_response")]),
        ([TensorReply(OUTPUT, final=False), PredictionFailed("no")], [(0, "success"), (1, "fail")]),
        ([TensorReply(OUTPUT, final=False)], [(0, "success"), (1, "cancel")]),
        ([], [(0, "cancel")]),
    ],
)
def test_each_answer_of_a_decoupled_model_is_counted_by_its_number(
    said: list[Any], outcomes: list[tuple[int, str]]
) -> None:
    async def play() -> None:
        bench, replies = Bench(), Replies(*said)
        counted = CountedReplies(replies, bench.meter)
        for each in said:
            if isinstance(each, Exception):
                with pytest.raises(PredictionFailed):
                    await counted.next()
            else:
                assert await counted.next() is each
        counted.close()
        assert replies.closed
        found = bench.described(decoupled=True)["response_stats"]
        assert {
            (int(number), name) for number, each in found.items() for name in OUTCOME_AT if each[name]["count"]
        } == {
            *outcomes,
            *((number, "compute_infer") for number, name in outcomes if name != "cancel"),
        }

    asyncio.run(play())


# ---- Triton's metrics


class Pages:
    def __init__(self, counts: Counts) -> None:
        self._counts = counts

    def versions(self) -> dict[tuple[str, str], Counts]:
        return {("m", "1"): self._counts}


def text_of(counts: Counts, usage: Usage | None = None, tags: dict[str, str] | None = None) -> str:
    triton = None if tags is None else SimpleNamespace(metric_tags=tags)
    version = SimpleNamespace(name="m", version="1", unpacked=SimpleNamespace(config=SimpleNamespace(triton=triton)))
    versions = SimpleNamespace(registry=[version], slots=lambda each: [])
    devices = [SimpleNamespace(uuid="GPU-1", memory_bytes_total=1000)] if usage is not None else []
    watch = SimpleNamespace(placer=SimpleNamespace(devices=devices, usage_of=lambda device: usage))
    metrics = TritonMetrics(cast(Any, Pages(counts)), cast(Versions, versions), cast(DeviceWatch, watch))
    return render(metrics.families()).decode()


def test_tritons_counters_have_its_names_labels_in_order_and_no_decimals() -> None:
    bench = Bench()
    bench.meter.ended(bench.batch(1, 4), 0.9, 0.95, 1.010, named=False)
    for reason in REASON_AT:
        bench.meter.failed(reason, named=False)
    bench.meter.fold()
    lines = text_of(bench.part).splitlines()
    for line in (
        'nv_inference_request_success{model="m",version="1"} 1',
        'nv_inference_count{model="m",version="1"} 4',
        'nv_inference_exec_count{model="m",version="1"} 1',
        'nv_inference_request_duration_us{model="m",version="1"} 60000',
        'nv_inference_queue_duration_us{model="m",version="1"} 51000',
        'nv_inference_compute_input_duration_us{model="m",version="1"} 1000',
        'nv_inference_compute_infer_duration_us{model="m",version="1"} 3000',
        'nv_inference_compute_output_duration_us{model="m",version="1"} 1000',
        'nv_inference_pending_request_count{model="m",version="1"} 0',
        "# TYPE nv_inference_count counter",
    ):
        assert line in lines
    failures = {line.split('reason="')[1].split('"')[0]: int(line.split()[-1]) for line in lines if "reason=" in line}
    assert set(failures) == {"REJECTED", "CANCELED", "BACKEND", "OTHER"}
    assert sum(failures.values()) == len(REASON_AT) - len(NO_REQUEST)
    assert failures["CANCELED"] == sum(name == "CANCELED" for name in FAILURE_OF.values()) == 2
    assert "_total{" not in text_of(bench.part)
    assert "nv_gpu" not in text_of(bench.part)


def test_a_model_is_told_apart_by_its_tags() -> None:
    lines = text_of(no_counts(VERSION_COUNTS), tags={"team": "a", "Team": "b"}).splitlines()
    assert 'nv_inference_count{_Team="b",_team="a",model="m",version="1"} 0' in lines
    assert 'nv_inference_request_failure{_Team="b",_team="a",model="m",reason="OTHER",version="1"} 0' in lines


def test_a_gpu_tells_what_it_knows() -> None:
    lines = text_of(no_counts(VERSION_COUNTS), Usage(300, 50, None, 70_500, 700_000, None)).splitlines()
    assert 'nv_gpu_utilization{gpu_uuid="GPU-1"} 0.5' in lines
    assert 'nv_gpu_memory_total_bytes{gpu_uuid="GPU-1"} 1000' in lines
    assert 'nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 300' in lines
    assert 'nv_gpu_power_usage{gpu_uuid="GPU-1"} 70.5' in lines
    assert 'nv_gpu_power_limit{gpu_uuid="GPU-1"} 700' in lines
    assert not [line for line in lines if line.startswith("nv_energy_consumption{")]

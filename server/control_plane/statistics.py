"""Statistics of model versions, as the protocol's statistics extension has them (contract section 3.8). Pure: counters come in, JSON
goes out; every number is an integer, times are nanoseconds.

success, fail   requests, from the end of their body to the end of their answer
queue           until a worker took up the batch; the compute stages lie between that and the front end's hearing of it
inference_count items: rows, or what requests have in their batch dimension; execution_count: calls of the model
batch_stats     by the size of executions; sizes for which there was no room any more are left out (metrics/counts.py)
"""

from collections.abc import Iterable
from typing import Any

from ringserve.server.metrics.counts import NO_REQUEST, OUTCOMES, REASON_AT, STAGES, Counts

NO_MODEL = "requested model '{model}' is not available"
NO_VERSION = "requested model version is not available for model '{model}'"
_FAILURES = [at for reason, at in REASON_AT.items() if reason not in NO_REQUEST]
Json = dict[str, Any]


def duration(count: object, ns: object) -> Json:
    """A StatisticDuration."""
    return {"count": _whole(count), "ns": _whole(ns)}


def model_statistics(name: str, version: str, counts: Counts, memory: Iterable[Json], *, decoupled: bool) -> Json:
    """One ModelStatistics; `memory` are MemoryUsages."""
    success = counts["success"]
    stages = {stage: duration(success, ns) for stage, ns in zip(STAGES, counts["stage_ns"], strict=True)}
    return {
        "name": name,
        "version": version,
        "last_inference": _whole(counts["last_ms"]),
        "inference_count": _whole(counts["items"]),
        "execution_count": _whole(counts["executions"]),
        "inference_stats": {
            "success": duration(success, counts["success_ns"]),
            "fail": duration(sum(counts["reason"][at] for at in _FAILURES), counts["fail_ns"]),
            **stages,
            "cache_hit": duration(0, 0),  # there is no cache
            "cache_miss": duration(0, 0),
        },
        "response_stats": _response_stats(counts) if decoupled else {},
        "batch_stats": _batch_stats(counts),
        "memory_usage": list(memory),
    }


def cpu_memory(byte_size: int) -> Json:
    """A MemoryUsage of processes."""
    return {"type": "CPU", "id": 0, "byte_size": byte_size}


def _batch_stats(counts: Counts) -> list[Json]:
    lines = [line for line in counts["size"][1:].tolist() if line[1]]
    return [
        {"batch_size": size, **{stage: duration(executions, ns) for stage, ns in zip(STAGES[1:], times, strict=True)}}
        for size, executions, *times in sorted(lines)
    ]


def _response_stats(counts: Counts) -> Json:
    """By the number of the response, as text."""
    return {
        str(number): {outcome: duration(*pair) for outcome, pair in zip(OUTCOMES, line, strict=True)}
        for number, line in enumerate(counts["response"].tolist())
        if any(count for count, _ in line)
    }


def _whole(value: Any) -> int:
    return int(value)

"""Triton's metrics (contract section 5), beside this server's own, from the same counters: names without `_total`, labels in the order of
the alphabet, whole numbers without decimals. Every counter is there from the moment its version is."""

import asyncio
from collections.abc import Iterable, Iterator, Sequence

import psutil

from ringserve.server.device_watch import DeviceWatch
from ringserve.server.metrics.counts import NO_REQUEST, REASON_AT, STAGES, VERSION_COUNTS, Counts, no_counts
from ringserve.server.metrics.family import Family, Kind, Labels, Sample
from ringserve.server.metrics.pages import CounterPages, Label
from ringserve.server.metrics.system import processor_time
from ringserve.server.versions import Versions

# Which of our reasons are which of Triton's; all others are OTHER.
FAILURES: dict[str, tuple[str, ...]] = {
    "REJECTED": ("queue_full", "queue_timeout", "no_worker", "no_ticket", "sequence_rejected", "deadline_exceeded"),
    "CANCELED": ("cancelled", "broken_off"),
    "BACKEND": ("prediction_failed", "worker_lost", "out_of_resources"),
}
_OURS = {ours: theirs for theirs, each in FAILURES.items() for ours in each}
FAILURE_OF = {reason: _OURS.get(reason, "OTHER") for reason in REASON_AT if reason not in NO_REQUEST}
_MW, _MJ = 1e3, 1e3  # of a watt, of a joule

Tags = dict[Label, dict[str, str]]
Samples = Iterable[tuple[Labels, float]]


class TritonMetrics:
    """Versions are counted as in `pages`; devices are as they were when they were last looked at."""

    def __init__(self, pages: CounterPages, versions: Versions, devices: DeviceWatch) -> None:
        self._pages = pages
        self._versions = versions
        self._devices = devices
        self._busy_s, self._total_s = processor_time()
        self._machine: dict[str, float] = {}

    async def refresh(self) -> None:
        """Measure the machine, before a scrape."""
        self._machine = await asyncio.to_thread(self._measured)

    def _measured(self) -> dict[str, float]:
        busy_s, total_s = processor_time()
        passed_s = total_s - self._total_s
        share = min(max((busy_s - self._busy_s) / passed_s, 0.0), 1.0) if passed_s > 0 else 0.0
        self._busy_s, self._total_s = busy_s, total_s
        memory = psutil.virtual_memory()
        return {"utilization": share, "memory_total_bytes": memory.total, "memory_used_bytes": memory.used}

    def families(self) -> Iterable[Family]:
        counted = self._pages.versions()
        serving = {(each.name, each.version) for each in self._versions.registry}
        for label in serving - counted.keys():
            counted[label] = no_counts(VERSION_COUNTS)
        tags = self._tags()
        in_order = [(_labels(label, tags), counted[label]) for label in sorted(counted)]
        yield from _requests(in_order)
        pending = [(_labels(label, tags), int(counted[label]["waiting"])) for label in sorted(serving)]
        said = "Requests that no worker has taken up."
        yield _family("nv_inference_pending_request_count", Kind.GAUGE, said, pending)
        yield _family(
            "nv_model_load_duration_secs",
            Kind.GAUGE,
            "How long the model took to load, in seconds.",
            self._load_times(tags),
        )
        yield from self._cpu()
        yield from self._gpus()

    def _tags(self) -> Tags:
        """What models want to be told apart by: `metric_tags` of their configuration."""
        found = {}
        for version in self._versions.registry:
            triton = version.unpacked.config.triton
            if triton is not None and triton.metric_tags:
                found[version.name, version.version] = dict(triton.metric_tags)
        return found

    def _load_times(self, tags: Tags) -> Iterator[tuple[Labels, float]]:
        for version in self._versions.registry:
            slots = [slot for slot in self._versions.slots(version) if slot.ready and slot.ready_s]
            if slots:
                newest = max(slots, key=lambda slot: slot.ready_s)
                yield _labels((version.name, version.version), tags), newest.ready_s - newest.began_s

    def _cpu(self) -> Iterator[Family]:
        for name, said in (
            ("utilization", "How busy the machine's processors are, 1 for all of them."),
            ("memory_total_bytes", "The machine's memory, in bytes."),
            ("memory_used_bytes", "What of it is used, in bytes."),
        ):
            samples: Samples = [((), self._machine[name])] if name in self._machine else []
            yield _family(f"nv_cpu_{name}", Kind.GAUGE, said, samples)

    def _gpus(self) -> Iterator[Family]:
        placer = self._devices.placer
        looks = [(device, usage) for device in placer.devices if (usage := placer.usage_of(device)) is not None]
        if not placer.devices:
            return
        for name, kind, said, values in (
            (
                "nv_gpu_utilization",
                Kind.GAUGE,
                "How busy a GPU is, 1 for always.",
                [None if usage.utilization_gpu is None else usage.utilization_gpu / 100 for _, usage in looks],
            ),
            (
                "nv_gpu_memory_total_bytes",
                Kind.GAUGE,
                "A GPU's memory, in bytes.",
                [device.memory_bytes_total for device, _ in looks],
            ),
            (
                "nv_gpu_memory_used_bytes",
                Kind.GAUGE,
                "What of it is used, in bytes.",
                [usage.memory_bytes_used for _, usage in looks],
            ),
            (
                "nv_gpu_power_usage",
                Kind.GAUGE,
                "The power that a GPU takes, in watts.",
                [_of(usage.power_mw, _MW) for _, usage in looks],
            ),
            (
                "nv_gpu_power_limit",
                Kind.GAUGE,
                "The most it may take, in watts.",
                [_of(usage.power_limit_mw, _MW) for _, usage in looks],
            ),
            (
                "nv_energy_consumption",
                Kind.COUNTER,
                "What it has taken since its driver was loaded, in joules.",
                [_of(usage.energy_mj, _MJ) for _, usage in looks],
            ),
        ):
            samples = [
                ((("gpu_uuid", device.uuid),), value)
                for (device, _), value in zip(looks, values, strict=True)
                if value is not None
            ]
            yield _family(name, kind, said, samples)


def _requests(counted: Sequence[tuple[Labels, Counts]]) -> Iterator[Family]:
    """What adds up."""
    for name, field, said in (
        ("nv_inference_request_success", "success", "Requests that succeeded."),
        ("nv_inference_count", "items", "Items that were inferred: a request may have several."),
        (
            "nv_inference_exec_count",
            "executions",
            "Times that the model was called.",
        ),
    ):
        yield _family(name, Kind.COUNTER, said, [(labels, int(counts[field])) for labels, counts in counted])
    failures: list[tuple[Labels, float]] = []
    for labels, counts in counted:
        found = dict.fromkeys(("REJECTED", "CANCELED", "BACKEND", "OTHER"), 0)
        for reason, failure in FAILURE_OF.items():
            found[failure] += int(counts["reason"][REASON_AT[reason]])
        failures += [(tuple(sorted((*labels, ("reason", reason)))), count) for reason, count in found.items()]
    yield _family("nv_inference_request_failure", Kind.COUNTER, "Requests that failed, by the reason.", failures)
    said = "How long requests took in all, in microseconds."
    took = [(labels, (int(counts["success_ns"]) + int(counts["fail_ns"])) // 1000) for labels, counts in counted]
    yield _family("nv_inference_request_duration_us", Kind.COUNTER, said, took)
    for at, stage in enumerate(STAGES):
        said = f"How long the stage {stage} of successful requests took in all, in microseconds."
        samples = [(labels, int(counts["stage_ns"][at]) // 1000) for labels, counts in counted]
        yield _family(f"nv_inference_{stage}_duration_us", Kind.COUNTER, said, samples)


def _family(name: str, kind: Kind, said: str, samples: Samples) -> Family:
    return Family(name, kind, said, [Sample(name, labels, value) for labels, value in samples], whole=True)


def _labels(label: Label, tags: Tags) -> Labels:
    """In the order of the alphabet."""
    more = [(f"_{name}", value) for name, value in tags.get(label, {}).items()]
    return tuple(sorted((("model", label[0]), ("version", label[1]), *more)))


def _of(value: int | None, unit: float) -> float | None:
    return None if value is None else value / unit

"""What the server itself has to say at a scrape: TorchServe's names for it (contract section 3.3), and its own.

Every name is there before the first request. docs/metrics.md says what each one means.
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from ringserve.server.management import Management
from ringserve.server.metrics.counts import (
    BATCH_SIZE_BOUNDS,
    DEFAULT,
    FAILURE_REASONS,
    NAMED,
    PHASE_BOUNDS_S,
    PHASES,
    REASON_AT,
    SHED_REASONS,
    SLAB_STATES,
    VERSION_COUNTS,
    Counts,
    add_up,
    no_counts,
)
from ringserve.server.metrics.family import (
    Family,
    Kind,
    Labels,
    Sample,
    family,
    histogram_samples,
    torchserve_family,
)
from ringserve.server.metrics.meter import Responses
from ringserve.server.metrics.pages import CounterPages, Label
from ringserve.server.worker_slot import WorkerSlot

WORKER_STATES = ("ready", "loading", "waiting", "given_up")


class ServingMetrics:
    """`own` counts the responses of the supervisor's listeners."""

    def __init__(
        self,
        pages: CounterPages,
        management: Management,
        own: Responses,
        *,
        hostname: str,
        server_version: str,
    ) -> None:
        self._pages = pages
        self._management = management
        self._versions = management.versions
        self._own = own
        self._host: Labels = (("Level", "Host"), ("Hostname", hostname))
        self._hostname = hostname
        self._server_version = server_version

    def families(self) -> Iterable[Family]:
        """TorchServe's come first: the log of metrics looks at them often, and no further."""
        serving = {(each.name, each.version) for each in self._versions.registry}
        counted = self._pages.versions()
        for label in sorted(serving - counted.keys()):
            counted[label] = no_counts(VERSION_COUNTS)
        yield from self._responses()
        yield from self._predictions(counted)
        yield from self._last(counted)
        yield from self._workers_load_time()
        yield self._info()
        yield self._connections()
        yield from _requests(counted)
        yield from _now({label: counts for label, counts in counted.items() if label in serving})
        yield from self._workers()
        yield from self._files()

    # ---- TorchServe's

    def _responses(self) -> Iterator[Family]:
        http = self._pages.http()
        for at, name in enumerate(("Requests2XX", "Requests4XX", "Requests5XX")):
            total = int(http["status"][at]) + self._own.counts[at]
            yield torchserve_family(name, Kind.COUNTER, "Count", [(self._host, total)])

    def _predictions(self, counted: dict[Label, Counts]) -> Iterator[Family]:
        for name, unit, field, scale in (
            ("ts_inference_requests_total", "Count", "asked", 1),
            ("ts_inference_latency_microseconds", "Microseconds", "latency_ns", 1000),
            ("ts_queue_latency_microseconds", "Microseconds", "queue_ns", 1000),
        ):
            by_asked: Counter[Label] = Counter()
            for (model, version), counts in counted.items():
                by_asked[model, "default"] += int(counts[field][DEFAULT])
                by_asked[model, version] += int(counts[field][NAMED])
            # As there, from the first request on.
            samples = [(self._asked(label), total / scale) for label, total in sorted(by_asked.items()) if total]
            yield torchserve_family(name, Kind.COUNTER, unit, samples)

    def _asked(self, label: Label) -> Labels:
        return (("model_name", label[0]), ("model_version", label[1]), ("hostname", self._hostname))

    def _last(self, counted: dict[Label, Counts]) -> Iterator[Family]:
        """Of all that was measured, the last."""
        newest = add_up(list(counted.values()), VERSION_COUNTS)
        for name, field in (("QueueTime", "last_queue_ns"), ("WorkerThreadTime", "last_overhead_ns")):
            samples = [(self._host, int(newest[field]) / 1e6)] if newest["last_ns"] else []
            yield torchserve_family(name, Kind.GAUGE, "Milliseconds", samples)

    def _workers_load_time(self) -> Iterator[Family]:
        samples = []
        loads: list[tuple[Labels, float]] = []
        for version in self._versions.registry:
            slots = [slot for slot in self._versions.slots(version) if slot.ready and slot.ready_s]
            for slot in slots:
                labels = (("WorkerName", slot.label), *self._host)
                samples.append((labels, round((slot.ready_s - slot.began_s) * 1000)))
            if slots:
                newest = max(slots, key=lambda slot: slot.ready_s)
                loads.append((_labels((version.name, version.version)), newest.ready_s - newest.began_s))
        yield torchserve_family("WorkerLoadTime", Kind.GAUGE, "Milliseconds", samples)
        said = "How long the worker that loaded last took for it."
        yield family("ringserve_model_load_seconds", Kind.GAUGE, said, loads)

    # ---- the server's own

    def _connections(self) -> Family:
        said = "Connections of clients to the inference address."
        return family("ringserve_connections", Kind.GAUGE, said, [((), int(self._pages.http()["connections"]))])

    def _info(self) -> Family:
        labels = (("version", self._server_version),)
        return family("ringserve_info", Kind.GAUGE, "The running server.", [(labels, 1)])

    def _workers(self) -> Iterator[Family]:
        states: list[tuple[Labels, float]] = []
        for version in self._versions.registry:
            found = Counter(map(_state, self._versions.slots(version)))
            label = _labels((version.name, version.version))
            states += [((*label, ("state", state)), found[state]) for state in WORKER_STATES]
        yield family("ringserve_workers", Kind.GAUGE, "Workers by what they are at.", states)
        deaths = self._versions.worker_deaths
        labels = {(each.name, each.version) for each in self._versions.registry} | deaths.keys()
        restarts = [(_labels(label), deaths[label]) for label in sorted(labels)]
        said = "Worker processes that ended without having been told to, and had to be started again."
        yield family("ringserve_worker_restarts_total", Kind.COUNTER, said, restarts)

    def _files(self) -> Iterator[Family]:
        found = self._management.repository
        accepted, refused = (0, Counter[str]()) if found is None else (found.accepted, found.refused)
        said = "Files of the model repository that are served, each time they are taken."
        yield family("ringserve_repository_files_accepted_total", Kind.COUNTER, said, [((), accepted)])
        said = "Files of the model repository that were refused, each time, by cause."
        causes: list[tuple[Labels, float]] = [((("reason", cause),), count) for cause, count in sorted(refused.items())]
        yield family("ringserve_repository_files_refused_total", Kind.COUNTER, said, causes)


def _labels(label: Label) -> tuple[tuple[str, str], tuple[str, str]]:
    return (("model_name", label[0]), ("model_version", label[1]))


def _requests(counted: dict[Label, Counts]) -> Iterator[Family]:
    """What adds up over all requests."""
    phases: list[Sample] = []
    sizes: list[Sample] = []
    for label, counts in counted.items():
        for at, phase in enumerate(PHASES):
            labels = (*_labels(label), ("phase", phase))
            total_s = int(counts["phase_ns"][at]) / 1e9
            name = "ringserve_request_phase_seconds"
            phases += histogram_samples(name, labels, PHASE_BOUNDS_S, counts["phase"][at].tolist(), total_s)
        rows = int(counts["batch_rows"])
        sizes += histogram_samples(
            "ringserve_batch_size", _labels(label), BATCH_SIZE_BOUNDS, counts["batch_size"].tolist(), rows
        )
    said = "How long executed requests took, by phase; the phase total is the sum of the others."
    yield Family("ringserve_request_phase_seconds", Kind.HISTOGRAM, said, phases)
    yield Family("ringserve_batch_size", Kind.HISTOGRAM, "Requests in an executed batch.", sizes)
    for name, said, reasons in (
        ("shed", "Requests refused for want of room, workers or time.", SHED_REASONS),
        ("failed", "Requests that failed for other reasons.", FAILURE_REASONS),
    ):
        samples = [
            ((*_labels(label), ("reason", reason)), int(counts["reason"][REASON_AT[reason]]))
            for label, counts in counted.items()
            for reason in reasons
        ]
        yield family(f"ringserve_requests_{name}_total", Kind.COUNTER, said, samples)
    said = "Answers of workers that belonged to no request of their batch, and were dropped."
    mismatched = [(_labels(label), int(counts["mismatched"])) for label, counts in counted.items()]
    yield family("ringserve_mismatched_replies_total", Kind.COUNTER, said, mismatched)


def _now(counted: dict[Label, Counts]) -> Iterator[Family]:
    """What is so at the moment, of the versions that can be asked for."""
    depth = [(_labels(label), int(counts["waiting"])) for label, counts in counted.items()]
    yield family("ringserve_queue_depth", Kind.GAUGE, "Requests that no worker has been given.", depth)
    slabs = [
        ((*_labels(label), ("state", state)), int(counts["slabs"][at]))
        for label, counts in counted.items()
        for at, state in enumerate(SLAB_STATES)
    ]
    yield family("ringserve_slabs", Kind.GAUGE, "Slabs of shared memory by what they are used for.", slabs)


def _state(slot: WorkerSlot) -> str:
    if slot.given_up:
        return "given_up"
    if slot.ready:
        return "ready"
    return "loading" if slot.under_way else "waiting"

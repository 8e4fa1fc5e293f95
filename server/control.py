"""What the supervisor and its children say to each other: small frozen messages over a control socket (server/channel.py)."""

import msgspec

from ringserve.protocol.payload import ErrorRecord
from ringserve.protocol.tensor import Signature
from ringserve.server.messages import Message, Word
from ringserve.server.metrics.listing import Emitted, MetricPlan
from ringserve.server.region_messages import DropRegions, RegionRefused, ShareCudaRegion, ShareRegion
from ringserve.server.repository.sections import Sample
from ringserve.server.rpc.messages import ServeGrpc
from ringserve.server.scheduling.rules import Scheduling
from ringserve.server.served_model import ServedModel
from ringserve.server.trace_messages import SetTraces, Traced
from ringserve.shm.layout import LaneShape

# ---- supervisor → front end


class ServeHttp(Message, frozen=True):
    """The first message to a front end, which is number `index`. Descriptors: the listening inference socket and, when there are
    several front ends, the page in which they count their connections. A request's head must be complete within
    the header timeout, its body within the body timeout and what its size adds; a client that reads nothing of its answer for
    the write timeout is cut off. What of `management` and `metrics` is `passed_on` goes to the `admin_socket`, as what only the
    supervisor knows of the Open Inference Protocol does. With `tokens`,
    nobody is let in before `Keys` have come. `cors` are headers of every response. Each response is a line of the file
    `access_log`, where there is one. `server_id` and `extensions` are what the protocol's metadata says of this server; with
    `strict_readiness` it is not ready while any version that is wanted is not."""

    request_bytes_max: int
    server_version: str
    header_timeout_s: int
    body_timeout_s: int
    write_timeout_s: int
    front_ends: int
    index: int = 0
    admin_socket: str = ""
    passed_on: tuple[str, ...] = ()
    tokens: bool = False
    cors: dict[str, str] = msgspec.field(default_factory=dict)
    access_log: str = ""
    log_format: str = "text"
    server_id: str = "ringserve"
    extensions: tuple[str, ...] = ()
    strict_readiness: bool = True


class Credential(msgspec.Struct, frozen=True, array_like=True):
    """A key that opens something, and until when (seconds since 1970, infinity: for ever). Messages get into logs, keys must not."""

    key: str
    until_s: float

    def __repr__(self) -> str:
        return f"Credential(until_s={self.until_s})"


class Keys(Message, frozen=True):
    """Let in who shows one of these from now on, and nobody else; answered with `Applied`. `management` opens what is passed
    on to the supervisor and changes something there, `api` what makes keys; that one is empty where it is not passed on."""

    epoch: int
    inference: tuple[Credential, ...]
    management: tuple[Credential, ...] = ()
    api: tuple[Credential, ...] = ()


class UseCertificate(Message, frozen=True):
    """Speak TLS with this certificate on the connections that begin from now on; the first one comes before the first routes.
    Descriptor: a memory file with the private key and the chain."""


class SequenceRules(msgspec.Struct, frozen=True, array_like=True):
    """How a front end treats sequences: one that has been silent for `idle_ms_max` has ended, `waiting_max` requests of one may
    wait, and these request headers, in lower case, say which one, that it begins and that it ends; the last one of a response
    as well."""

    idle_ms_max: int
    waiting_max: int
    id_header: str = "ts_request_sequence_id"
    start_header: str = "ts_request_sequence_start"
    end_header: str = "ts_request_sequence_end"


class VersionRoute(msgspec.Struct, frozen=True, array_like=True):
    """How a front end treats one model version; `key` is the supervisor's number for it, never reused. `serviceable` is
    false when no worker runs, starts or is about to be restarted. The timeouts are how long a request may wait for a worker,
    and for its answer; 0 is for ever. `settled`: its first workers have all loaded, or one has failed to. `probe_at_ns`: when a
    version that is not serviceable will be tried again (CLOCK_MONOTONIC), 0 where nobody knows. `tickets`: it takes no more requests
    than it has workers. `sequences`: its requests belong together. `scheduling` is there where the model is configured in Triton's words.
    `tensors`: it takes and gives tensors, and is no handler."""

    key: int
    model: str
    version: str
    serviceable: bool
    batch_size: int
    batch_wait_ms: int
    fill: bool
    queue_size: int
    response_timeout_s: int
    queue_timeout_ms: int = 0
    request_timeout_ms: int = 0
    min_workers: int = 0
    ready_workers: int = 0
    settled: bool = True
    probe_at_ns: int = 0
    tickets: bool = False
    sequences: SequenceRules | None = None
    scheduling: Scheduling | None = None
    tensors: bool = False


class ModelRoute(msgspec.Struct, frozen=True, array_like=True):
    """`at_startup`: it was loaded because somebody named it, or it was there, when the server started."""

    default_version: str
    versions: dict[str, VersionRoute]
    at_startup: bool = False


class Routes(Message, frozen=True):
    """Everything that can be asked for, as one immutable table; answered with `Applied`. `healthy` is what /ping says, `started`
    whether all that was asked for at start-up has been loaded or refused. `beside` are versions that are being loaded and
    cannot be asked for yet: their lanes open before they take over. `draining`: the server has been told to stop and still takes
    requests; every answer is the last one of its connection. `not_loaded` are models that could not be loaded by their names, and of
    which nothing is served."""

    epoch: int
    healthy: bool
    models: dict[str, ModelRoute]
    started: bool = True
    beside: tuple[VersionRoute, ...] = ()
    draining: bool = False
    not_loaded: tuple[str, ...] = ()


class ShareQueue(Message, frozen=True):
    """Count what waits for version `key` together with the other front ends, as number `own` of them; comes before the routes
    that tell of the version. Descriptor: the version's queue page."""

    key: int
    own: int


class ShareCounters(Message, frozen=True):
    """Count what there is to count of version `key` as number `own` of the front ends; comes before the routes that tell of the
    version. Key 0: of HTTP. Descriptor: the page of counters."""

    key: int
    own: int


class OpenLane(Message, frozen=True):
    """Descriptor: the lane's segment."""

    key: int
    shape: LaneShape
    signature: Signature
    served: ServedModel = ServedModel()


class AttachWorker(Message, frozen=True):
    """Descriptors: the front end's end of the link."""

    key: int
    worker_id: str


class DetachWorker(Message, frozen=True):
    """Give it no more batches; answered with `Detached` once it has answered what it had."""

    key: int
    worker_id: str


class WorkerGone(Message, frozen=True):
    """The worker's process ended; `status` and `cause` are what the rows it was executing are answered with."""

    key: int
    worker_id: str
    status: int
    cause: str


class CloseLane(Message, frozen=True):
    """The version left the routes; answered with `LaneClosed` once all its requests are answered."""

    key: int


class GrantSequence(Word, frozen=True):
    """A word of `SequencesTold`: a sequence that version `key` was asked for is called `number` from now on and belongs to this worker; "": to none yet, another
    grant will follow. `lives_in`: the version that has the worker, which is another one when that began with the sequence and
    was replaced meanwhile. `token` is that of the question. `slot` is the sequence's place in the batches of its worker."""

    key: int
    sequence_id: str
    token: int
    number: int
    worker_id: str
    lives_in: int
    slot: int = 0


class RefuseSequence(Word, frozen=True):
    """A word of `SequencesTold`: no, and `cause` is the sentence for those who ask for it. `unknown`: there is none of this id, and the
    request must not begin one."""

    key: int
    sequence_id: str
    token: int
    cause: str
    unknown: bool = False


class RevokeSequence(Word, frozen=True):
    """A word of `SequencesTold`: it has ended, so its worker is given nothing more of it; answered with `SequenceLeft`."""

    key: int
    number: int
    cause: str


class SequenceEnded(Word, frozen=True):
    """A word of `SequencesTold`: what `EndSequence` asked for is so in all front ends."""

    key: int
    token: int


SequenceTold = GrantSequence | RefuseSequence | RevokeSequence | SequenceEnded


class SequencesTold(Message, frozen=True):
    """What there is to be said about sequences: in one message, because a crowd of them must not fill the socket."""

    words: tuple[SequenceTold, ...]


class AskQueues(Message, frozen=True):
    """Answered with `Queues`, which tells more of the versions with these keys."""

    token: int
    keys: tuple[int, ...] = ()


class AskCounters(Message, frozen=True):
    """Put everything measured so far into the counters; answered with `Counted`."""

    token: int


class Drain(Message, frozen=True):
    """Stop accepting, answer what is in flight within the deadline, exit. Connections that nobody has used for `unused_s` are
    closed. `emptied`: whoever connects is turned away, so what waits to be accepted is accepted first. `succeeded`: another
    instance accepts instead, so there is nothing that probes need to know."""

    deadline_s: float
    unused_s: float
    emptied: bool = False
    succeeded: bool = False


# ---- front end → supervisor


class FrontEndReady(Message, frozen=True):
    pass


class Applied(Message, frozen=True):
    epoch: int


class Detached(Message, frozen=True):
    key: int
    worker_id: str


class LaneClosed(Message, frozen=True):
    key: int


class WorkerStuck(Message, frozen=True):
    """It exceeded the response timeout, or broke its ring."""

    key: int
    worker_id: str


class AskSequence(Word, frozen=True):
    """A word of `SequencesSaid`: whose worker gets the requests of this sequence? Answered with `GrantSequence` or `RefuseSequence`.
    The front end holds the sequence then, by this `token`, of which a later one is greater. One that does not live begins only with `begins`."""

    key: int
    sequence_id: str
    token: int
    begins: bool = True


class ReleaseSequence(Word, frozen=True):
    """A word of `SequencesSaid`: nothing has come of it here for long, or nothing ever did. As far as this front end is concerned, it
    has ended. It counts as long as the front end holds the sequence by that token, and has not asked again."""

    key: int
    number: int
    token: int


class EndSequence(Word, frozen=True):
    """A word of `SequencesSaid`: its last request is answered, and this front end has left it; answered with `SequenceEnded`. Without a
    `number` it is known by its id, and by the worker that said so."""

    key: int
    token: int
    number: int = 0
    sequence_id: str = ""
    worker_id: str = ""


class SequenceLeft(Word, frozen=True):
    """A word of `SequencesSaid`: this front end gives its worker nothing more of it."""

    key: int
    number: int


SequenceSaid = AskSequence | ReleaseSequence | EndSequence | SequenceLeft


class SequencesSaid(Message, frozen=True):
    """What there is to be said about sequences, in the order in which it came up."""

    words: tuple[SequenceSaid, ...]


class Load(msgspec.Struct, frozen=True, array_like=True):
    """What one version has to do in one front end: requests that no worker has begun with, since when the oldest of them has waited
    (CLOCK_MONOTONIC, 0: none does), and what was answered so far in how much time of workers."""

    waiting: int
    oldest_ns: int
    answered: int
    busy_ns: int


class Queues(Message, frozen=True):
    """Waiting requests by version key, and the load of those versions that were asked for."""

    token: int
    waiting: dict[int, int]
    loads: dict[int, Load] = msgspec.field(default_factory=dict)


class Counted(Message, frozen=True):
    token: int


# ---- supervisor → worker


class LoadModel(Message, frozen=True):
    """The first message to a worker; answered with `Loaded` or `LoadFailed`."""

    model: str
    version: str
    model_dir: str
    backend: str
    handler: str
    manifest: dict[str, object]
    config: dict[str, object]
    signature: Signature
    batch_size: int
    response_bytes_max: int
    decode_input_request: bool
    limit_max_image_pixels: bool
    server_version: str
    device: str = "cpu"
    gpu_id: int | None = None
    warmup: tuple[Sample, ...] = ()
    max_requests: int = 0
    metrics: MetricPlan = MetricPlan()
    stateful: bool = False
    envelope: str = ""


class LinkLane(Message, frozen=True):
    """Serve one more front end. Descriptors: the lane's segment, then the worker's end of the link."""

    shape: LaneShape
    signature: Signature


class AskDescription(Message, frozen=True):
    """What does the model say of itself? Answered with `Description`, between two batches. A model that takes longer than
    `timeout_s` is stuck; 0 is for ever."""

    token: int
    timeout_s: float = 0.0


class StopWorker(Message, frozen=True):
    """Finish what is in the rings and exit."""


# ---- worker → supervisor


class Loaded(Message, frozen=True):
    """`completed` is the configuration in Triton's words, where the model's own code has added to it."""

    signature: Signature
    completed: dict[str, object] | None = None


class AtWork(Message, frozen=True):
    """Sent once, with the first batch it takes: this process is worth replacing at once when it dies."""


class Answered(Message, frozen=True):
    """Sent once, with the first batch it has answered: the model works."""


class Worn(Message, frozen=True):
    """Sent once, when it has executed `max_requests`: a fresh process should replace it."""


class Description(Message, frozen=True):
    """The JSON text of the model's answer, None when it gave none, or why there is none and with which status."""

    token: int
    text: bytes | None
    error: ErrorRecord | None = None
    status: int = 200


class LoadFailed(Message, frozen=True):
    """`out_of_memory` answers with 507 instead of 500."""

    cause: str
    out_of_memory: bool


# ---- supervisor → installer


class BuildEnvironment(Message, frozen=True):
    """The only message to a process that makes a Python environment in `folder`. Descriptor: its lock, which is free again when
    that process and the supervisor are both through."""

    folder: str
    site_dirs: tuple[str, ...]
    requirements: str
    model_dir: str
    own_pip: bool


FrontEndMessage = (
    FrontEndReady
    | Applied
    | Detached
    | LaneClosed
    | WorkerStuck
    | SequencesSaid
    | Queues
    | Counted
    | Traced
    | RegionRefused
)
ToFrontEnd = (
    ServeHttp
    | ServeGrpc
    | Keys
    | UseCertificate
    | Routes
    | ShareQueue
    | ShareCounters
    | OpenLane
    | AttachWorker
    | DetachWorker
    | WorkerGone
    | CloseLane
    | SequencesTold
    | ShareRegion
    | ShareCudaRegion
    | DropRegions
    | SetTraces
    | AskQueues
    | AskCounters
    | Drain
)
ToWorker = LoadModel | LinkLane | AskDescription | StopWorker
WorkerMessage = Loaded | AtWork | Answered | Worn | Emitted | Description | LoadFailed

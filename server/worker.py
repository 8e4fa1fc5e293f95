"""The worker: one process, one model version, one device. It waits, takes a batch, executes (execution.py) and answers.

Run as `python -P -m ringserve.server.worker CONTROL_FD`. The supervisor says over the control socket what to load and which
lanes to serve; the doorbells of the lanes say when there is a batch. When the supervisor dies, the worker finishes what its
front ends still send and exits with the last of them.
"""

import contextlib
import gc
import itertools
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import NoReturn

from ringserve.backends.contract import Backend, LoadedModel
from ringserve.backends.registry import create_backend
from ringserve.backends.ts.metrics.sink import collect_in
from ringserve.protocol.errors import OutOfResources, RingServeError
from ringserve.protocol.tensor import Signature
from ringserve.server.channel import Channel, ControlClosed
from ringserve.server.control import (
    Answered,
    AskDescription,
    AtWork,
    LinkLane,
    Loaded,
    LoadFailed,
    LoadModel,
    StopWorker,
    ToWorker,
    Worn,
)
from ringserve.server.describing import describe
from ringserve.server.execution import RETRY_S_MAX, Execution
from ringserve.server.messages import Message
from ringserve.server.metrics.emissions import Emissions
from ringserve.server.metrics.listing import MetricPlan
from ringserve.server.replies import STATUS_OVERFLOW
from ringserve.server.streaming import Chunks
from ringserve.server.warmup import samples_of, samples_of_tensors, warm_up
from ringserve.shm.faults import reach
from ringserve.shm.lane import Lane
from ringserve.shm.link import WorkerLink
from ringserve.shm.ring import Command, Completion
from ringserve.shm.shm_errors import PeerGone, RingCorrupt

logger = logging.getLogger("ringserve.worker")

# How long a worker whose supervisor died may go on with what it is doing.
CAUSE_CHARS_MAX = 8192  # of why a model did not load
ORPHAN_S_MAX = 30.0
COUNT_MAX = (1 << 32) - 1  # what a completion has room for
# After so many new objects the collector looks for garbage while a model is loaded, when nearly everything that is made stays:
# at Python's own 700 that was an eighth of the time that importing torch takes from the models that are being served.
LOADING_GC_OBJECTS = 10_000


class ServedLane:
    """One front end's lane and this worker's link to it."""

    def __init__(self, lane: Lane, link: WorkerLink) -> None:
        self.lane = lane
        self.link = link
        self.chunks = Chunks(link)
        self.due = 0  # batches the doorbell has counted and nobody has taken yet

    def take(self) -> Command:
        """The next batch. Raises `RingCorrupt` when it lies outside of the lane."""
        command, shape = self.link.commands.take(), self.lane.shape
        if (
            command.slab >= shape.slab_count
            or command.first + command.rows > shape.rows
            or command.out_at + command.out_bytes > shape.bytes_out
        ):
            raise RingCorrupt(f"{command} lies outside of {shape.slab_count} slabs of {shape.rows} rows")
        return command

    def close(self) -> None:
        self.link.close()
        self.lane.close()


class Worker:
    """The loop. `response_bytes_max` is `max_response_size`; after `requests_max` it asks to be replaced (0: never)."""

    def __init__(
        self,
        channel: Channel,
        backend: Backend,
        signature: Signature,
        response_bytes_max: int,
        requests_max: int = 0,
        emissions: Emissions | None = None,
        retry_s_max: float = RETRY_S_MAX,
    ) -> None:
        self._channel = channel
        self._emissions = emissions or Emissions(MetricPlan())
        self._backend = backend
        self._execution = Execution(backend, signature, response_bytes_max, retry_s_max)
        self._lanes: dict[int, ServedLane] = {}  # by the descriptor of their doorbell
        self._poller = select.poll()
        self._at_work = False
        self._answered = False
        self._requests_max = requests_max
        self._rows_left = 0  # until the supervisor is to be told something
        self.orphaned = False
        self._stopping = False

    def serve_forever(self) -> None:
        """Until told to stop, or until nobody is left to serve."""
        control_fd = self._channel.fileno()
        emissions = self._emissions
        self._poller.register(control_fd, select.POLLIN)
        self._poller.register(emissions.wake_fd, select.POLLIN)
        while not (self._stopping or (self.orphaned and not self._lanes)):
            for fd, _ in self._poller.poll(emissions.wait_ms()):
                if fd == control_fd:
                    self._obey()
                elif fd == emissions.wake_fd:
                    emissions.woken()
                else:
                    self._listen(fd)
            self._execute_due()
            emissions.flush(self._channel)
        emissions.flush(self._channel, at_once=True)

    def _obey(self) -> None:
        try:
            received = self._channel.receive(wait=False)
        except ControlClosed:
            self.orphaned = True
            self._poller.unregister(self._channel.fileno())
            return
        if received is None:
            return
        message, fds = received
        if isinstance(message, LinkLane):
            self._attach(message, fds)
        elif isinstance(message, AskDescription):
            self._describe(message)
        elif isinstance(message, StopWorker):
            self._stopping = True

    def _describe(self, ask: AskDescription) -> None:
        links = [served.link for served in self._lanes.values()]
        description = describe(self._backend, ask, links)
        self._tell(description)

    def _attach(self, message: LinkLane, fds: list[int]) -> None:
        served = ServedLane(Lane.attach(fds[0], message.shape), WorkerLink(tuple(fds[1:])))
        served.chunks.on_alive = self._is_at_work
        self._lanes[served.link.listener.fd] = served
        self._poller.register(served.link.listener.fd, select.POLLIN)

    def _listen(self, fd: int) -> None:
        served = self._lanes[fd]
        try:
            served.due += served.link.listener.collect()
        except PeerGone:
            self._drop(fd)

    def _drop(self, fd: int) -> None:
        self._poller.unregister(fd)
        self._lanes.pop(fd).close()

    def _execute_due(self) -> None:
        """One batch of each lane in turn, so that no front end waits behind another's second batch."""
        while any(served.due for served in self._lanes.values()):
            for fd, served in tuple(self._lanes.items()):
                if not served.due or fd not in self._lanes:
                    continue
                served.due -= 1
                try:
                    self._serve_one(served)
                except PeerGone:
                    self._drop(fd)
                if len(self._lanes) > 1:
                    self._hear_the_others()

    def _hear_the_others(self) -> None:
        """Who has rung meanwhile has its turn before another's next batch; the supervisor as well, for several front ends
        can keep a worker from ever being idle."""
        for fd, _ in self._poller.poll(0):
            if fd in self._lanes:
                self._listen(fd)
            elif fd == self._channel.fileno():
                self._obey()

    def _is_at_work(self) -> None:
        """Front ends whose batches wait must not take a worker for stuck that works for another."""
        if len(self._lanes) > 1:
            for served in self._lanes.values():
                served.link.commands.touch()

    def _serve_one(self, served: ServedLane) -> None:
        link = served.link
        if not self._at_work:
            self._at_work = True
            self._tell(AtWork())
        self._is_at_work()
        command = served.take()
        taken_ns = time.monotonic_ns()
        reach("command-taken")
        overflow = self._execution.run(served.lane.slabs[command.slab], command, served.chunks, link.receive_parcel)
        reach("replies-written")
        if overflow is not None:
            try:
                link.send_parcel(overflow)
            finally:
                overflow.close()
        status = STATUS_OVERFLOW if overflow is not None else 0
        execution = self._execution
        done = Completion(
            command.sequence,
            command.slab,
            command.rows,
            status,
            executions=execution.executions,
            items=min(execution.items, COUNT_MAX),
            taken_ns=taken_ns,
            began_ns=execution.began_ns,
            ended_ns=execution.ended_ns,
        )
        pushed = link.completions.try_push(done)
        assert pushed, "the front end may not have more batches outstanding than the ring holds"
        reach("completion-pushed")
        link.bell.ring()
        reach("completion-rung")
        self._emissions.flush(self._channel)
        self._rows_left -= command.rows
        if self._rows_left <= 0:
            self._tell_of_work()

    def _tell_of_work(self) -> None:
        """The first batch is answered, or as many requests as this process is good for."""
        if not self._answered:
            self._answered = True
            self._tell(Answered())
            self._rows_left += self._requests_max or sys.maxsize
        if self._rows_left <= 0:
            self._tell(Worn())
            self._rows_left = sys.maxsize

    def _tell(self, message: Message) -> None:
        with contextlib.suppress(ControlClosed):
            self._channel.send(message)


def _model_of(message: LoadModel) -> LoadedModel:
    return LoadedModel(
        name=message.model,
        version=message.version,
        model_dir=Path(message.model_dir),
        handler=message.handler,
        manifest=message.manifest,
        config=message.config,
        batch_size_max=message.batch_size,
        signature=message.signature,
        decode_input_request=message.decode_input_request,
        limit_max_image_pixels=message.limit_max_image_pixels,
        server_version=message.server_version,
        device=message.device,
        gpu_id=message.gpu_id,
        metrics=tuple((each.kind, each.name, each.unit, each.dimensions) for each in message.metrics.listed),
        envelope=message.envelope,
    )


def _exit_when_orphaned(control_fd: int) -> None:
    """A model that never returns must not outlive its server: the socket's hang-up starts a clock."""
    poller = select.poll()
    poller.register(control_fd, 0)  # hang-up and error are always reported, and nothing else
    poller.poll()
    time.sleep(ORPHAN_S_MAX)
    _end_group()


def _end_group() -> None:
    """The supervisor ends what a model has started when its worker is gone; without one, the worker does."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def _exit_at_once() -> NoReturn:
    """A thread of the model's would keep alive a worker that answers nobody."""
    with contextlib.suppress(Exception):  # whatever the model has made of it
        sys.stdout.flush()
    os._exit(1)


def _load(channel: Channel) -> tuple[Backend, LoadModel, Signature, Emissions]:
    """Do as the first message says. Exits with 1 when the model cannot be loaded, or not warmed up, having said why."""
    received = channel.receive(wait=True)
    assert received is not None
    message, _ = received
    assert isinstance(message, LoadModel)
    emissions = Emissions(message.metrics)
    collect_in(emissions)
    try:
        os.chdir(message.model_dir)
        os.environ["TS_DECODE_INPUT_REQUEST"] = str(
            message.decode_input_request
        ).lower()  # as TorchServe's workers have it
        backend = create_backend(message.backend)
        signature = backend.load(_model_of(message))
        model_dir = Path(message.model_dir)
        samples = samples_of(model_dir, message.warmup, message.config)
        samples = itertools.chain(samples, samples_of_tensors(model_dir, message.config, signature))
        warm_up(backend, signature, message.batch_size, message.response_bytes_max, samples)
    except BaseException as error:
        logger.exception("model %s version %s cannot be loaded", message.model, message.version)
        text = error.message if isinstance(error, RingServeError) else f"{type(error).__name__}: {error}"
        out_of_memory = isinstance(error, MemoryError | OutOfResources) or "CUDA out of memory" in text
        emissions.flush(channel, at_once=True)
        cause = text[:CAUSE_CHARS_MAX].encode("utf-8", "replace").decode()  # a lone surrogate has no other way out
        channel.send(LoadFailed(cause, out_of_memory))
        _exit_at_once()
    return backend, message, signature, emissions


def _leave_signals_to_the_supervisor() -> None:
    """Ctrl-C in a terminal and a service manager's SIGTERM reach every process; ours is to finish what we have."""
    own_pid = os.getpid()

    def on_term(number: int, frame: object) -> None:
        if os.getpid() != own_pid:  # a process that the model forked, and may want to end
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, on_term)


def main() -> None:
    """Entry point of a worker process."""
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    _leave_signals_to_the_supervisor()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), ToWorker)
    threading.Thread(target=_exit_when_orphaned, args=(channel.fileno(),), daemon=True).start()
    with contextlib.suppress(ControlClosed):
        usual = gc.get_threshold()
        gc.set_threshold(LOADING_GC_OBJECTS, *usual[1:])
        backend, message, signature, emissions = _load(channel)
        if gc.get_threshold()[0] == LOADING_GC_OBJECTS:  # unless the model has chosen its own
            gc.set_threshold(*usual)
        # Frameworks and weights stay for good: without this, the collector walks all of them while a batch waits.
        gc.collect()
        gc.freeze()
        channel.send(Loaded(signature, getattr(backend, "completed", None)))
        # A model that keeps the state of a sequence must not be asked for a row twice.
        retry_s_max = 0.0 if message.stateful else RETRY_S_MAX
        response_bytes_max = message.response_bytes_max
        worker = Worker(channel, backend, signature, response_bytes_max, message.max_requests, emissions, retry_s_max)
        try:
            worker.serve_forever()
        except Exception:
            logger.exception("the lanes cannot be served any longer")
            _exit_at_once()
        backend.close()
        if worker.orphaned:
            _end_group()


if __name__ == "__main__":
    main()

"""A pool whose processes do what the test says, on a clock that passes by itself."""

import asyncio
import selectors
import signal
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from ringserve.protocol.errors import OutOfResources
from ringserve.protocol.tensor import Signature
from ringserve.server.control import Answered, AtWork, Loaded, LoadFailed, LoadModel, StopWorker
from ringserve.server.lifecycle import Event, State, after
from ringserve.server.messages import Message
from ringserve.server.placement import CPU, Place
from ringserve.server.pool import PoolHooks, WorkerPool
from ringserve.server.registry import ModelVersion, ServingOptions
from ringserve.server.repository.manifest import Manifest
from ringserve.server.repository.model_config import parse_model_config
from ringserve.server.repository.store import UnpackedModel
from ringserve.server.worker_slot import WorkerSlot

SIGNATURE = Signature()


class Patient(selectors.SelectSelector):
    """Waits for nothing: the time that a loop would wait passes at once."""

    passed_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "nothing will ever happen"
        self.passed_s += timeout
        return super().select(0)


class Process:
    """A worker as its pool sees it. `plan` says what the next ones do when they are started; without one they wait to be told."""

    all: ClassVar[list["Process"]] = []
    refused: ClassVar[int] = 0  # so many starts the system refuses next
    plan: ClassVar[deque[Callable[["Process"], object]]] = deque()

    def __init__(self, label: str, receives: object, *more: object) -> None:
        self.label = label
        self.pid = 100 + len(self.all)
        self.state = State.STARTING
        self.exit_code: int | None = None
        self.exited = asyncio.Event()
        self.started_s = 0.0
        self.tail: deque[str] = deque()
        self.sent: list[Message] = []

    def start(
        self,
        module: str,
        env: object,
        on_message: Callable[[object, list[int]], None],
        on_exit: Callable[[], None],
        python: str,
    ) -> None:
        if Process.refused:
            Process.refused -= 1
            raise BlockingIOError("Resource temporarily unavailable")
        self._on_message, self._on_exit = on_message, on_exit
        self.began_s = asyncio.get_running_loop().time()
        self.all.append(self)
        if self.plan:
            asyncio.get_running_loop().call_soon(self.plan.popleft(), self)

    def send(self, message: Message) -> None:
        self.sent.append(message)
        if isinstance(message, StopWorker):
            asyncio.get_running_loop().call_soon(self.end, 0)

    def say(self, message: Message) -> None:
        self._on_message(message, [])

    def load(self) -> "Process":
        self.say(Loaded(SIGNATURE))
        return self

    def answer(self) -> "Process":
        self.say(AtWork())
        self.say(Answered())
        return self

    def end(self, code: int) -> None:
        if self.exit_code is None:
            self.exit_code = code
            self.saw(Event.EXITED)
            self.exited.set()
            self._on_exit()

    def saw(self, event: Event) -> None:
        self.state = after(self.state, event)

    def kill(self) -> None:
        if self.exit_code is None:
            self.saw(Event.STOP_ASKED)
            asyncio.get_running_loop().call_soon(self.end, -signal.SIGKILL)

    async def stopped(self, grace_s: float) -> bool:
        await self.exited.wait()
        return True

    def how_it_ended(self) -> str:
        return f"ended with {self.exit_code}"


class Rig:
    """A pool and what it has told."""

    def __init__(self, *, workers: int = 1, config: str = "") -> None:
        raw: dict[str, Any] = {"maxRetryTimeoutInSec": 0} if config == "no restart" else {}
        manifest = Manifest(raw={}, model_name="m", model_version="1.0", handler="h")
        unpacked = UnpackedModel(manifest, parse_model_config(raw), Path("/"), temporary=False)
        options = ServingOptions(1, 0, 100, 120, 60, "h", loaded_at_startup=False)
        self.version = ModelVersion(1, "m", "1.0", "m.mar", unpacked, options, workers, workers)
        self.places_left = 1000
        self.placed: list[Place] = []
        self.detached: list[str] = []
        self.lost: list[str] = []
        self.may_detach = asyncio.Event()
        self.may_detach.set()
        self.next_id = 0
        load = LoadModel("m", "1.0", "/", "handler", "h", {}, {}, SIGNATURE, 1, 1, True, True, "0", max_requests=9)
        self.changes = 0
        hooks = PoolHooks(
            lambda slot, signature: None,
            lambda slot, status, cause: self.lost.append(slot.worker_id),
            self._detach,
            self._place,
            self.placed.remove,
            self._changed,
            self._id,
        )
        self.pool = WorkerPool(self.version, load, hooks)

    async def _detach(self, slot: WorkerSlot) -> None:
        self.detached.append(slot.worker_id)
        await self.may_detach.wait()

    def _place(self, instead_of: Place = CPU) -> Place:
        if not self.places_left:
            raise OutOfResources("No device.")
        self.places_left -= 1
        self.placed.append(CPU)
        return CPU

    def _changed(self) -> None:
        self.changes += 1

    def _id(self) -> str:
        self.next_id += 1
        return str(self.next_id)

    @property
    def ids(self) -> list[str]:
        return [slot.worker_id for slot in self.pool.slots]

    @property
    def running(self) -> list[Process]:
        return [each for each in Process.all if each.exit_code is None]

    async def end(self) -> None:
        await self.pool.shrink(0)
        assert self.running == []
        assert self.placed == []
        assert self.pool.slots == []
        assert not self.pool.draining


Scenario = Callable[[Rig], Awaitable[None]]


def play(scenario: Scenario, **options: Any) -> None:
    """Run a scenario on a pool of its own; afterwards nothing of it may be left."""
    patience = Patient()
    loop = asyncio.SelectorEventLoop(patience)
    clock = SimpleNamespace(monotonic=lambda: patience.passed_s, time=lambda: patience.passed_s)
    raised: list[Any] = []
    Process.all.clear()
    Process.plan.clear()
    Process.refused = 0

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context))
        rig = Rig(**options)
        await scenario(rig)
        await rig.end()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "time", clock.monotonic)
        for module in ("pool", "worker_slot"):
            patch.setattr(f"ringserve.server.{module}.time", clock)
        patch.setattr("ringserve.server.pool.Child", Process)
        patch.setattr("ringserve.server.pool.random", SimpleNamespace(random=lambda: 0.5))
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(main())
    assert raised == []


def fail(process: Process) -> None:
    """A plan: the model cannot be loaded."""
    process.say(LoadFailed("no weights", False))
    process.end(1)


def begins(since_s: float = 0.0) -> list[float]:
    return [round(each.began_s - since_s, 2) for each in Process.all]

"""`MicroBatching`: the steps of a handler run at the same time, each in threads of its own, on parts of one batch.

    batch ─▶ [part 0][part 1]... ─▶ preprocess ─▶ inference ─▶ postprocess ─▶ answers in the order of the batch

A handler made from `BaseHandler` puts one in the place of its own `handle`: `self.handle = MicroBatching(self, 8)`.
"""

import os
import threading
import time
from queue import SimpleQueue
from typing import Any, NamedTuple

HANDLER_METHODS = ["preprocess", "inference", "postprocess"]


class _Part(NamedTuple):
    """A part of a batch on its way through the steps; `finished` takes its number with what became of it."""

    number: int
    rows: Any
    finished: "SimpleQueue[tuple[int, Any, BaseException | None]]"


class _Step:
    """One step and its threads. What is put into `todo` is taken by one of them; None ends the one that takes it."""

    def __init__(self, owner: "MicroBatching", name: str, following: "_Step | None") -> None:
        self.todo: SimpleQueue[_Part | None] = SimpleQueue()
        self.threads: list[threading.Thread] = []
        self._owner = owner
        self._name = name
        self._following = following
        self._ended: SimpleQueue[threading.Thread] = SimpleQueue()

    def resize(self, count: int) -> None:
        """Have `count` threads; those that are too many finish what they do first."""
        while len(self.threads) < count:
            # As daemons, they keep no worker alive whose handler forgets to shut them down.
            thread = threading.Thread(target=self._run, name=f"micro-batching-{self._name}", daemon=True)
            thread.start()
            self.threads.append(thread)
        while len(self.threads) > count:
            self.todo.put(None)
            thread = self._ended.get()
            thread.join()
            self.threads.remove(thread)

    def _run(self) -> None:
        while (part := self.todo.get()) is not None:
            self._take(part)
        self._ended.put(threading.current_thread())

    def _take(self, part: _Part) -> None:
        self._owner.thread_local_data.micro_batch_idx = part.number
        try:
            rows = getattr(self._owner.handler, self._name)(part.rows)
        except BaseException as error:  # noqa: BLE001 - raised again where the batch waits
            part.finished.put((part.number, None, error))
            return
        if self._following is None:
            part.finished.put((part.number, rows, None))
        else:
            self._following.todo.put(_Part(part.number, rows, part.finished))


class MicroBatching:
    """Runs `preprocess`, `inference` and `postprocess` of a handler on parts of `micro_batch_size` rows.

    `parallelism` is the number of threads of each step by its name, 1 for those that are not named. Unlike TorchServe's, an
    exception in a step is raised where the batch is answered, instead of leaving the batch waiting for ever.
    """

    def __init__(
        self, parent_handler: Any, micro_batch_size: int = 1, parallelism: dict[str, int] | None = None
    ) -> None:
        if micro_batch_size < 1:
            raise ValueError(f"micro_batch_size: expected 1 or more, got {micro_batch_size}")
        self.handler = parent_handler
        self.micro_batch_size = micro_batch_size
        self.thread_local_data = threading.local()
        self._parallelism: dict[str, int] = {}
        self._steps: dict[str, _Step] = {}
        following = None
        for name in reversed(HANDLER_METHODS):
            following = self._steps[name] = _Step(self, name, following)
        self.parallelism = parallelism or {}

    @property
    def parallelism(self) -> dict[str, int]:
        """Threads by step, of the steps that were named. To set it changes those that are named, also between two batches."""
        return dict(self._parallelism)

    @parallelism.setter
    def parallelism(self, parallelism: dict[str, int]) -> None:
        for name, count in parallelism.items():
            if name not in HANDLER_METHODS or count < 0:
                raise ValueError(
                    f"parallelism: expected numbers of threads for {', '.join(HANDLER_METHODS)}, got {name}: {count}"
                )
        self._parallelism.update(parallelism)
        for name, step in self._steps.items():
            step.resize(self._parallelism.get(name, 1))

    @property
    def thread_groups(self) -> dict[str, list[threading.Thread]]:
        """The threads of each step."""
        return {name: list(self._steps[name].threads) for name in HANDLER_METHODS}

    def shutdown(self) -> None:
        """End all threads, once they have finished what they do."""
        for name in HANDLER_METHODS:
            self._steps[name].resize(0)

    def handle(self, data: Any) -> list[Any]:
        """The answers to the rows of `data`, in their order. Raises what a step raises, the first part's if several do, and
        RuntimeError when a step has no threads."""
        idle = [name for name in HANDLER_METHODS if not self._steps[name].threads]
        if idle:
            raise RuntimeError(
                f"MicroBatching has no thread for {', '.join(idle)}: it was shut down, or parallelism is 0."
            )
        finished: SimpleQueue[tuple[int, Any, BaseException | None]] = SimpleQueue()
        starts = range(0, len(data), self.micro_batch_size)
        for number, start in enumerate(starts):
            self._steps[HANDLER_METHODS[0]].todo.put(
                _Part(number, data[start : start + self.micro_batch_size], finished)
            )
        outcomes = sorted((finished.get() for _ in starts), key=lambda outcome: outcome[0])
        for _, _, error in outcomes:
            if error is not None:
                raise error
        return [row for _, rows, _ in outcomes for row in rows]

    def get_micro_batch_idx(self) -> int | None:
        """Within a step, the number of the part it works on; None elsewhere."""
        return getattr(self.thread_local_data, "micro_batch_idx", None)

    def __call__(self, data: Any, context: Any) -> Any:
        """Answer one batch, as `BaseHandler.handle` does."""
        began_s = time.perf_counter()
        handler = self.handler
        handler.context = context
        if handler._is_describe():
            output = [handler.describe_handle()]
        elif os.environ.get("ENABLE_TORCH_PROFILER"):
            output, _ = handler._infer_with_profiler(data)
        elif handler._is_explain():
            output = handler.explain_handle(handler.preprocess(data), data)
        else:
            output = self.handle(data)
        if context.metrics is not None:  # as in the unit test of a handler
            context.metrics.add_time("HandlerTime", round((time.perf_counter() - began_s) * 1000, 2), None, "ms")
        return output

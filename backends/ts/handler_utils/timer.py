"""`timed`: how long a step of a handler takes, as a metric, when the model's configuration asks for it."""

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

Result = TypeVar("Result")


def timed(func: Callable[..., Result]) -> Callable[..., Result]:
    """Emit `ts_handler_<method>` in ms around a handler's method if model-config.yaml says `handler: {profile: true}`.

    On a CUDA device the time is the device's, between two events: the host would only see how long queueing takes.
    """

    @functools.wraps(func)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Result:
        context = getattr(self, "context", None)
        if context is None or not _wants_profile(context.model_yaml_config):
            return func(self, *args, **kwargs)
        clock = _CudaClock() if getattr(getattr(self, "device", None), "type", "") == "cuda" else _HostClock()
        result = func(self, *args, **kwargs)
        context.metrics.add_time(f"ts_handler_{func.__name__}", clock.elapsed_ms())
        return result

    return wrapper


def _wants_profile(config: dict[str, Any]) -> bool:
    section = config.get("handler")
    return isinstance(section, dict) and bool(section.get("profile"))


class _HostClock:
    def __init__(self) -> None:
        self._start_ns = time.perf_counter_ns()

    def elapsed_ms(self) -> float:
        return (time.perf_counter_ns() - self._start_ns) / 1e6


class _CudaClock:
    def __init__(self) -> None:
        import torch  # a handler on a CUDA device has imported it

        event: Any = torch.cuda.Event
        self._start, self._end = event(enable_timing=True), event(enable_timing=True)
        self._start.record()

    def elapsed_ms(self) -> float:
        self._end.record()
        self._end.synchronize()
        elapsed: float = self._start.elapsed_time(self._end)
        return elapsed

"""Pipelines over several processes by PiPPy. They need one worker of several processes, which this version does not have; the
functions say so where TorchServe's would start."""

from typing import Any, NoReturn

from ringserve.backends.ts.context import Context

SENTENCE = "{} divides a model over several processes with PiPPy (parallelType pp), and this version runs a worker as one process."


def initialize_rpc_workers(local_rank: int, world_size: int, ctx: Context) -> NoReturn:
    """Raises RuntimeError."""
    raise RuntimeError(SENTENCE.format("initialize_rpc_workers"))


def get_pipeline_driver(model: Any, world_size: int, ctx: Context) -> NoReturn:
    """Raises RuntimeError."""
    raise RuntimeError(SENTENCE.format("get_pipeline_driver"))

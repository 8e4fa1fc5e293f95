"""The conversation with a server of the Open Inference Protocol, chapter by chapter.

Each step is a REST request (method, path, headers, body), a gRPC call (rpc, request) or a gRPC stream of requests. The order
matters where the server remembers: sequences, regions, settings, the repository.
"""

from collections.abc import Callable, Iterator
from typing import Any

from tests.e2e.triton import steps_control, steps_grpc, steps_rest, steps_tensors

CHAPTERS: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "health": steps_rest.health,
    "metadata": steps_rest.metadata,
    "config": steps_rest.config,
    "routes": steps_rest.routes,
    "json tensors": steps_tensors.json_tensors,
    "binary tensors": steps_tensors.binary_tensors,
    "shapes": steps_tensors.shapes,
    "compressed": steps_tensors.compressed,
    "raw binary": steps_tensors.raw_binary,
    "requests": steps_rest.requests,
    "faults": steps_rest.faults,
    "binary faults": steps_rest.binary_faults,
    "classification": steps_rest.classification,
    "optional inputs": steps_rest.optional_inputs,
    "models that fail": steps_rest.failing,
    "sequences": steps_rest.sequences,
    "generate": steps_rest.generate,
    "grpc": steps_grpc.calls,
    "grpc tensors": steps_grpc.tensors,
    "grpc faults": steps_grpc.faults,
    "grpc streams": steps_grpc.streams,
    "grpc sequences": steps_grpc.sequences,
    "shared memory": steps_control.shared_memory,
    "grpc shared memory": steps_control.grpc_shared_memory,
    "repository": steps_control.repository,
    "grpc repository": steps_control.grpc_repository,
    "trace": steps_control.trace,
    "logging": steps_control.logging,
    "statistics": steps_control.statistics,
}
STEPS = [(chapter, step) for chapter, steps in CHAPTERS.items() for step in steps()]

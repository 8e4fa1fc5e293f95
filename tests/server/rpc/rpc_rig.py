"""GRPCInferenceService on a port of this process, over a dispatcher and an execution of tests/server/tensor_rig.py whose worker is a
thread."""

import asyncio
import contextlib
import os
import select
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from ringserve.backends.contract import Batch
from ringserve.protocol.grpc import open_inference_pb2 as pb
from ringserve.protocol.grpc.open_inference_pb2_grpc import GRPCInferenceServiceStub
from ringserve.protocol.request import InferRequest
from ringserve.protocol.tensor import Signature
from ringserve.server.control import ModelRoute, VersionRoute
from ringserve.server.inflight import Pending
from ringserve.server.open_inference.service import OpenInference
from ringserve.server.routes.forwarding import Forwarding
from ringserve.server.routing import ModelTargets, RouteTable
from ringserve.server.rpc.calls import Calls, Door, Services
from ringserve.server.rpc.context import RpcContext
from ringserve.server.rpc.open_inference import add_open_inference
from ringserve.server.served_model import ServedModel
from ringserve.shm.spool import Spool
from tests.server.tensor_rig import Served, served

Run = Callable[[Batch], None]


class Rig:
    """`stub` is a client of it. `worker` executes in its thread. `pendings` are what was submitted, in that order."""

    def __init__(self, worker: Served, table: RouteTable, address: str, stub: Any) -> None:
        self.worker = worker
        self.table = table
        self.address = address
        self.stub = stub
        self.pendings: list[Pending] = []
        submit = worker.dispatcher.submit

        def noted(request: InferRequest, spool: Spool | None = None) -> Pending:
            self.pendings.append(submit(request, spool))
            return self.pendings[-1]

        worker.dispatcher.submit = noted  # type: ignore[method-assign]


@contextlib.asynccontextmanager
async def serving(
    signature: Signature, run: Run, *, shown: ServedModel | None = None, **shape: Any
) -> AsyncIterator[Rig]:
    """Model `m`, version 1, ready, which `run` computes in a thread of its own."""
    async with served(signature, run, **shape) as worker:
        worker.dispatcher.served = ServedModel(platform="python") if shown is None else shown
        table = RouteTable(models={"m": ModelTargets("1", {"1": worker.dispatcher})})
        route = VersionRoute(1, "m", "1", True, 4, 0, False, 100, 60, ready_workers=1)
        table.routes = {"m": ModelRoute("1", {"1": route})}
        table.started = True
        services = Services(Calls(None), Door(tokens=False))
        core = OpenInference(table, "ringserve", "9.9", ("classification",))
        add_open_inference(
            services, RpcContext(table, Forwarding(Path("/nowhere/admin.sock"), ()), "9.9", 1 << 30, core)
        )
        server: Any = grpc.aio.server()
        for name, handlers in services.handlers.items():
            server.add_registered_method_handlers(name, handlers)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        await server.start()
        with _worker_thread(worker):
            async with grpc.aio.insecure_channel(address) as channel:
                yield Rig(worker, table, address, GRPCInferenceServiceStub(channel))
            await server.stop(0)


@contextlib.contextmanager
def _worker_thread(worker: Served) -> Iterator[None]:
    """Raises what the worker raised."""
    stop, stopped = os.pipe()

    def loop() -> None:
        while stop not in select.select((worker.link.listener.fd, stop), (), ())[0]:
            worker.work()

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(loop)
        try:
            yield
        finally:
            os.write(stopped, b"1")
            running.result()
            os.close(stop)
            os.close(stopped)


def request_of(*inputs: tuple[str, str, list[int], bytes], id: str = "") -> pb.ModelInferRequest:
    message = pb.ModelInferRequest(model_name="m", id=id)
    for name, datatype, shape, data in inputs:
        message.inputs.add(name=name, datatype=datatype, shape=shape)
        message.raw_input_contents.append(data)
    return message


async def refused(call: Any) -> tuple[str, str]:
    """The code and the details with which a call fails."""
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return error.code().name, error.details() or ""
    raise AssertionError("the call was answered")


async def until(condition: Callable[[], object]) -> None:
    """Let everything else go on until it holds. Raises `TimeoutError`."""
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)

"""A closed-loop load of gRPC calls on one method: messages go and come as bytes, so that the loader has little to do.

    python -m benchmarks.rpc_loader < job.msgpack > load.json

A process of its own, so that its work is on no contestant's clock.
"""

import asyncio
import sys
import time

import grpc.aio
import msgspec

from benchmarks.loader import Load, percentile

CALL_S_MAX = 10.0


class RpcJob(msgspec.Struct, frozen=True):
    """`calls` are outstanding at any time, all with the same message."""

    address: str
    method: str
    message: bytes
    answer: bytes
    calls: int
    seconds: float


def as_it_is(message: bytes) -> bytes:
    return message


async def run(job: RpcJob) -> Load:
    """Answers are compared by their size; `benchmarks/open_inference.py` looks at the first and the last."""
    times: list[float] = []
    errors = 0
    async with grpc.aio.insecure_channel(job.address) as channel:
        ask = channel.unary_unary(job.method, request_serializer=as_it_is, response_deserializer=as_it_is)
        await ask(job.message, timeout=CALL_S_MAX)
        start_s = time.monotonic()
        end_s = start_s + job.seconds

        async def keep_asking() -> None:
            nonlocal errors
            while (begun_s := time.monotonic()) < end_s:
                try:
                    answer = await ask(job.message, timeout=CALL_S_MAX)
                except grpc.aio.AioRpcError:
                    errors += 1
                    continue
                times.append(time.monotonic() - begun_s)
                errors += len(answer) != len(job.answer)

        await asyncio.gather(*(keep_asking() for _ in range(job.calls)))
        took_s = time.monotonic() - start_s
    times.sort()
    return Load(len(times), len(times) / took_s, percentile(times, 50) * 1e3, percentile(times, 99) * 1e3, errors)


if __name__ == "__main__":
    asked = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=RpcJob)
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(run(asked))))

"""The body of an answer as messages: what lies in shared memory, or is still being made (protocol/request.py: `Source`)."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from ringserve.protocol.errors import Internal, PredictionFailed
from ringserve.protocol.request import Answer, Source

MESSAGE_BYTES_MAX = 2**31 - 1  # of one message of gRPC


class BrokenOff(Internal):
    """The client has the beginning of an answer whose rest will never come."""


async def parts_of(source: Source) -> AsyncGenerator[bytes]:
    """Each part as it comes, copied. Raises `BrokenOff`."""
    changed = asyncio.Event()
    source.on_change = changed.set
    try:
        while True:
            part = source.next()
            if part is not None:
                yield bytes(part)
            elif source.broken:
                raise BrokenOff("The answer ended before it was complete.")
            elif source.ended:
                return
            else:
                await changed.wait()
                changed.clear()
    finally:
        source.close()


async def whole(answer: Answer) -> bytes:
    """All of it. Raises as `parts_of`, and `PredictionFailed` for more than a message holds."""
    if answer.source is None:
        return answer.body
    found, length = [], 0
    async for part in parts_of(answer.source):
        found.append(part)
        length += len(part)
        if length > MESSAGE_BYTES_MAX:
            answer.source.close()
            raise PredictionFailed(
                f"The answer has more than {MESSAGE_BYTES_MAX} bytes, which no message of gRPC holds."
            )
    return found[0] if len(found) == 1 else b"".join(found)


async def bodies_of(answer: Answer) -> AsyncGenerator[bytes]:
    """A message each: one for an answer that is there, more for one that is being made. Raises as `whole`."""
    if answer.source is None or answer.source.length is not None:
        yield await whole(answer)
        return
    async with aclosing(parts_of(answer.source)) as parts:
        async for part in parts:
            yield part

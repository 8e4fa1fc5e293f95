"""Bodies of answers as messages: whole, in parts, broken off, and let go in any case."""

import asyncio

import pytest

from ringserve.protocol.errors import PredictionFailed
from ringserve.protocol.request import Answer
from ringserve.server.rpc import parts
from ringserve.server.rpc.parts import BrokenOff, bodies_of, parts_of, whole
from ringserve.server.sources import Frame, Held, ReplyStream


def streamed() -> tuple[ReplyStream, list[str]]:
    told: list[str] = []
    return ReplyStream(lambda: told.append("forsaken")), told


def frame() -> Frame:
    return Frame(1, lambda: None)


def collected(answer: Answer) -> list[bytes]:
    async def scenario() -> list[bytes]:
        return [body async for body in bodies_of(answer)]

    return asyncio.run(scenario())


def test_an_answer_that_is_there_is_one_message_and_one_in_shared_memory_is_copied_and_let_go() -> None:
    assert collected(Answer(b"here")) == [b"here"]
    let_go: list[bool] = []
    memory = bytearray(b"there")
    held = Held(memoryview(memory), lambda: let_go.append(True))
    [body] = collected(Answer(b"", source=held))
    memory[:] = b"-----"
    assert (body, let_go) == (b"there", [True])


def test_parts_are_messages_as_they_come() -> None:
    async def scenario() -> list[bytes]:
        stream, _ = streamed()
        stream.feed(b"a", frame())
        found = []
        async for part in parts_of(stream):
            found.append(part)
            if part == b"a":
                asyncio.get_running_loop().call_soon(stream.feed, b"b", frame())
            elif part == b"b":
                asyncio.get_running_loop().call_soon(stream.finish, b"c")
        return found

    assert asyncio.run(scenario()) == [b"a", b"b", b"c"]


def test_the_whole_of_a_streamed_answer_is_its_parts_in_order() -> None:
    async def scenario() -> bytes:
        stream, _ = streamed()
        stream.feed(b"a", frame())
        stream.feed(b"b", frame())
        stream.finish(b"c")
        return await whole(Answer(b"", source=stream))

    assert asyncio.run(scenario()) == b"abc"


def test_an_answer_that_breaks_off_is_an_error_after_what_there_is_of_it() -> None:
    async def scenario() -> None:
        stream, _ = streamed()
        stream.feed(b"a", frame())
        stream.break_off()
        found = []
        with pytest.raises(BrokenOff, match="ended before it was complete"):
            async for part in parts_of(stream):
                found.append(part)
        assert found == [b"a"]

    asyncio.run(scenario())


def test_who_waits_no_longer_for_the_parts_says_so_to_the_worker() -> None:
    async def scenario() -> list[str]:
        stream, told = streamed()
        stream.feed(b"a", frame())
        found = parts_of(stream)
        assert await anext(found) == b"a"
        await found.aclose()
        return told

    assert asyncio.run(scenario()) == ["forsaken"]


def test_what_no_message_holds_is_refused_and_its_memory_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "MESSAGE_BYTES_MAX", 3)

    async def scenario() -> list[str]:
        stream, told = streamed()
        stream.feed(b"four", frame())
        with pytest.raises(PredictionFailed, match="more than 3 bytes"):
            await whole(Answer(b"", source=stream))
        return told

    assert asyncio.run(scenario()) == ["forsaken"]

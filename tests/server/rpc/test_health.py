"""Health of the server, its services and its models, and who watches it."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from ringserve.protocol.errors import NotFound
from ringserve.server.control import ModelRoute, VersionRoute
from ringserve.server.health import Health
from ringserve.server.rpc.health import NOT_SERVING, SERVICE_UNKNOWN, SERVING, HealthService


def route(version: str, ready: int, wanted: int = 1) -> VersionRoute:
    return VersionRoute(1, "m", version, True, 1, 0, False, 9, 9, min_workers=wanted, ready_workers=ready)


def models(**ready: int) -> dict[str, ModelRoute]:
    """By name, `-` for `/` of those whose names have one: how many workers of version 1 are ready."""
    return {name.replace("_", "/"): ModelRoute("1", {"1": route("1", count)}) for name, count in ready.items()}


def service(health: Health) -> HealthService:
    return HealthService(["a.Service"], lambda: health)


@pytest.mark.parametrize(
    ("ready", "name", "status"),
    [
        ({"m": 1}, "", SERVING),
        ({"m": 0}, "", NOT_SERVING),
        ({"m": 1}, "a.Service", SERVING),
        ({"m": 1}, "m", SERVING),
        ({"m": 1, "n": 0}, "m", SERVING),
        ({"m": 1, "n": 0}, "n", NOT_SERVING),
        ({"m": 1}, "m/1", SERVING),
        ({"m": 1}, "m/2", SERVICE_UNKNOWN),
        ({"m_1": 0, "m": 1}, "m/1", NOT_SERVING),
        ({"m": 1}, "another.Service", SERVICE_UNKNOWN),
    ],
)
def test_a_name_is_that_of_the_server_a_service_a_model_or_a_version(ready: Any, name: str, status: object) -> None:
    assert service(Health(models(**ready), True)).status(name) == status


def test_nothing_is_served_by_a_server_that_goes() -> None:
    going = service(Health(models(m=1), True, draining=True))
    assert {going.status(name) for name in ("", "a.Service", "m", "m/1")} == {NOT_SERVING}
    stopped = service(Health(models(m=1), True))
    stopped.stop()
    assert {stopped.status(name) for name in ("", "a.Service", "m", "m/1")} == {NOT_SERVING}


def test_who_asks_for_what_is_not_there_is_told_its_name_and_no_more_than_that() -> None:
    asked = service(Health({}, True)).Check(SimpleNamespace(service="x" * 1000), None)
    with pytest.raises(NotFound) as caught:
        asyncio.run(asked)
    assert caught.value.message == f"unknown service: {'x' * 256}"


def test_watchers_are_told_of_changes_and_of_nothing_else_until_the_end() -> None:
    now = {"health": Health({}, True)}
    told: list[list[int]] = [[], []]

    async def scenario() -> None:
        watched = HealthService([], lambda: now["health"])

        async def watch(number: int) -> None:
            async for answer in watched.Watch(health_pb2.HealthCheckRequest(service="m"), None):
                told[number].append(answer.status)

        async def became(ready: int) -> None:
            now["health"] = Health(models(m=ready), True)
            watched.look()
            for _ in range(5):
                await asyncio.sleep(0)

        first, second = asyncio.create_task(watch(0)), asyncio.create_task(watch(1))
        await asyncio.sleep(0)
        await became(0)
        await became(0)
        first.cancel()  # the other one still hears
        await became(1)
        watched.stop()
        await second

    asyncio.run(scenario())
    assert told == [[SERVICE_UNKNOWN, NOT_SERVING], [SERVICE_UNKNOWN, NOT_SERVING, SERVING, NOT_SERVING]]

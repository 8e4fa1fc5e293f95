"""The routes of probes on every listener: `/health/…`, never behind a token, and KServe's readiness of a model, which TorchServe
has behind one."""

from collections.abc import Callable

from sanic import HTTPResponse
from sanic.request import Request

from ringserve.server.app import App, json_response
from ringserve.server.health import RETRY_AFTER_S, Health, Verdict

PREFIX = "/health/"
KSERVE_READY = "/v1/models/<model:str>"

Probe = Callable[[Health, str | None, str | None], Verdict]
PROBES: dict[str, Probe] = {"live": Health.live, "started": Health.start, "ready": Health.ready}


def add_health(app: App, look: Callable[[], Health]) -> None:
    """`look` is asked anew for every probe."""
    for kind, probe in PROBES.items():
        _add_probe(app, kind, probe, look)

    async def kserve_ready(request: Request, model: str) -> HTTPResponse:
        return json_response(look().kserve(model), 200, request)

    app.add_route(kserve_ready, KSERVE_READY, methods=["GET"], unquote=True)


def _add_probe(app: App, kind: str, probe: Probe, look: Callable[[], Health]) -> None:
    async def answer(request: Request, model: str | None = None, version: str | None = None) -> HTTPResponse:
        verdict = probe(look(), model, version)
        headers = None if verdict.ok else {"Retry-After": str(RETRY_AFTER_S)}
        return json_response(verdict.body, verdict.status, request, headers)

    for rest, name in (("", "server"), ("/<model:str>", "model"), ("/<model:str>/<version:str>", "version")):
        app.add_route(
            answer, f"{PREFIX}{kind}{rest}", methods=["GET", "HEAD"], name=f"{kind}-{name}", unquote=bool(rest)
        )

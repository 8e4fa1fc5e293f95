"""The metrics listener (contract section 3.1): `/metrics` and whatever lies below it, by any method and without a token."""

from collections.abc import Callable
from importlib.metadata import version as package_version

from sanic import HTTPResponse
from sanic.request import Request

from ringserve.server.app import App, make_app, text_response
from ringserve.server.health import Health
from ringserve.server.metrics.exposition import CONTENT_TYPE
from ringserve.server.metrics.scrape import Scrape
from ringserve.server.openapi import metrics_document
from ringserve.server.routes.documents import METHODS, add_document
from ringserve.server.routes.health import add_health

BODY_BYTES_MAX = 1 << 20  # nobody looks at one
NAMES_MAX = 1000


def metrics_app(scrape: Scrape, look: Callable[[], Health]) -> App:
    """The app of a listener of its own."""
    app = make_app("ringserve-metrics", BODY_BYTES_MAX)
    add_metrics(app, scrape)
    add_health(app, look)
    add_document(app, metrics_document(package_version("ringserve")))
    return app


def add_metrics(app: App, scrape: Scrape) -> None:
    """To any app: one address may serve metrics beside something else."""

    async def answer(request: Request, rest: str = "") -> HTTPResponse:
        wanted = request.get_args(keep_blank_values=True).getlist("name[]") or []
        return text_response(await scrape.text(frozenset(wanted[:NAMES_MAX])), CONTENT_TYPE, request)

    app.add_route(answer, "/metrics", methods=METHODS, name="metrics")
    app.add_route(answer, "/metrics/<rest:path>", methods=METHODS, name="metrics-below")

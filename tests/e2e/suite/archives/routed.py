"""A model with routes of its own, by url_path."""

from ts.utils.util import PredictionException

ROUTES = {"v1/models": ["a", "b"], "health": "fine"}


def handle(data, context):
    if data is None:
        return None
    path = context.get_request_header(0, "url_path")
    if path == "":
        return ["no path"]
    if path not in ROUTES:
        raise PredictionException(f"Unknown API endpoint: {path}", 404)
    return [ROUTES[path]]

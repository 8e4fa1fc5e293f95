"""Which paths of the Open Inference Protocol are the supervisor's to answer, and whose key they need. Pure.

A front end passes them on (routes/forwarding.py), and lets nobody through to them whom it would not let in itself: what changes the
server needs the key of management, what asks about it that of inference.
"""

_SHARED_MEMORY = ("/v2/systemsharedmemory", "/v2/cudasharedmemory")
_ROOTS = ("/v2/repository/", *_SHARED_MEMORY)
_WHOLE = frozenset(("/v2/logging", "/v2/trace/setting", "/v2/models/stats"))
_MODELS = "/v2/models/"


def is_control(path: str) -> bool:
    """Whether a request for this path (as it came, without its query) is the supervisor's to answer."""
    if not path.startswith("/v2/"):
        return False
    if path in _WHOLE or path.startswith(_ROOTS):
        return True
    if not path.startswith(_MODELS):
        return False
    below = path.count("/")
    if path.endswith("/trace/setting"):
        return below == 5  # /v2/models/{m}/trace/setting: with a version there is no such path
    return path.endswith("/stats") and (below == 4 or (below == 6 and path.split("/")[4] == "versions"))


def needs_management(method: str, path: str) -> bool:
    """Whether that request, for a path of these, changes the server, so that the key of management is needed for it. Who may ask for
    inferences may share memory for them."""
    return method not in ("GET", "HEAD") and not path.endswith("/index") and not path.startswith(_SHARED_MEMORY)

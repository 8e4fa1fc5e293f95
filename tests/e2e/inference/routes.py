"""Every route of the inference listener: methods, slashes, percent-escapes, unknown names (contract 1.1, 1.2, 1.6, 6)."""

from collections.abc import Iterator

from tests.e2e.inference.talk import Ask, Peer, Step

JSON = {"content-type": "application/json"}
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS")
BY_ANY_METHOD = (
    "/ping",
    "/predictions/echo",
    "/explanations/echo",
    "/invocations?model_name=echo",
    "/models/echo/invoke",
    "/echo/predict",
    "/v1/models/echo:predict",
    "/v2/models/echo/infer",
    "/nothing",
)
PREDICTIONS = (
    "/predictions/echo/",
    "/predictions/echo//",
    "/predictions/echo/1.0",
    "/predictions/echo/2.0",
    "/predictions/echo/2.0/",
    "/predictions/echo/3.0",
    "/predictions/none",
    "/predictions/none/1.0",
    "/predictions",
    "/predictions/",
    "/predictions/echo/1.0/v1/chat/completions",
    "/predictions/echo/2.0/a/",
    "/predictions/echo/1.0//a",
    "/predictions/echo/1.0/a%2Fb",
    "/predictions/echo/1.0/a%20b/%C3%A9",
    "/predictions/ec%68o",
    "/predictions/echo%20",
    "/predictions/echo%2F1.0",
    "/predictions/e%zzo",
    "/predictions//echo",
    "//predictions/echo",
    "/Predictions/echo",
    "/predictions/Echo",
    "/predictions/echo?x=1&y=2",
    "/predictions/echo/1.0?model_name=none",
    "/predictions/%C3%A9",
)
EXPLANATIONS = (
    "/explanations",
    "/explanations/",
    "/explanations/echo/",
    "/explanations/echo/1.0",
    "/explanations/echo/2.0/a/b",
    "/explanations/echo/3.0",
    "/explanations/none",
    "/explanations/echo?x=1",
    "/Explanations/echo",
)
OTHERS = (
    "/invocations",
    "/invocations/",
    "/invocations?model_name=",
    "/invocations?model_name=none",
    "/invocations?model_name=echo&model_version=2.0",
    "/invocations?model_name=echo&x=1&y=%C3%A9&x=2",
    "/invocations?model_name=none&model_name=echo",
    "/invocations/echo",
    "/invocations?x=1",
    "/models/echo/invoke/",
    "/models/echo/invoke?x=1&y",
    "/models/none/invoke",
    "/models/echo/2.0/invoke",
    "/models/echo/invoke/x",
    "/models/echo",
    "/models",
    "/models/echo/1.0",
    "/models/echo/other",
    "/echo/predict/",
    "/echo/predict?x=1&x=2",
    "/echo/2.0/predict",
    "/echo/2.0/predict?a=b%20c",
    "/echo/3.0/predict",
    "/none/predict",
    "/none/1.0/predict",
    "/echo/predict/2.0",
    "/echo/Predict",
    "/echo/predict/x/y",
    "/echo",
    "/metrics",
    "/token?type=inference",
    "/favicon.ico",
    "/wfpredict/flow",
    "/wfpredict",
    "/predictions.html",
    "/ping/",
    "/ping/x",
    "/ping?x=1",
    "/PING",
)
KSERVE = (
    "/v1/models/echo:explain",
    "/v1/models/echo:predict/",
    "/v1/models/echo:predict?x=1",
    "/v1/models/echo:train",
    "/v1/models/echo:",
    "/v1/models/echo",
    "/v1/models/none:predict",
    "/v1/models/none:explain",
    "/v1/models/:predict",
    "/v1/models",
    "/v2/models/echo/explain",
    "/v2/models/echo/infer/",
    "/v2/models/echo/infer?x=1",
    "/v2/models/none/infer",
    "/v2/models/none/explain",
    "/v2/models/echo/train",
    "/v2/models/echo/versions/2.0/infer",
)
LISTENER = (
    "OPTIONS /",
    "GET /",
    "POST /",
    "GET /api-description",
    "POST /api-description",
    "OPTIONS /api-description",
    "GET /api-description/",
    "OPTIONS /predictions/echo/2.0",
    "OPTIONS /predictions/none",
    "OPTIONS /predictions/echo/3.0",
    "OPTIONS /predictions",
)


def routes(peer: Peer) -> Iterator[Step]:
    for line in LISTENER:
        yield from peer.say(Ask(line))
    for path in BY_ANY_METHOD:
        yield from peer.say(*(Ask(f"{method} {path}") for method in METHODS))
    for path in (*PREDICTIONS, *EXPLANATIONS, *OTHERS, *KSERVE):
        yield from peer.say(Ask(f"POST {path}", b"[1]", JSON))

"""What a method and a path ask for, of the Open Inference Protocol."""

import pytest

from ringserve.server.routes.open_inference import Asked, asked_by


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("GET", "/v2", Asked("server")),
        ("HEAD", "/v2", Asked("server")),
        ("GET", "/v2/health/live", Asked("live")),
        ("GET", "/v2/health/ready", Asked("ready")),
        ("GET", "/v2/models", Asked("models")),
        ("GET", "/v2/models/m", Asked("metadata", "m")),
        ("GET", "/v2/models/m/versions/1.0", Asked("metadata", "m", "1.0")),
        ("GET", "/v2/models/m/ready", Asked("model_ready", "m")),
        ("GET", "/v2/models/m/versions/7/ready", Asked("model_ready", "m", "7")),
        ("GET", "/v2/models/m/config", Asked("config", "m")),
        ("GET", "/v2/models/m/versions/v1/config", Asked("config", "m", "v1")),
        ("POST", "/v2/models/m/infer", Asked("infer", "m")),
        ("POST", "/v2/models/m/versions/2/infer", Asked("infer", "m", "2")),
        ("POST", "/v2/models/m/generate", Asked("generate", "m")),
        ("POST", "/v2/models/m/versions/2/generate_stream", Asked("generate_stream", "m", "2")),
        ("GET", "/v2/models/a%20b", Asked("metadata", "a b")),
        ("GET", "/v2/models/a%2Fb/ready", Asked("model_ready", "a/b")),
        ("GET", "/v2/models/versions", Asked("metadata", "versions")),
        ("POST", "/v2", Asked("not_allowed")),
        ("POST", "/v2/health/live", Asked("not_allowed")),
        ("DELETE", "/v2/models/m", Asked("not_allowed", "m")),
        ("GET", "/v2/models/m/infer", Asked("not_allowed", "m")),
        ("PUT", "/v2/models/m/versions/2/infer", Asked("not_allowed", "m", "2")),
        ("GET", "/v2/", Asked("unknown")),
        ("GET", "/v2/health", Asked("unknown")),
        ("GET", "/v2/health/live/", Asked("unknown")),
        ("GET", "/v2/x", Asked("unknown")),
        ("GET", "/v2/models/", Asked("unknown")),
        ("GET", "/v2/models/m/", Asked("unknown", "m")),
        ("GET", "/v2/models/m/x", Asked("unknown", "m")),
        ("GET", "/v2/models/m/ready/", Asked("unknown", "m")),
        ("GET", "/v2/models/m/versions", Asked("unknown", "m")),
        ("GET", "/v2/models/m/versions/", Asked("unknown", "m")),
        ("GET", "/v2/models/m/versions/1/", Asked("unknown", "m")),
        ("GET", "/v2/models/m/versions/1/x", Asked("unknown", "m")),
        ("GET", "/v2x", None),
        ("GET", "/v2x/health", None),
        ("GET", "/v1/models/m", None),
        ("GET", "/", None),
    ],
)
def test_a_path_says_what_is_asked_for(method: str, path: str, expected: Asked | None) -> None:
    assert asked_by(method, path) == expected

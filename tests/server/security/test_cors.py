import pytest

from ringserve.server.security.cors import answers_preflights, cors_headers, is_preflight
from ringserve.server.settings import ConfigError, Settings


def test_what_is_configured_is_said_word_by_word() -> None:
    settings = Settings(cors_allowed_origin="*", cors_allowed_methods="GET,  POST", cors_allowed_headers="x-a")
    assert cors_headers(settings) == {
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "GET,  POST",
        "access-control-allow-headers": "x-a",
    }
    assert cors_headers(Settings(cors_allowed_methods="GET")) == {"access-control-allow-methods": "GET"}
    assert cors_headers(Settings()) == {}
    assert answers_preflights(cors_headers(settings))
    assert not answers_preflights(cors_headers(Settings(cors_allowed_methods="GET")))


@pytest.mark.parametrize("value", ["*\r\nset-cookie: x", "*\x00", "münchen"])
def test_a_value_that_would_break_out_of_its_header_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match=r"^cors_allowed_origin: expected printable ASCII"):
        cors_headers(Settings(cors_allowed_origin=value))


ASKED = {"origin": "https://a.example", "access-control-request-method": "POST"}


@pytest.mark.parametrize(
    ("method", "headers", "asks"),
    [
        ("OPTIONS", ASKED, True),
        ("POST", ASKED, False),
        ("OPTIONS", {"origin": "x"}, False),
        ("OPTIONS", {"access-control-request-method": "POST"}, False),
        ("OPTIONS", {}, False),
    ],
)
def test_a_browser_that_asks_is_known_by_its_headers(method: str, headers: dict[str, str], asks: bool) -> None:
    assert is_preflight(method, headers) is asks

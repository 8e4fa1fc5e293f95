import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringserve.protocol.errors import InvalidKey
from ringserve.server.control import Credential, Keys
from ringserve.server.security.tokens import Gate, Gates, Plane, key_problem

NOW_S = 1000.0
KEY = "oGtBFh65"


def gate(*credentials: Credential) -> Gate:
    return Gate(credentials or [Credential(KEY, NOW_S + 1)])


@pytest.mark.parametrize(
    ("sent", "admitted"),
    [
        (f"Bearer {KEY}", True),
        (f"Bearer    {KEY}", True),
        (f"Bearer\t{KEY}  ", True),
        (f"bearer {KEY}", False),
        (f"BEARER {KEY}", False),
        (f"Bearer{KEY}", False),
        (f" Bearer {KEY}", False),
        (f"Bearer {KEY}x", False),
        (f"Bearer {KEY[:-1]}", False),
        (f"Bearer {KEY} x", False),
        (f"Bearer {KEY},", False),
        (f'Bearer "{KEY}"', False),
        (f"Basic {KEY}", False),
        (KEY, False),
        ("Bearer", False),
        ("Bearer ", False),
        ("", False),
    ],
)
def test_a_key_is_shown_in_the_words_that_torchserve_takes(sent: str, admitted: bool) -> None:
    assert gate().admits(sent.encode(), NOW_S) is admitted


@given(st.text(st.sampled_from(" \tBearbx") | st.characters(max_codepoint=255), max_size=24), st.booleans())
def test_no_header_is_taken_that_torchserves_pattern_does_not_take(text: str, with_key: bool) -> None:
    sent = text.replace("x", KEY) if with_key else text
    pattern = re.fullmatch(rf"Bearer[ \t]+{KEY}", sent.rstrip(" \t"))
    assert gate().admits(sent.encode(), NOW_S) is (pattern is not None)


@given(st.binary(max_size=600))
def test_bytes_of_any_kind_are_only_ever_refused(sent: bytes) -> None:
    assert gate().admits(sent, NOW_S) is False


def test_a_key_holds_until_its_last_moment_and_not_longer() -> None:
    assert gate().admits(b"Bearer " + KEY.encode(), NOW_S + 0.999)
    assert not gate().admits(b"Bearer " + KEY.encode(), NOW_S + 1)
    assert not gate().admits(b"Bearer   " + KEY.encode(), NOW_S + 1)


def test_the_key_before_opens_as_long_as_it_holds() -> None:
    both = gate(Credential("the-new-one", float("inf")), Credential("the-old-one", NOW_S))
    assert both.admits(b"Bearer the-new-one", 1e12)
    assert both.admits(b"Bearer the-old-one", NOW_S - 1)
    assert not both.admits(b"Bearer the-old-one", NOW_S)


def test_a_gate_without_keys_is_closed() -> None:
    closed = Gate()
    assert [closed.admits(sent, NOW_S) for sent in (b"", b"Bearer ", b"Bearer x")] == [False, False, False]


KEYS = {plane: [Credential(f"key-of-{plane.value}", NOW_S + 1)] for plane in Plane}


def opened_by(gates: Gates, path: str, *, managements: bool = False) -> set[str]:
    """Which keys open a path, and `nothing` when none is needed."""
    shown = {"nothing": b"", **{plane.value: f"Bearer key-of-{plane.value}".encode() for plane in Plane}}
    found = set()
    for name, sent in shown.items():
        try:
            gates.check(path, sent, NOW_S, managements=managements)
        except InvalidKey:
            continue
        found.add(name)
    return found


EVERYBODY = {"nothing", "inference", "management", "API"}


@pytest.mark.parametrize(
    ("path", "inference", "management"),
    [
        ("/", EVERYBODY, EVERYBODY),
        ("", EVERYBODY, EVERYBODY),
        ("/api-description", EVERYBODY, EVERYBODY),
        ("/api-description/", EVERYBODY, EVERYBODY),
        ("/api-description/x", {"inference"}, {"management"}),
        ("/health/ready", EVERYBODY, EVERYBODY),
        ("/health/ready/model/1.0", EVERYBODY, EVERYBODY),
        ("/healthy", {"inference"}, {"management"}),
        ("//health/ready", {"inference"}, {"management"}),
        ("/%68ealth/ready", {"inference"}, {"management"}),
        ("/predictions/health/ready", {"inference"}, {"management"}),
        ("/ping", {"inference"}, {"management"}),
        ("/predictions/x", {"inference"}, {"management"}),
        ("/v1/models/x", {"inference"}, {"management"}),
        ("/models", {"inference"}, {"management"}),
        ("/nothing", {"inference"}, {"management"}),
        ("/token", {"inference"}, {"API"}),
        ("/token/", {"inference"}, {"API"}),
        ("/token/x", {"inference"}, {"management"}),
        ("/tokens", {"inference"}, {"management"}),
        ("/models/token", {"inference"}, {"management"}),
    ],
)
def test_a_path_is_opened_by_the_key_of_its_listener(path: str, inference: set[str], management: set[str]) -> None:
    for plane, expected in ((Plane.INFERENCE, inference), (Plane.MANAGEMENT, management)):
        gates = Gates(plane)
        gates.set(KEYS)
        assert opened_by(gates, path) == expected


@pytest.mark.parametrize(
    ("path", "managements", "expected"),
    [
        ("/predictions/x", False, {"inference"}),
        ("/models/x/1.0", True, {"management"}),
        ("/token", True, {"API"}),
        ("/health/live", False, EVERYBODY),
        ("/nothing", False, {"inference"}),
    ],
)
def test_on_one_address_for_both_each_plane_has_its_own_key(path: str, managements: bool, expected: set[str]) -> None:
    gates = Gates(Plane.INFERENCE, both=True)
    gates.set(KEYS)
    assert opened_by(gates, path, managements=managements) == expected


def test_nobody_is_let_in_before_there_are_keys() -> None:
    assert opened_by(Gates(Plane.INFERENCE), "/ping") == set()


def test_refusals_say_what_torchserve_says_and_how_to_ask() -> None:
    gates = Gates(Plane.MANAGEMENT)
    for path, word in (("/models", "Authorization"), ("/token", "Authentication")):
        with pytest.raises(InvalidKey) as refusal:
            gates.check(path, b"", NOW_S)
        expected = f"Token {word} failed. Token either incorrect, expired, or not provided correctly"
        assert (refusal.value.message, refusal.value.http_status) == (expected, 400)
        assert refusal.value.type == "InvalidKeyException"
        assert refusal.value.headers == {"WWW-Authenticate": "Bearer"}


def test_what_is_logged_of_a_message_holds_no_key() -> None:
    message = Keys(1, (Credential("a-secret", 5.0),), (Credential("b-secret", 5.0),), (Credential("c-secret", 5.0),))
    assert "secret" not in repr(message) + str(message) + f"{message}"


@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("12345678", None),
        ("!~" * 10, None),
        ("k" * 1024, None),
        ("1234567", "expected 8 to 1024 characters, got 7"),
        ("", "expected 8 to 1024 characters, got 0"),
        ("k" * 1025, "expected 8 to 1024 characters, got 1025"),
        ("with blank", "expected printable ASCII characters without blanks, got others"),
        ("line\nline", "expected printable ASCII characters without blanks, got others"),
        ("schlüssel", "expected printable ASCII characters without blanks, got others"),
    ],
)
def test_a_key_of_ones_own_has_to_fit_into_a_header(key: str, problem: str | None) -> None:
    assert key_problem(key) == problem

"""What no single setting shows: addresses, folders, and what is refused together."""

from pathlib import Path
from typing import Any

import pytest

from ringserve.server.settings import Address, ConfigError, Settings, check, parse_address, with_repository


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("127.1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("127.0.0.1.example.com", False),
        ("127.example.com", False),
        ("1127.0.0.1", False),
        ("::1", True),
        ("::2", False),
    ],
)
def test_loopback_is_an_address_of_this_machine_only(host: str, loopback: bool) -> None:
    assert Address(host, 1).loopback is loopback


def settings_for(tmp_path: Path, **changes: Any) -> Settings:
    return Settings(**{"model_store": tmp_path, **changes})


def test_defaults_with_a_model_store_are_fine(tmp_path: Path) -> None:
    check(settings_for(tmp_path))


@pytest.mark.parametrize("which", ["inference", "management"])
def test_an_open_address_without_tokens_needs_a_word_of_consent(tmp_path: Path, which: str) -> None:
    """Nobody is to be reachable from outside by accident."""
    changes: dict[str, Any] = {f"{which}_address": Address("0.0.0.0", 9000)}
    check(settings_for(tmp_path, **changes))
    changes["disable_token_authorization"] = True
    with pytest.raises(ConfigError, match=rf"^{which}_address: expected a loopback address, got http://0.0.0.0:9000"):
        check(settings_for(tmp_path, **changes))
    check(settings_for(tmp_path, **changes, insecure=True))


@pytest.mark.parametrize("which", ["grpc_inference", "grpc_management"])
def test_so_does_one_of_grpc(tmp_path: Path, which: str) -> None:
    changes = {f"{which}_address": "0.0.0.0", "disable_token_authorization": True}
    with pytest.raises(ConfigError, match=f"^{which}_address: expected a loopback address, got grpc://0.0.0.0:707"):
        check(settings_for(tmp_path, **changes))
    check(settings_for(tmp_path, **changes, insecure=True))
    check(settings_for(tmp_path, **changes, enable_grpc=False))


def test_the_listeners_of_grpc_have_a_port_each(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"^grpc_management_port: expected another port than grpc_inference_port, got 7070"
    ):
        check(settings_for(tmp_path, grpc_management_port=7070))
    check(settings_for(tmp_path, grpc_inference_port=0, grpc_management_port=0))


def test_what_no_single_key_shows_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^Missing mandatory parameter --model-store$"):
        check(Settings())
    with pytest.raises(ConfigError, match=r"^--model-store directory not found: .*/none$"):
        check(settings_for(tmp_path / "none"))


def test_both_apis_may_have_one_address(tmp_path: Path) -> None:
    same = Address("127.0.0.1", 8080)
    check(settings_for(tmp_path, inference_address=same, management_address=same))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"load_models_by_name": ("a",)}, "--load-model: expected model_control_mode=explicit"),
        (
            {"load_models_by_name": ("*", "a"), "model_control_mode": "explicit"},
            "--load-model: expected \\* alone, got it with 1 more",
        ),
        ({"model_config_name": "../a"}, "model_config_name: expected a file's name without .pbtxt"),
        ({"trace_level": "TIMESTAMPS"}, "trace_file: expected the name of a file"),
    ],
)
def test_what_only_makes_sense_together_is_refused_alone(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(settings_for(tmp_path, **changes))


def test_an_address_without_a_port_has_torchserves() -> None:
    assert parse_address("http://h", "here", 8080) == Address("h", 80)
    assert parse_address("http://h", "here", 8081) == Address("h", 8081)
    assert str(Address("h", 80)) == "http://h:80"


@pytest.mark.parametrize(
    ("changes", "named", "here", "folder", "mode"),
    [
        ({}, None, False, None, "none"),
        ({}, None, True, "here", "watch"),
        ({}, "named", True, "named", "watch"),
        ({"model_store": Path("store")}, None, True, "store", "none"),
        ({"model_store": Path("store"), "models": ("a.mar",)}, None, True, "store", "none"),
        ({"model_store": Path("store"), "models": ("ALL",)}, None, True, "store", "watch"),
        ({"model_store": Path("store"), "models": ("all",), "model_control_mode": "none"}, None, True, "store", "none"),
        ({"model_control_mode": "poll"}, "named", False, "named", "poll"),
        ({"model_control_mode": "explicit"}, None, True, "here", "explicit"),
    ],
)
def test_a_folder_is_watched_where_all_of_it_is_to_be_served(
    tmp_path: Path, changes: dict[str, Any], named: str | None, here: bool, folder: str | None, mode: str
) -> None:
    default = tmp_path / "here"
    if here:
        default.mkdir()
    found = with_repository(Settings(**changes), Path(named) if named else None, default)
    assert (found.model_store.name if found.model_store else None, found.model_control_mode) == (folder, mode)
    assert found.enable_model_api == (mode == "explicit")

"""What a registration is told about keys that this version does not honour."""

import pytest

from ringserve.server.description import unsupported_keys
from ringserve.server.repository.model_config import parse_model_config


@pytest.mark.parametrize(
    ("raw", "named"),
    [
        ({}, []),
        ({"batchSize": 4, "minWorkers": 1, "maxWorkers": 1, "deviceType": "cpu"}, []),
        ({"continuousBatching": False, "useVenv": False}, []),
        ({"sequenceBatching": True, "torchrun": {"nproc-per-node": 2}}, ["sequenceBatching", "torchrun"]),
        ({"deviceType": "gpu"}, ["deviceType"]),
    ],
)
def test_what_is_asked_for_and_not_done_is_named(raw: dict[str, object], named: list[str]) -> None:
    assert unsupported_keys(parse_model_config(raw)) == named

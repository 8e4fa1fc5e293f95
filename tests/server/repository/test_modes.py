"""Every key of TorchServe's model-config.yaml is honoured, or refused by its name (contract section 9.4)."""

from typing import Any

import pytest

from ringserve.protocol.errors import InvalidModel
from ringserve.server.repository.model_config import ModelConfig, parse_model_config
from ringserve.server.repository.modes import SequenceBatching, check_modes

# Key: a value, the field of `ModelConfig` that it sets and to what. What the field does is tested where the comment says.
HONOURED: dict[str, tuple[Any, str, Any]] = {
    "minWorkers": (2, "min_workers", 2),  # tests/server/test_registration.py
    "maxWorkers": (3, "max_workers", 3),  # tests/server/test_registration.py
    "batchSize": (8, "batch_size", 8),  # tests/server/test_registration.py
    "maxBatchDelay": (20, "max_batch_delay_ms", 20),  # tests/server/test_registration.py
    "responseTimeout": (7, "response_timeout_s", 7),  # tests/server/test_registration.py
    "startupTimeout": (9, "startup_timeout_s", 9),  # tests/server/test_registration.py
    "deviceType": ("gpu", "device_type", "gpu"),  # tests/server/test_placement.py
    "deviceIds": ([0, 2], "device_ids", (0, 2)),  # tests/server/test_placement.py
    "maxRetryTimeoutInSec": (0, "max_retry_timeout_s", 0),  # tests/server/test_pool.py
    "clientTimeoutInMills": (1500, "client_timeout_ms", 1500),  # tests/e2e/test_deadlines.py
    "jobQueueSize": (10, "job_queue_size", 10),  # tests/server/test_registration.py
    "useJobTicket": (True, "use_job_ticket", True),  # tests/server/test_tickets.py, tests/e2e/test_sequences.py
    "sequenceBatching": (True, "sequences", SequenceBatching(0)),  # tests/server/sequences, tests/e2e/test_sequences.py
    "useVenv": (True, "use_venv", True),  # tests/server/repository/test_environments.py
}
# Keys that mean something beside `sequenceBatching: true` only.
OF_SEQUENCES: dict[str, tuple[Any, SequenceBatching]] = {
    "sequenceMaxIdleMSec": (500, SequenceBatching(500)),
    "sequenceTimeoutMSec": (900, SequenceBatching(0, life_ms_max=900)),
    "maxSequenceJobQueueSize": (5, SequenceBatching(0, waiting_max=5)),
    "maxNumSequence": (6, SequenceBatching(0, sequences_max=6)),
}
REFUSED: dict[str, Any] = {
    "parallelType": "pp",
    "torchrun": {"nproc-per-node": 2},
    "continuousBatching": True,
    "asyncCommunication": True,
}
# Says how many of what the key before it asks for; by itself it has no effect in TorchServe either.
BESIDE_A_REFUSED_ONE = {"parallelLevel": "parallelType"}
OF_TORCHSERVE = """
minWorkers maxWorkers batchSize maxBatchDelay responseTimeout startupTimeout deviceType deviceIds parallelType parallelLevel torchrun
maxRetryTimeoutInSec clientTimeoutInMills jobQueueSize useJobTicket continuousBatching sequenceBatching sequenceMaxIdleMSec
sequenceTimeoutMSec maxSequenceJobQueueSize maxNumSequence asyncCommunication useVenv
"""


def refusal(raw: dict[str, Any]) -> str:
    with pytest.raises(InvalidModel) as caught:
        check_modes(raw)
    return str(caught.value)


def test_every_key_of_torchserve_is_honoured_or_refused() -> None:
    named = {*HONOURED, *OF_SEQUENCES, *REFUSED, *BESIDE_A_REFUSED_ONE}
    assert named == set(OF_TORCHSERVE.split())


@pytest.mark.parametrize("key", HONOURED)
def test_a_key_that_is_honoured_sets_its_field(key: str) -> None:
    value, field, expected = HONOURED[key]
    config = parse_model_config({key: value})
    assert getattr(config, field) == expected
    assert getattr(ModelConfig(), field) != expected


@pytest.mark.parametrize("key", OF_SEQUENCES)
def test_a_key_of_sequences_counts_beside_sequence_batching_only(key: str) -> None:
    value, expected = OF_SEQUENCES[key]
    assert parse_model_config({key: value}).sequences is None
    assert parse_model_config({"sequenceBatching": True, key: value}).sequences == expected


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_is_not_served_is_refused_with_its_name_and_value(key: str) -> None:
    assert refusal({key: REFUSED[key]}).startswith(
        f"model-config.yaml: {key}: {REFUSED[key]!r} is not served by this version"
    )


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {
            "parallelType": "",
            "parallelLevel": 4,
            "torchrun": {},
            "continuousBatching": False,
            "asyncCommunication": False,
        },
        {"parallelType": "all", "torchrun": "yes", "continuousBatching": 1, "asyncCommunication": "true"},
        {"parallelType": None, "torchrun": None, "sequenceBatching": None, "useJobTicket": None},
        {"sequenceBatching": "true", "useJobTicket": True},
        {"sequenceBatching": True, "sequenceMaxIdleMSec": 1, "useJobTicket": False},
    ],
)
def test_what_asks_for_nothing_is_no_reason_to_refuse(raw: dict[str, Any]) -> None:
    check_modes(raw)


@pytest.mark.parametrize("idle", [None, 0, -5, "1000", 1.5, True])
def test_sequences_need_to_know_when_a_silent_one_ends(idle: object) -> None:
    said = refusal({"sequenceBatching": True, "sequenceMaxIdleMSec": idle})
    assert said.startswith("model-config.yaml: sequenceMaxIdleMSec: expected the milliseconds")
    assert said.endswith(f"got {idle!r}")


def test_sequences_have_limits_of_their_own_instead_of_tickets() -> None:
    said = refusal({"sequenceBatching": True, "sequenceMaxIdleMSec": 1000, "useJobTicket": True})
    assert said.startswith("model-config.yaml: useJobTicket: expected false, because sequenceBatching is true")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"backend": "torchscript"}, "the backend torchscript"),
        ({"inputs": [{"name": "x", "dtype": "FP32", "shape": [1]}]}, "declared inputs"),
    ],
)
def test_sequences_need_a_model_that_sees_headers(more: dict[str, Any], named: str) -> None:
    said = refusal({"sequenceBatching": True, "sequenceMaxIdleMSec": 1000, **more})
    assert (
        said
        == f"model-config.yaml: sequenceBatching: expected a handler that sees the headers of requests, got {named}"
    )


@pytest.mark.parametrize("key", ["sequenceTimeoutMSec", "maxSequenceJobQueueSize", "maxNumSequence"])
def test_a_wrong_type_leaves_the_default(key: str) -> None:
    assert parse_model_config({"sequenceBatching": True, key: "many"}).sequences == SequenceBatching(0)
    assert parse_model_config({"sequenceBatching": True, key: -3}).sequences == SequenceBatching(0)

"""How TorchServe serves a model besides one batch after another: sequences and job tickets, and the modes that are refused.

A mode that is asked for and not served would give clients other answers than the model's author meant, so it is refused by its
key's name (contract section 9.4). As in TorchServe, a value of the wrong type asks for nothing.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from ringserve.protocol.errors import InvalidModel

ONE_PROCESS = "a worker is one process on one device"
PARALLEL_TYPES = ("pp", "tp", "pptp", "custom")
# What a sequence is without `sequenceMaxIdleMSec`: TorchServe starts such a model, and its workers never take a request.
IDLE_MS_MIN = 1


class SequenceBatching(msgspec.Struct, frozen=True):
    """`sequenceBatching: true`. A sequence ends when nothing came for `idle_ms_max` after its last answer, or after `life_ms_max` in all
    (0: no limit); there are at most `sequences_max`, in each of which `waiting_max` requests may wait."""

    idle_ms_max: int
    life_ms_max: int = 0
    waiting_max: int = 1
    sequences_max: int = 1


def check_modes(raw: Mapping[str, Any], file_name: str = "model-config.yaml") -> None:
    """Raises `InvalidModel` naming a key that asks for what this version does not serve."""
    for key in ("continuousBatching", "asyncCommunication"):
        if raw.get(key) is True:
            raise _not_served(file_name, key, True)
    wanted = raw.get("parallelType")
    if isinstance(wanted, str) and wanted.lower() in PARALLEL_TYPES:
        raise _not_served(file_name, "parallelType", wanted, ONE_PROCESS)
    # Beside it, parallelLevel says how many; without it, that has no effect in TorchServe either.
    torchrun = raw.get("torchrun")
    if isinstance(torchrun, dict) and torchrun:
        raise _not_served(file_name, "torchrun", torchrun, ONE_PROCESS)
    if raw.get("sequenceBatching") is True:
        _check_sequences(raw, file_name)


def _check_sequences(raw: Mapping[str, Any], file_name: str) -> None:
    idle_ms = raw.get("sequenceMaxIdleMSec")
    if not isinstance(idle_ms, int) or isinstance(idle_ms, bool) or idle_ms < IDLE_MS_MIN:
        raise InvalidModel(
            f"{file_name}: sequenceMaxIdleMSec: expected the milliseconds after which a silent sequence ends, above 0, because"
            f" sequenceBatching is true, got {idle_ms!r:.100}"
        )
    if raw.get("useJobTicket") is True:
        raise InvalidModel(
            f"{file_name}: useJobTicket: expected false, because sequenceBatching is true, whose limits are maxNumSequence and"
            " maxSequenceJobQueueSize, got True: this version does not serve both"
        )
    backend = raw.get("backend", "handler")
    if backend != "handler" or raw.get("inputs"):
        found = f"the backend {backend}" if backend != "handler" else "declared inputs"
        raise InvalidModel(
            f"{file_name}: sequenceBatching: expected a handler that sees the headers of requests, got {found}"
        )


def _not_served(file_name: str, key: str, value: object, reason: str = "") -> InvalidModel:
    said = f": {reason}" if reason else ""
    return InvalidModel(f"{file_name}: {key}: {value!r:.100} is not served by this version{said}")

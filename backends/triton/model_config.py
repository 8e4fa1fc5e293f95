"""`pb_utils.ModelConfig`: what `auto_complete_config` may add to a configuration, and what the other functions read from one.

Rules and sentences are those of Triton 2.51, tried out: what a configuration says already, a model may repeat and not change.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ringserve.backends.triton.datatypes import word_of_configuration
from ringserve.protocol.datatypes import DTYPES
from ringserve.protocol.tensor import Signature, TensorSpec

INPUT_KEYS = ("name", "data_type", "dims", "optional")
OUTPUT_KEYS = ("name", "data_type", "dims")
SCHEDULERS = ("dynamic_batching", "sequence_batching", "ensemble_scheduling")


class ModelConfig:
    """Triton's JSON of a configuration, as a dict."""

    def __init__(self, model_config: Mapping[str, Any]) -> None:
        self._config: dict[str, Any] = dict(model_config)
        for kind in ("input", "output"):
            self._config[kind] = list(self._config.get(kind) or ())
        self._config.setdefault("max_batch_size", 0)

    def as_dict(self) -> dict[str, Any]:
        """To be read only."""
        return self._config

    def set_max_batch_size(self, max_batch_size: int) -> None:
        """Raises `ValueError` where the configuration has more."""
        if not isinstance(max_batch_size, int) or max_batch_size < 0:
            raise ValueError(f"max_batch_size must be a number from 0 on, got {max_batch_size!r}.")
        has = self._config["max_batch_size"]
        if has > max_batch_size:
            place = f"in auto-complete-config function for model '{self._name}'"
            raise ValueError(
                f"configuration specified max_batch_size {has}, but {place} specified max_batch_size {max_batch_size}"
            )
        self._config["max_batch_size"] = max_batch_size

    def set_dynamic_batching(self) -> None:
        """Unless the configuration has a scheduler."""
        if not any(key in self._config for key in SCHEDULERS):
            self._config["dynamic_batching"] = {}

    def set_model_transaction_policy(self, transaction_policy_dict: Mapping[str, Any]) -> None:
        """`{"decoupled": True}`. Raises `ValueError` where the configuration says something else."""
        if not set(transaction_policy_dict) <= {"decoupled"}:
            where = f"model transaction property in auto-complete-config function for model '{self._name}'"
            raise ValueError(f"{where} contains property other than 'decoupled'.")
        if "decoupled" not in transaction_policy_dict:
            return
        wanted = bool(transaction_policy_dict["decoupled"])
        policy = self._config.get("model_transaction_policy")
        if policy is not None and bool(policy.get("decoupled")) != wanted:
            is_set = f"which is already set to '{bool(policy.get('decoupled'))}'"
            raise ValueError(
                f"trying to change decoupled property in auto-complete-config for model '{self._name}', {is_set}."
            )
        self._config["model_transaction_policy"] = {"decoupled": wanted}

    def add_input(self, input: Mapping[str, Any]) -> None:
        """`{"name": "X", "data_type": "TYPE_FP32", "dims": [-1]}`, and `optional`. Raises `ValueError`."""
        self._add("input", input, INPUT_KEYS)

    def add_output(self, output: Mapping[str, Any]) -> None:
        """`{"name": "Y", "data_type": "TYPE_FP32", "dims": [-1]}`. Raises `ValueError`."""
        self._add("output", output, OUTPUT_KEYS)

    @property
    def _name(self) -> str:
        return str(self._config.get("name", ""))

    def _add(self, kind: str, tensor: Mapping[str, Any], keys: Sequence[str]) -> None:
        place = f"in auto-complete-config function for model '{self._name}'"
        if "name" not in tensor:
            raise ValueError(f"{kind} {place} is missing 'name' property.")
        name = tensor["name"]
        strangers = set(tensor) - set(keys)
        if strangers:
            allowed = ", ".join(f"'{key}'" for key in keys[:-1]) + f" and '{keys[-1]}'"
            raise ValueError(f"{kind} '{name}' {place} contains property other than {allowed}.")
        for key in ("data_type", "dims"):
            if key not in tensor:
                raise ValueError(f"{kind} '{name}' {place} is missing '{key}' property.")
        data_type, dims = tensor["data_type"], tensor["dims"]
        dims = [dims] if isinstance(dims, int) else [int(each) for each in dims]
        has = next((each for each in self._config[kind] if each["name"] == name), None)
        if has is None:
            added = {"name": name, "data_type": data_type, "dims": dims}
            if "optional" in tensor:
                added["optional"] = bool(tensor["optional"])
            self._config[kind].append(added)
            return
        self._check_same(kind, has, data_type, dims)

    def _check_same(self, kind: str, has: dict[str, Any], data_type: str, dims: list[int]) -> None:
        name, known = has["name"], has.get("data_type", "TYPE_INVALID")
        if known != "TYPE_INVALID" and known != data_type:
            expected = f"configuration expects datatype {known} for {kind} '{name}'"
            raise ValueError(f"unable to load model '{self._name}', {expected}, model provides {data_type}")
        has["data_type"] = data_type
        known_dims = [int(each) for each in has.get("dims") or dims]
        if known_dims != dims:
            expected = f"the model expects dims {dims} but the model configuration specifies dims {known_dims}"
            raise ValueError(f"model '{self._name}', tensor '{name}': {expected}")
        has["dims"] = dims


def signature_of(config: Mapping[str, Any]) -> Signature:
    """What a configuration declares, for a model that takes each request by itself. Raises `ValueError`, naming the tensor."""
    return Signature(
        tuple(_spec(each) for each in config.get("input") or ()),
        tuple(_spec(each) for each in config.get("output") or ()),
        batches=config.get("max_batch_size", 0) > 0,
        decoupled=using_decoupled_model_transaction_policy(config),
        ragged=True,
    )


def _spec(tensor: Mapping[str, Any]) -> TensorSpec:
    word = word_of_configuration(str(tensor.get("data_type")))
    dims = tuple(tensor.get("dims") or ())
    if word is None or not dims or not all(isinstance(each, int) and (each > 0 or each == -1) for each in dims):
        said = f"data_type {tensor.get('data_type')!r} and dims {list(dims)}"
        raise ValueError(f"The tensor {tensor['name']!r} needs a data_type and dims from 1 on, or -1; it has {said}.")
    return TensorSpec(tensor["name"], DTYPES[word], dims, bool(tensor.get("optional")))


def get_input_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """One of its inputs, or None."""
    return _named(model_config.get("input", ()), name)


def get_output_config_by_name(model_config: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    """One of its outputs, or None."""
    return _named(model_config.get("output", ()), name)


def _named(tensors: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return next((each for each in tensors if each["name"] == name), None)


def using_decoupled_model_transaction_policy(model_config: Mapping[str, Any]) -> bool:
    """Whether a request has any number of answers."""
    return bool((model_config.get("model_transaction_policy") or {}).get("decoupled"))

"""What is wrong with the dynamic or sequence batching of a model configuration (contracts/open-inference.md, sections 4.3 and 4.5)."""

from collections.abc import Sequence

from ringserve.protocol.grpc.model_config_pb2 import ModelQueuePolicy, ModelSequenceBatching
from ringserve.server.model_configuration.checks import BATCH_SIZE_MAX, Checking
from ringserve.server.model_configuration.datatypes import dtype_of
from ringserve.server.scheduling.rules import CORRID, END, READY, START

LEVELS_MAX = 1000
PREFERRED_MAX = 256
_Control = ModelSequenceBatching.Control
KINDS = {
    _Control.CONTROL_SEQUENCE_START: START,
    _Control.CONTROL_SEQUENCE_READY: READY,
    _Control.CONTROL_SEQUENCE_END: END,
    _Control.CONTROL_SEQUENCE_CORRID: CORRID,
}
CORRID_DTYPES = ("uint64", "int64", "uint32", "int32", "bytes")


class SchedulingChecker(Checking):
    """Of its dynamic or sequence batching."""

    def check(self) -> None:
        """Raises `InvalidModel`."""
        if self._config.HasField("dynamic_batching"):
            self._check_dynamic()
        if self._config.HasField("sequence_batching"):
            self._check_sequences()

    def _check_dynamic(self) -> None:
        batching, path = self._config.dynamic_batching, "dynamic_batching"
        self._check_preferred(f"{path}.preferred_batch_size", batching.preferred_batch_size)
        levels = batching.priority_levels
        if levels > LEVELS_MAX:
            self._wrong(f"{path}.priority_levels", f"at most {LEVELS_MAX}", levels)
        if levels and not 1 <= batching.default_priority_level <= levels:
            self._wrong(f"{path}.default_priority_level", f"a level of 1 to {levels}", batching.default_priority_level)
        for level in batching.priority_queue_policy:
            if not 1 <= level <= levels:
                self._wrong(f"{path}.priority_queue_policy", f"levels of 1 to {levels}", level)
        if batching.preserve_ordering:
            policies = [batching.default_queue_policy, *batching.priority_queue_policy.values()]
            if levels > 1:
                self._wrong(f"{path}.preserve_ordering", "false where there are several priority_levels", True)
            if any(policy.timeout_action == ModelQueuePolicy.DELAY for policy in policies):
                self._wrong(f"{path}.preserve_ordering", "false beside the timeout_action DELAY", True)

    def _check_preferred(self, path: str, sizes: Sequence[int]) -> None:
        most = max(1, self._config.max_batch_size)
        if len(sizes) > PREFERRED_MAX:
            self._wrong(path, f"at most {PREFERRED_MAX} sizes", len(sizes))
        for size in sizes:
            if not 1 <= size <= most:
                self._wrong(path, f"sizes of 1 to {most}, the max_batch_size", size)

    def _check_sequences(self) -> None:
        batching, path = self._config.sequence_batching, "sequence_batching"
        kinds = [control.kind for each in batching.control_input for control in each.control]
        for index, each in enumerate(batching.control_input):
            self._check_control(each, f"{path}.control_input[{index}]")
        if len(set(kinds)) < len(kinds):
            self._wrong(
                f"{path}.control_input", "every kind of control once", [KINDS.get(kind, kind) for kind in kinds]
            )
        names = [each.name for each in batching.control_input]
        taken = {*(tensor.name for tensor in self._config.input)} & {*names}
        if len(set(names)) < len(names) or taken:
            self._wrong(f"{path}.control_input", "names that no other input has", names)
        if batching.HasField("oldest"):
            oldest = batching.oldest
            if not 0 <= oldest.max_candidate_sequences <= BATCH_SIZE_MAX:
                expected = f"0 to {BATCH_SIZE_MAX}"
                self._wrong(f"{path}.oldest.max_candidate_sequences", expected, oldest.max_candidate_sequences)
            self._check_preferred(f"{path}.oldest.preferred_batch_size", oldest.preferred_batch_size)
        utilization = batching.direct.minimum_slot_utilization
        if not 0.0 <= utilization <= 1.0:
            self._wrong(f"{path}.direct.minimum_slot_utilization", "a part of 0 to 1", utilization)

    def _check_control(self, given: ModelSequenceBatching.ControlInput, path: str) -> None:
        self._check_name(f"{path}.name", given.name)
        if len(given.control) != 1:
            self._wrong(f"{path}.control", "one control", len(given.control))
        control = given.control[0]
        kind = KINDS.get(control.kind)
        if kind is None:
            self._wrong(f"{path}.control[0].kind", f"one of {', '.join(KINDS.values())}", control.kind)
        values: list[Sequence[float]] = [control.int32_false_true, control.fp32_false_true, control.bool_false_true]
        said = [list(each) for each in values if each]
        if kind == CORRID:
            if said or dtype_of(control.data_type) not in CORRID_DTYPES:
                expected = (
                    "a data_type of TYPE_UINT64, TYPE_INT64, TYPE_UINT32, TYPE_INT32 or TYPE_STRING, and no values"
                )
                self._wrong(f"{path}.control[0]", expected, said or control.data_type)
        elif len(said) != 1 or len(said[0]) != 2:
            expected = "one of int32_false_true, fp32_false_true and bool_false_true, with two values"
            self._wrong(f"{path}.control[0]", expected, said)

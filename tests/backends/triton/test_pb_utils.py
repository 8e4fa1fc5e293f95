"""`triton_python_backend_utils`, as models use it. What is expected was tried out on Triton 2.51."""

import asyncio
import gc
import json
import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import dlpack

from ringserve.backends.contract import TensorResult
from ringserve.backends.triton import pb_utils
from ringserve.backends.triton.errors import answer_of
from ringserve.backends.ts.metrics import sink
from ringserve.protocol.errors import RingServeError

Tensor, Response, Error = pb_utils.Tensor, pb_utils.InferenceResponse, pb_utils.TritonError


# ---- tensors


def test_a_tensor_says_what_it_is() -> None:
    """By methods, as Triton's."""
    array = np.zeros((2, 3), np.float32)
    tensor = Tensor("x", array)
    assert (tensor.name(), tensor.shape(), tensor.is_cpu(), tensor.triton_dtype()) == ("x", [2, 3], True, 11)
    assert tensor.as_numpy() is array


@pytest.mark.parametrize(
    ("name", "array", "kind"),
    [
        ("x", [1, 2], TypeError),
        (1, np.zeros(1), TypeError),
        ("x", np.array(["text"]), pb_utils.TritonModelException),
        ("x", np.array([1j]), pb_utils.TritonModelException),
    ],
)
def test_what_is_no_tensor_is_refused(name: Any, array: Any, kind: type[Exception]) -> None:
    """Lists, and elements that the protocol has not."""
    with pytest.raises(kind):
        Tensor(name, array)


def test_tensors_come_from_torch_without_a_copy() -> None:
    """As tensors and as capsules."""
    source = torch.arange(3, dtype=torch.float32)
    by_object = Tensor.from_dlpack("x", source)
    by_capsule = Tensor.from_dlpack("x", dlpack.to_dlpack(source))  # type: ignore[attr-defined]
    source[0] = 7
    assert by_object.as_numpy().tolist() == by_capsule.as_numpy().tolist() == [7, 1, 2]


def test_bfloat16_comes_and_goes_by_dlpack() -> None:
    """numpy has no such type: its arrays are the bits."""
    source = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    tensor = Tensor.from_dlpack("x", source)
    assert tensor.triton_dtype() == 14
    assert tensor.in_memory().tolist() == [0x3F80, 0x4000]
    back = dlpack.from_dlpack(Tensor.of_request("x", tensor.in_memory(), "BF16"))
    assert back.dtype is torch.bfloat16
    assert back.tolist() == [1.0, 2.0]


def test_a_type_that_the_protocol_has_not_is_refused() -> None:
    """Whether numpy has it or not."""
    for dtype in (torch.complex64, torch.float8_e5m2):
        with pytest.raises(pb_utils.TritonModelException, match="which the protocol has not"):
            Tensor.from_dlpack("x", torch.empty(1, dtype=dtype))


def test_a_tensor_may_be_handed_on_under_another_name() -> None:
    """Without a look at its elements."""
    array = np.array([0x3F80], np.uint16)
    made = Tensor.from_dlpack("y", Tensor.of_request("x", array, "BF16"))
    assert (made.name(), made.triton_dtype()) == ("y", 14)
    assert made.in_memory() is array


def test_a_read_only_array_goes_as_a_copy() -> None:
    """A library that is handed the server's memory could write to it."""
    array = np.arange(3)
    array.flags.writeable = False
    tensor = dlpack.from_dlpack(Tensor("x", array))
    tensor[0] = 9
    assert array.tolist() == [0, 1, 2]


def test_texts_have_no_dlpack() -> None:
    """Nor has what is no tensor at all."""
    with pytest.raises(pb_utils.TritonModelException, match="does not have support for string tensors"):
        Tensor("x", np.array([b"a"], object)).to_dlpack()
    with pytest.raises(pb_utils.TritonModelException, match="expects a tensor or a capsule, got list"):
        Tensor.from_dlpack("x", [1])
    with pytest.raises(TypeError):
        Tensor.from_dlpack(1, np.zeros(1))  # type: ignore[arg-type]


def test_serialized_texts_are_read_back() -> None:
    """Four bytes of length before each."""
    encoded = pb_utils.serialize_byte_tensor(np.array([[b"ab", "c"]], object))
    assert encoded.tobytes() == b"\x02\0\0\0ab\x01\0\0\0c"
    assert pb_utils.deserialize_bytes_tensor(encoded).tolist() == [b"ab", b"c"]


# ---- datatypes


@pytest.mark.parametrize(
    ("name", "scalar", "number"),
    [
        ("TYPE_FP32", np.float32, 11),
        ("TYPE_STRING", np.object_, 13),
        ("TYPE_BOOL", bool, 1),
        ("TYPE_UINT64", np.uint64, 5),
    ],
)
def test_datatypes_have_three_names(name: str, scalar: Any, number: int) -> None:
    """The configuration's, numpy's and a number."""
    assert pb_utils.triton_string_to_numpy(name) is scalar
    assert pb_utils.numpy_to_triton_type(scalar) == number
    assert pb_utils.triton_to_numpy_type(number) is scalar


def test_what_numpy_has_not_has_no_name() -> None:
    """As in Triton."""
    for name in ("TYPE_BF16", "BYTES", "TYPE_NOPE"):
        with pytest.raises(KeyError):
            pb_utils.triton_string_to_numpy(name)
    with pytest.raises(KeyError):
        pb_utils.triton_to_numpy_type(14)
    assert pb_utils.numpy_to_triton_type("x") is None
    assert pb_utils.numpy_to_triton_type(np.complex64) is None


# ---- responses and errors


def test_a_response_has_tensors_by_name() -> None:
    """And parameters as JSON."""
    tensor = Tensor("y", np.zeros(1))
    response = Response([tensor], parameters={"a": 1, "b": "c"})
    assert pb_utils.get_output_tensor_by_name(response, "y") is tensor
    assert pb_utils.get_output_tensor_by_name(response, "z") is None
    assert (response.has_error(), response.error(), response.parameters()) == (False, None, '{"a":1,"b":"c"}')
    result = response.result()
    assert isinstance(result, TensorResult)
    assert result.parameters == {"a": 1, "b": "c"}


@pytest.mark.parametrize("arguments", [([1],), (5,), ([], "text")])
def test_what_is_no_response_is_refused(arguments: tuple[Any, ...]) -> None:
    """Tensors are tensors, and an error is a TritonError."""
    with pytest.raises(TypeError):
        Response(*arguments)


@pytest.mark.parametrize("parameters", [{"a": [1]}, {1: "a"}, [1]])
def test_parameters_that_cannot_travel_are_refused(parameters: Any) -> None:
    """They are bool, int, float or str by name."""
    with pytest.raises(pb_utils.TritonModelException, match="parameters"):
        Response(parameters=parameters)


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("UNKNOWN", 400),
        ("INTERNAL", 500),
        ("NOT_FOUND", 404),
        ("INVALID_ARG", 400),
        ("UNAVAILABLE", 503),
        ("UNSUPPORTED", 501),
        ("ALREADY_EXISTS", 400),
        ("CANCELLED", 400),
    ],
)
def test_a_models_error_is_read_as_its_own(code: str, status: int) -> None:
    """Its sentence, and the status of its code; without one it is internal."""
    answer = answer_of(Error("mine", getattr(Error, code)))
    assert (answer.message, answer.http_status) == ("mine", status)
    said = Response(error=Error("mine"))
    assert said.has_error()
    assert isinstance(said.result(), RingServeError)


def test_an_error_needs_a_text_and_a_code() -> None:
    """As in Triton, a number is no code."""
    for arguments in ((1,), ("x", 3)):
        with pytest.raises(TypeError):
            Error(*arguments)


# ---- other models, logs and metrics


def test_other_models_cannot_be_asked() -> None:
    """The sentence says what to do instead."""
    request = pb_utils.InferenceRequest(model_name="other", inputs=[], requested_output_names=["y"])
    asks: tuple[Callable[[], Any], ...] = (
        request.exec,
        lambda: asyncio.run(request.async_exec()),
        lambda: pb_utils.load_model("x"),
        lambda: pb_utils.unload_model("x"),
        lambda: pb_utils.is_model_ready("x"),
    )
    for ask in asks:
        with pytest.raises(pb_utils.TritonModelException, match="cannot ask another one here"):
            ask()
    with pytest.raises(pb_utils.TritonModelException, match="iterative sequences are not served"):
        request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
    with pytest.raises(pb_utils.TritonModelException, match="has a response sender"):
        request.get_response_sender()


def test_the_log_is_the_models(caplog: pytest.LogCaptureFixture) -> None:
    """With its levels."""
    caplog.set_level(logging.DEBUG)
    logger = pb_utils.Logger
    logger.log_info("a")
    logger.log_warn("b %s")
    logger.log_error("c")
    logger.log_verbose("d")
    logger.log("e", logger.WARNING)
    logger.log("f")
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "ERROR", "DEBUG", "WARNING", "INFO"]
    assert {record.name for record in caplog.records} == {"ringserve.model"}


class Recorded:
    """Keeps what is reported."""

    def __init__(self) -> None:
        self.values: list[tuple[str, str, tuple[tuple[str, str], ...], float]] = []

    def recorder(self, name: str, unit: str, kind: str, dimensions: Any) -> Any:
        values = self.values

        class Recorder:
            def record(self, value: float, request_ids: str) -> None:
                values.append((name, kind, dimensions, value))

        return Recorder()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """In place of a worker's."""
    found = Recorded()
    monkeypatch.setattr(sink, "_sink", found)
    return found


def test_metrics_go_where_handlers_metrics_go(recorded: Recorded) -> None:
    """Counters by what is added, gauges by what they are then, histograms by what was seen."""
    family = pb_utils.MetricFamily
    counter = family("n", "how many", family.COUNTER).Metric({"a": "b"})
    counter.increment(2)
    counter.increment(3)
    gauge = family(name="g", description="", kind=family.GAUGE).Metric(labels=None)
    gauge.set(7)
    gauge.increment(-2)
    family("h", "", family.HISTOGRAM).Metric({}, buckets=[1.0]).observe(0.5)
    labels = (("a", "b"),)
    assert recorded.values == [
        ("n", "COUNTER", labels, 2),
        ("n", "COUNTER", labels, 3),
        ("g", "GAUGE", (), 7),
        ("g", "GAUGE", (), 5),
        ("h", "HISTOGRAM", (), 0.5),
    ]
    assert (counter.value(), gauge.value()) == (5, 5)


@pytest.mark.parametrize(
    ("kind", "method", "value"),
    [
        ("COUNTER", "set", 1),
        ("COUNTER", "increment", -1),
        ("COUNTER", "observe", 1),
        ("GAUGE", "observe", 1),
        ("HISTOGRAM", "increment", 1),
        ("GAUGE", "set", float("nan")),
    ],
)
def test_a_metric_refuses_what_its_kind_has_not(recorded: Recorded, kind: str, method: str, value: float) -> None:
    """And numbers that are none."""
    metric = pb_utils.MetricFamily("n", "", getattr(pb_utils.MetricFamily, kind)).Metric()
    with pytest.raises(pb_utils.TritonModelException):
        getattr(metric, method)(value)


# ---- configurations


def completing(**config: Any) -> pb_utils.ModelConfig:
    """What a model completes."""
    return pb_utils.ModelConfig({"name": "m", "max_batch_size": 0, "input": [], "output": [], **config})


X = {"name": "X", "data_type": "TYPE_FP32", "dims": [-1]}


def test_a_configuration_is_completed() -> None:
    """Repeating what it says changes nothing."""
    config = completing(input=[X])
    config.add_input(X)
    config.add_input({"name": "Z", "data_type": "TYPE_INT8", "dims": 3, "optional": True})
    config.add_output({"name": "Y", "data_type": "TYPE_STRING", "dims": (1,)})
    config.set_max_batch_size(4)
    config.set_max_batch_size(8)
    config.set_dynamic_batching()
    config.set_model_transaction_policy({})
    config.set_model_transaction_policy({"decoupled": True})
    assert json.loads(json.dumps(config.as_dict())) == {
        "name": "m",
        "max_batch_size": 8,
        "input": [X, {"name": "Z", "data_type": "TYPE_INT8", "dims": [3], "optional": True}],
        "output": [{"name": "Y", "data_type": "TYPE_STRING", "dims": [1]}],
        "dynamic_batching": {},
        "model_transaction_policy": {"decoupled": True},
    }
    assert pb_utils.using_decoupled_model_transaction_policy(config.as_dict())
    found = pb_utils.get_output_config_by_name(config.as_dict(), "Y")
    assert found is not None
    assert found["dims"] == [1]
    assert pb_utils.get_input_config_by_name(config.as_dict(), "Y") is None


def test_a_scheduler_that_is_there_stays() -> None:
    """Sequences are scheduled by their own rules."""
    config = completing(sequence_batching={})
    config.set_dynamic_batching()
    assert "dynamic_batching" not in config.as_dict()


@pytest.mark.parametrize(
    ("method", "argument", "message"),
    [
        ("add_input", {**X, "dims": [4]}, "model 'm', tensor 'X': the model expects dims [4] but the model configuration specifies dims [-1]"),
        ("add_input", {**X, "data_type": "TYPE_INT8"}, "unable to load model 'm', configuration expects datatype TYPE_FP32 for input 'X', model provides TYPE_INT8"),
        ("add_input", {"dims": [1]}, "input in auto-complete-config function for model 'm' is missing 'name' property."),
        ("add_input", {"name": "B", "dims": [1]}, "input 'B' in auto-complete-config function for model 'm' is missing 'data_type' property."),
        ("add_output", {"name": "B", "data_type": "TYPE_FP32"}, "output 'B' in auto-complete-config function for model 'm' is missing 'dims' property."),
        ("add_input", {**X, "nope": 1}, "input 'X' in auto-complete-config function for model 'm' contains property other than 'name', 'data_type', 'dims' and 'optional'."),
        ("add_output", {**X, "optional": True}, "output 'X' in auto-complete-config function for model 'm' contains property other than 'name', 'data_type' and 'dims'."),
        ("set_max_batch_size", 4, "configuration specified max_batch_size 8, but in auto-complete-config function for model 'm' specified max_batch_size 4"),
        ("set_max_batch_size", "4", "max_batch_size must be a number from 0 on, got '4'."),
        ("set_model_transaction_policy", {"x": 1}, "model transaction property in auto-complete-config function for model 'm' contains property other than 'decoupled'."),
        ("set_model_transaction_policy", {"decoupled": False}, "trying to change decoupled property in auto-complete-config for model 'm', which is already set to 'True'."),
    ],
)  # fmt: skip
def test_what_contradicts_the_configuration_is_refused(method: str, argument: Any, message: str) -> None:
    """In Triton's words."""
    config = completing(input=[X], max_batch_size=8, model_transaction_policy={"decoupled": True})
    with pytest.raises(ValueError) as caught:
        getattr(config, method)(argument)
    assert str(caught.value) == message


def test_nothing_of_this_is_garbage() -> None:
    """A tensor holds the server's memory for as long as it lives, so none may wait for the collector."""
    gc.collect()
    gc.disable()
    try:
        tensor = Tensor.of_request("x", np.zeros(2), "FP64")
        response = Response([tensor])
        response.result()
        del tensor, response
        assert gc.collect() == 0
    finally:
        gc.enable()

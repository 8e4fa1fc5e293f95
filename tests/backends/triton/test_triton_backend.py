"""Triton's Python models, unchanged. What is expected of wrong ones was tried out on Triton 2.51."""

import json

import pytest

from ringserve.backends.contract import Batch, ContractBroken, TensorResult
from ringserve.protocol.errors import InvalidModel, NotFound, OutOfResources, PredictionFailed
from ringserve.protocol.tensor import Signature, TensorSpec
from tests.backends.triton.models import (
    CONFIG,
    FLAT,
    SIGNATURE,
    Load,
    call,
    method,
    run,
)

# ---- what a model is told


def test_a_model_is_initialized_with_texts(load: Load) -> None:
    """As Triton's: the configuration is JSON, and nothing is a number."""
    initialize = method("self.args = args", head="def initialize(self, args):")
    source = initialize + method(
        "said = json.dumps(self.args) + '\\n' + pb_utils.get_model_dir()",
        "raise ValueError(said)",
    )
    backend = load(source, version="2")
    with pytest.raises(PredictionFailed) as caught:
        run(backend, call(1))
    said, model_dir = caught.value.message.partition("ValueError: ")[2].split("\n")
    folder = model_dir.removesuffix("/2")
    arguments = json.loads(said)
    assert json.loads(arguments.pop("model_config")) == CONFIG
    assert arguments == {
        "model_instance_kind": "CPU",
        "model_instance_name": "m_0",
        "model_instance_device_id": "0",
        "model_repository": folder,
        "model_version": "2",
        "model_name": "m",
    }


def test_a_request_says_what_its_client_said(load: Load) -> None:
    """Id, sequence, marks, parameters, and the outputs: all of them where none was asked for."""
    backend = load(
        method(
            "r = requests[0]",
            "said = [r.request_id(), r.correlation_id(), r.flags(), json.loads(r.parameters())]",
            "said += [sorted(r.requested_output_names()), r.timeout(), r.is_cancelled(), r.model_name(), r.model_version()]",
            "said += [r.trace().get_context(), [(t.name(), t.shape(), t.triton_dtype()) for t in r.inputs()]]",
            "said += [pb_utils.get_input_tensor_by_name(r, 'nope')]",
            "return [pb_utils.InferenceResponse(error=pb_utils.TritonError(json.dumps(said)))]",
        ),
        version="3",
    )
    asked = call(1, 2, sequence_id="s", sequence_end=True, parameters={"a": 1}, request_id="r")
    (answer,) = run(backend, asked)
    inputs = [["X", [1, 2], 11]]
    assert json.loads(answer.message) == ["r", "s", 2, {"a": 1}, ["Y"], 0, False, "m", 3, None, inputs, None]


def test_every_request_is_an_array_of_its_own(load: Load) -> None:
    """With its own rows, and each gets its own answer; the arrays are the server's memory."""
    backend = load(method("return [response(x(r) * len(requests)) for r in requests]"))
    assert run(backend, call(1), call(2, 3), call(4)) == [[[3]], [[6, 9]], [[12]]]


def test_without_a_batch_dimension_requests_come_one_by_one(load: Load) -> None:
    """As in Triton, where such a model has no batches; one that fails leaves the others."""
    backend = load(
        method("assert len(requests) == 1 and x(requests[0])[0, 0] != 2, 'two'", "return [response(x(requests[0]))]"),
        signature=FLAT,
    )
    first, failed, last = run(backend, call(1), call(2), call(3))
    assert (first, last) == ([[1]], [[3]])
    assert "AssertionError: two" in failed.message


# ---- what it answers


def test_answers_are_what_the_client_wants(load: Load) -> None:
    """An output that it did not ask for, or that nobody declared, is left out."""
    signature = Signature(SIGNATURE.inputs, (*SIGNATURE.outputs, TensorSpec("Z", "float32", (-1,))))
    backend = load(
        method(
            "return [pb_utils.InferenceResponse([pb_utils.Tensor(n, x(r)) for n in ('W', 'Y', 'Z')], parameters={'p': 1})",
            "        for r in requests]",
        ),
        signature=signature,
    )
    batch = Batch(2, calls=[call(1), call(1, outputs=("Z",))])
    backend.execute(batch)
    assert [sorted(each.outputs) for each in batch.results if isinstance(each, TensorResult)] == [["Y", "Z"], ["Z"]]
    assert [each.parameters for each in batch.results if isinstance(each, TensorResult)] == [{"p": 1}] * 2


def test_texts_are_sent_as_triton_sends_them(load: Load) -> None:
    """Bytes as they are, everything else as its text."""
    signature = Signature(SIGNATURE.inputs, (TensorSpec("Y", "bytes", (-1,)),))
    line = "return [response(np.array([[b'a', 'bé', 3, 2.5, None]], object)), response(np.array([[b'ab', b'c']]))]"
    backend = load(method(line), signature=signature)
    assert run(backend, call(1), call(1)) == [[[b"a", "bé".encode(), b"3", b"2.5", b"None"]], [[b"ab", b"c"]]]


def test_an_error_is_its_requests_only(load: Load) -> None:
    """In the model's words, with the status of its code, and without its tensors."""
    error = "error=pb_utils.TritonError('mine', pb_utils.TritonError.NOT_FOUND)"
    backend = load(method(f"return [response(x(requests[0]), {error}), response(x(requests[1]))]"))
    failed, answered = run(backend, call(1), call(2))
    assert (type(failed), failed.message, answered) == (NotFound, "mine", [[2]])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("raise ValueError('boom')", "ValueError: boom"),
        ("exit(3)", "SystemExit: 3"),
        ("return []", "Number of InferenceResponse objects do not match the number of InferenceRequest objects. InferenceRequest(s) size is:1, and InferenceResponse(s) size is:0"),
        ("return [1]", "Expected an 'InferenceResponse' object in the execute function return list, found type '<class 'int'>'."),
        ("return 5", "Expected a list in the execute return, found type '<class 'int'>'."),
        ("return (response(x(requests[0])),)", "Expected a list in the execute return, found type '<class 'tuple'>'."),
    ],
)  # fmt: skip
def test_a_batch_that_is_not_answered_says_why(load: Load, line: str, message: str) -> None:
    """In Triton's words."""
    with pytest.raises(PredictionFailed) as caught:
        run(load(method(line)), call(1))
    assert caught.value.message == f"Failed to process the request(s) for model 'm_0', message: {message}"
    assert caught.value.http_status == 500


def test_a_model_that_says_nothing_is_told_on(load: Load) -> None:
    """Triton's client waits for ever."""
    (answer,) = run(load(method("return None")), call(1))
    assert isinstance(answer, ContractBroken)
    assert answer.message.endswith("The model let go of the request without a response.")


def test_memory_that_runs_out_is_what_it_is(load: Load) -> None:
    """The server treats such a worker by its own rules."""
    with pytest.raises(OutOfResources):
        run(load(method("raise MemoryError")), call(1))


def test_reshaped_tensors_are_the_models_shape_inside(load: Load) -> None:
    """And the client's outside."""
    config = {
        **CONFIG,
        "input": [{"name": "X", "dims": [4], "reshape": {"shape": [2, 2]}}],
        "output": [{"name": "Y", "dims": [4], "reshape": {"shape": [2, 2]}}],
    }
    signature = Signature((TensorSpec("X", "float32", (4,)),), (TensorSpec("Y", "float32", (4,)),))
    backend = load(
        method("return [response(x(r).transpose(0, 2, 1)) for r in requests]"), signature=signature, config=config
    )
    assert run(backend, call(1, 2, 3, 4)) == [[[1, 3, 2, 4]]]


# ---- loading


COMPLETE = method(
    "config.add_input({'name': 'X', 'data_type': 'TYPE_FP32', 'dims': [-1]})",
    "config.add_output({'name': 'Y', 'data_type': 'TYPE_FP32', 'dims': [-1]})",
    "config.set_max_batch_size(8)",
    "config.set_dynamic_batching()",
    "return config",
    head="@staticmethod\n    def auto_complete_config(config):",
)
ECHO = method("return [response(x(r)) for r in requests]")


def test_a_model_completes_its_configuration(load: Load) -> None:
    """What it added is what the supervisor is told."""
    backend = load(COMPLETE, ECHO, signature=Signature(), config={"name": "m"})
    assert backend.completed is not None
    assert (backend.completed["max_batch_size"], backend.completed["dynamic_batching"]) == (8, {})
    assert run(backend, call(1)) == [[[1]]]


def test_a_complete_configuration_stays_as_it_is(load: Load) -> None:
    """Nothing was completed."""
    tensor = {"data_type": "TYPE_FP32", "dims": [-1]}
    config = {"name": "m", "max_batch_size": 8, "input": [{"name": "X", **tensor}], "output": [{"name": "Y", **tensor}]}
    backend = load(COMPLETE, ECHO, config={**config, "dynamic_batching": {}})
    assert backend.completed is None


def test_completing_may_be_forbidden(load: Load) -> None:
    """Then the configuration must be complete."""
    with pytest.raises(InvalidModel, match="The configuration of m declares no inputs"):
        load(COMPLETE, ECHO, signature=Signature(), config={"name": "m"}, beside={"triton_strict": True})


@pytest.mark.parametrize(
    ("methods", "kind", "message"),
    [
        (["    pass\n"], InvalidModel, "TritonPythonModel in 2/model.py has no method execute"),
        ([ECHO, method("raise ValueError('no weights')", head="def initialize(self, args):")], ValueError, "no weights"),
        ([ECHO, method("return None", head="@staticmethod\n    def auto_complete_config(config):")], InvalidModel, "must return a valid pb.ModelConfig object"),
        (["    pass\nTritonPythonModel = 5\n"], InvalidModel, "2/model.py of the model m has no class TritonPythonModel"),
        ([ECHO, COMPLETE.replace("TYPE_FP32", "FP32")], InvalidModel, "The configuration of m is not complete. The tensor 'X' needs a data_type and dims"),
    ],
)  # fmt: skip
def test_a_model_that_cannot_be_served_is_told_why(
    load: Load, methods: list[str], kind: type[Exception], message: str
) -> None:
    """When it is loaded."""
    with pytest.raises(kind, match=message.replace(".", r"\.")):
        load(*methods)


def test_inputs_that_the_server_adds_stay_declared(load: Load) -> None:
    """The controls of a sequence are in no configuration."""
    start = TensorSpec("START", "int32", (1,), optional=True)
    backend = load(COMPLETE, ECHO, signature=Signature((*SIGNATURE.inputs, start), SIGNATURE.outputs))
    assert [spec.name for spec in backend._signature.inputs] == ["X", "START"]


def test_a_model_finalizes_once(load: Load) -> None:
    """When its worker stops."""
    backend = load(
        ECHO,
        method("pb_utils.Logger.log_info('finalized')", "raise_once.append(1)", head="def finalize(self):"),
        "raise_once = []\n",
    )
    model = backend._model
    backend.close()
    backend.close()
    import_of = type(model).finalize.__globals__
    assert import_of["raise_once"] == [1]

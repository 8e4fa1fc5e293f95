"""Running handlers: their data, their context, their answers and their failures."""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ringserve.backends.contract import InputPart, Reply, Request
from ringserve.backends.handler_backend import HandlerBackend
from ringserve.protocol.errors import OutOfResources, PredictionFailed

Load = Callable[..., HandlerBackend]
Ask = Callable[..., list[Any]]
RequestOf = Callable[..., Request]

TORCHLESS = """
import sys
from pathlib import Path
from ringserve.backends.contract import Batch, LoadedModel, Request
from ringserve.backends.registry import create_backend
backend = create_backend("handler")
backend.load(LoadedModel("m", "1.0", Path(sys.argv[1]), "handler.py", {}, {}, 8))
backend.execute(Batch(1, requests=[Request("1", {}, ())]))
assert "torch" not in sys.modules
"""


def function(*lines: str, first: str = "") -> str:
    """A function-style handler with this body, which runs for batches only."""
    body = "\n".join(f"    {line}" for line in lines)
    return f"{first}\ndef handle(data, context):\n    if data is None:\n        return None\n{body}\n"


def test_a_class_handler_keeps_its_state_between_batches(
    load_handler_backend: Load, request_of: RequestOf, ask: Ask, body_of: Callable[..., Any]
) -> None:
    """The context lives as long as the worker, and handlers keep things on it."""
    source = (
        "class Mine:\n    def initialize(self, context):\n        context.cache = [context.system_properties]\n"
        "    def handle(self, data, context):\n        context.cache.append(1)\n"
        "        return [[len(context.cache), context.cache[0]]] * len(data)\n"
    )
    backend = load_handler_backend(source, gpu_id=None, batch_size_max=4, server_version="1.2.3")
    assert body_of(ask(backend, [request_of(1)])[0])[0] == 2
    count, properties = body_of(ask(backend, [request_of(1)])[0])
    assert count == 3
    assert properties == {
        "model_dir": properties["model_dir"],
        "gpu_id": None,
        "batch_size": 4,
        "server_name": "MMS",
        "server_version": "1.2.3",
        "limit_max_image_pixels": True,
    }
    assert Path(properties["model_dir"]).name == "model"


def test_several_parts_are_several_inputs(load_handler_backend: Load, ask: Ask) -> None:
    """A form's fields arrive by name, each by its own content type, binary as bytearray."""
    backend = load_handler_backend(function("return [sorted((k, type(v).__name__) for k, v in data[0].items())]"))
    kinds = [("image", "image/png"), ("meta", "application/json"), ("note", "text/plain"), ("raw", "")]
    parts = [InputPart(name, kind, memoryview(b"[1]")) for name, kind in kinds]
    reply = ask(backend, [Request("1", {}, parts)])[0]
    assert json.loads(reply.body) == [["image", "bytearray"], ["meta", "list"], ["note", "str"], ["raw", "bytearray"]]


def test_decoding_can_be_switched_off(load_handler_backend: Load, request_of: RequestOf, ask: Ask) -> None:
    """`decode_input_request=false`."""
    backend = load_handler_backend(function("return [type(data[0]['body']).__name__]"), decode_input_request=False)
    assert ask(backend, [request_of([1])])[0].body == b"bytearray"


def test_each_row_has_its_own_id_and_headers(load_handler_backend: Load, request_of: RequestOf, ask: Ask) -> None:
    """By row, in any case, and new for every batch."""
    line = "return [[context.get_request_id(i), context.get_request_header(i, 'X-Who')] for i in range(len(data))]"
    backend = load_handler_backend(function(line))
    ask(backend, [request_of(1, {"x-who": "old"})] * 3)
    replies = ask(backend, [request_of(1, {"x-who": "ann"}), request_of(1)])
    assert [json.loads(reply.body) for reply in replies] == [["request-1", "ann"], ["request-1", None]]


@pytest.mark.parametrize(
    ("expression", "body", "content_type"),
    [
        ("b'\\x00\\x01'", b"\x00\x01", "application/octet-stream"),
        ("bytearray(b'ab')", b"ab", "application/octet-stream"),
        ("'caf\\u00e9'", "café".encode(), "text/plain; charset=utf-8"),
        ("{'a': [1, 2.5]}", b'{\n  "a": [\n    1,\n    2.5\n  ]\n}', "application/json"),
        ("[float('nan')]", b"[\n  NaN\n]", "application/json"),
        ("'caf\\u00e9',", b'[\n  "caf\\u00e9"\n]', "application/json"),
        ("None", b"null", "application/json"),
    ],
)
def test_an_answer_is_encoded_by_its_type(
    load_handler_backend: Load, request_of: RequestOf, ask: Ask, expression: str, body: bytes, content_type: str
) -> None:
    """Body and content type of every kind of element."""
    reply = ask(load_handler_backend(function(f"return [({expression})]")), [request_of(1)])[0]
    assert reply == Reply(body, content_type)


def test_a_tensor_is_answered_as_its_file(load_handler_backend: Load, request_of: RequestOf, ask: Ask) -> None:
    """And a row of a batch does not carry the other rows along."""
    backend = load_handler_backend(function("return list(torch.arange(20000.0).reshape(2, -1))", first="import torch"))
    replies = ask(backend, [request_of(1)] * 2)
    loaded = torch.load(io.BytesIO(replies[1].body), weights_only=True)
    assert torch.equal(loaded, torch.arange(10000.0, 20000.0))
    assert loaded.untyped_storage().nbytes() == 40_000
    assert replies[1].content_type == "application/octet-stream"


def test_a_handler_without_torch_does_not_load_torch(make_model: Callable[..., Any]) -> None:
    """Neither the backend nor the check for tensors imports it."""
    model = make_model({"handler.py": function("return [[0.5]]")})
    subprocess.run([sys.executable, "-P", "-c", TORCHLESS, str(model.model_dir)], check=True, timeout=60)


@pytest.mark.parametrize("expression", ["None", "{}", "('a',)", "'a'"])
def test_an_answer_that_is_no_list_fails_the_batch(
    load_handler_backend: Load, request_of: RequestOf, ask: Ask, expression: str
) -> None:
    """TorchServe's sentence."""
    with pytest.raises(PredictionFailed, match=r"^Invalid model predict output$"):
        ask(load_handler_backend(function(f"return {expression}")), [request_of(1)])


def test_a_wrong_count_fails_the_batch(load_handler_backend: Load, request_of: RequestOf, ask: Ask) -> None:
    """The sentence says both numbers."""
    with pytest.raises(PredictionFailed, match=r"^number of batch response mismatched, expect: 3, got: 2\.$") as caught:
        ask(load_handler_backend(function("return [1, 2]")), [request_of(1)] * 3)
    assert caught.value.http_status == 503


def test_an_answer_that_cannot_be_encoded_fails_its_row_only(
    load_handler_backend: Load, request_of: RequestOf, ask: Ask
) -> None:
    """The other clients of the batch get their answers."""
    replies = ask(load_handler_backend(function("return [1, {2}, '\\ud800']")), [request_of(1)] * 3)
    assert replies[0] == Reply(b"1", "application/json")
    for failure in replies[1:]:
        assert isinstance(failure, PredictionFailed)
        assert failure.message == "Unsupported model output data type."


def test_status_headers_and_content_type_are_the_rows_own(
    load_handler_backend: Load, request_of: RequestOf, ask: Ask
) -> None:
    """Header values become text; the next batch starts afresh."""
    source = function(
        "if data[0]['body']:",
        "    context.set_response_status(418, 'teapot', 1)",
        "    context.set_response_header(1, 'X-Count', 3)",
        "    context.set_response_content_type(0, 'text/html')",
        "    context.set_response_header(1, 'Content-Type', 'image/png')",
        "return ['a', 'b']",
    )
    backend = load_handler_backend(source)
    replies = ask(backend, [request_of(1), request_of(1)])
    assert replies == [Reply(b"a", "text/html"), Reply(b"b", "image/png", 418, "teapot", {"X-Count": "3"})]
    plain = "text/plain; charset=utf-8"
    assert ask(backend, [request_of(0), request_of(0)]) == [Reply(b"a", plain), Reply(b"b", plain)]


def test_one_status_may_be_set_on_every_row(load_handler_backend: Load, request_of: RequestOf, ask: Ask) -> None:
    """`set_all_response_status`."""
    backend = load_handler_backend(function("context.set_all_response_status(202, 'later')", "return ['a', 'b']"))
    assert [(reply.status, reply.phrase) for reply in ask(backend, [request_of(1)] * 2)] == [(202, "later")] * 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("context.set_response_header(0, 'X', 'a\\r\\nSet-Cookie: b')", "header 'X' to a value with a line break"),
        ("context.set_response_status('ok', '', 0)", "status to 'ok'"),
        ("context.set_response_status(99, '', 0)", "status to 99"),
    ],
)
def test_what_http_cannot_say_fails_the_row(
    load_handler_backend: Load, request_of: RequestOf, ask: Ask, line: str, message: str
) -> None:
    """A handler that copies a client's words into a header cannot be made to send headers of the client's."""
    failure = ask(load_handler_backend(function(line, "return ['a']")), [request_of(1)])[0]
    assert isinstance(failure, PredictionFailed)
    assert message in failure.message


@pytest.mark.parametrize("code", [404, 513])
@pytest.mark.parametrize("module", ["ts.utils.util", "ts.service"])
def test_a_prediction_exception_carries_its_own_status(
    load_handler_backend: Load, request_of: RequestOf, ask: Ask, module: str, code: int
) -> None:
    """Under both names of the class."""
    source = function(f"raise Mine('no such thing', {code})", first=f"from {module} import PredictionException as Mine")
    with pytest.raises(PredictionFailed, match=r"^no such thing$") as caught:
        ask(load_handler_backend(source), [request_of(1)])
    assert caught.value.http_status == code


def test_a_prediction_exception_is_never_a_success(load_handler_backend: Load, request_of: RequestOf, ask: Ask) -> None:
    """TorchServe answers 200 to code 200."""
    first = "from ts.service import PredictionException"
    with pytest.raises(PredictionFailed) as caught:
        ask(load_handler_backend(function("raise PredictionException('odd', 200)", first=first)), [request_of(1)])
    assert caught.value.http_status == 500


@pytest.mark.parametrize("statement", ["raise MemoryError", "raise RuntimeError('CUDA error: out of memory')"])
def test_running_out_of_memory_is_said(
    load_handler_backend: Load, request_of: RequestOf, ask: Ask, statement: str
) -> None:
    """Of the host or of the device."""
    with pytest.raises(OutOfResources, match=r"^Out of resources$") as caught:
        ask(load_handler_backend(function(statement)), [request_of(1)])
    assert caught.value.http_status == 507


@pytest.mark.parametrize("statement", ["1 / 0", "import sys; sys.exit(0)", "raise KeyboardInterrupt"])
def test_whatever_a_handler_raises_the_worker_lives(
    load_handler_backend: Load, request_of: RequestOf, ask: Ask, statement: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Also what usually ends a process."""
    with pytest.raises(PredictionFailed, match=r"^Prediction failed$"):
        ask(load_handler_backend(function(statement)), [request_of(1)])
    assert "Traceback" in caplog.text


def test_what_a_handler_raises_while_loading_comes_through(load_handler_backend: Load) -> None:
    """The worker reports it with its traceback."""
    with pytest.raises(ZeroDivisionError):
        load_handler_backend("def handle(data, context):\n    1 / 0")

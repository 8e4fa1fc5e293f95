"""TorchServe's Context, as handlers use it."""

import pytest

from ringserve.backends.ts.context import Context, RequestProcessor


@pytest.fixture
def context() -> Context:
    """A context as handlers' own tests build one."""
    return Context("mnist", "/models/mnist", {"model": {}}, 4, 1, "0.12.0", model_yaml_config={"a": 1})


def test_it_describes_the_model(context: Context) -> None:
    """Attributes and system properties under TorchServe's names."""
    assert (context.model_name, context.manifest, context.model_yaml_config) == ("mnist", {"model": {}}, {"a": 1})
    assert context.system_properties["model_dir"] == "/models/mnist"
    assert context.system_properties["gpu_id"] == 1
    assert context.stopping_criteria is None


def test_without_a_configuration_there_is_an_empty_one() -> None:
    """Handlers call `.get` on it."""
    assert Context("m", "/m", None, 1, None, "1").model_yaml_config == {}


def test_before_the_first_batch_every_question_has_an_answer(context: Context) -> None:
    """`initialize` may share code with `handle`."""
    assert context.get_request_header(0, "explain") is None
    assert context.get_request_id() is None
    assert context.get_sequence_id(0) == ""
    context.set_response_status(404, "gone")
    assert context.get_response_status(0) == (404, "gone")


def test_a_batch_replaces_the_one_before(context: Context) -> None:
    """Ids, headers and what was set on responses."""
    context.begin_batch(["a", "b"], [RequestProcessor({"x": "1"}), RequestProcessor({})])
    context.set_response_header(1, "k", "v")
    context.set_response_content_type(1, "text/html")
    assert context.get_response_headers(1) == {"k": "v", "content-type": "text/html"}
    assert context.get_response_content_type(1) == "text/html"
    context.begin_batch(["c", "d"], [RequestProcessor({}), RequestProcessor({"x": "2"})])
    assert context.request_ids == {0: "c", 1: "d"}
    assert context.get_request_id(1) == "d"
    assert context.get_all_request_header(1) == {"x": "2"}
    assert context.get_response_headers(1) == {}


def test_the_sequence_header_may_be_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By TorchServe's environment variables."""
    monkeypatch.setenv("TS_REQUEST_SEQUENCE_ID", "x-seq")
    context = Context("m", "/m", None, 1, None, "1")
    context.begin_batch(["a"], [RequestProcessor({"x-seq": "s1"})])
    assert context.header_key_sequence_id == "x-seq"
    assert context.get_sequence_id(0) == "s1"
    assert context.header_key_sequence_start == "ts_request_sequence_start"

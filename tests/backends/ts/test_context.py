"""TorchServe's Context, as handlers use it."""

import copy

import pytest

from ringserve.backends.contract import BatchControl
from ringserve.backends.ts.context import Context, RequestHeaders, RequestProcessor
from ringserve.backends.ts.metrics.metric_cache_yaml_impl import MetricsCacheYamlImpl


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
    assert context.get_sequence_id(0) is None
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


def test_a_copy_goes_on_with_the_batch_it_was_made_of(context: Context) -> None:
    """As TorchServe's asynchronous handlers make one. Both lead to the same clients."""
    control = BatchControl()
    context.metrics = MetricsCacheYamlImpl()
    context.begin_batch(["a"], [RequestProcessor(RequestHeaders({"x-who": "ann"}))], control)
    context.set_response_header(0, "k", "v")
    context.cache = {"state": [1]}  # type: ignore[attr-defined]
    clone = copy.deepcopy(context)
    context.begin_batch(["b"], [RequestProcessor({})])
    context.cache["state"].append(2)  # type: ignore[attr-defined]
    assert (clone.get_request_id(), clone.get_request_header(0, "X-Who")) == ("a", "ann")
    assert (clone.get_response_headers(0), clone.cache) == ({"k": "v"}, {"state": [1]})  # type: ignore[attr-defined]
    assert clone.control is control
    assert clone.metrics.request_ids == {0: "a"}


def test_what_is_put_into_the_response_headers_is_set(context: Context) -> None:
    context.get_response_headers(0)["x-mine"] = "1"
    assert context.request_processor[0].get_response_header("x-mine") == "1"
    assert not context.request_processor[0].untouched


def test_to_ask_for_a_header_sets_nothing(context: Context) -> None:
    assert context.get_response_content_type(0) is None
    assert context.request_processor[0].get_response_header("x") is None
    assert context.request_processor[0].untouched

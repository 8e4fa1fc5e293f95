"""tritonclient, unmodified, over HTTP: every datatype, in both forms."""

import asyncio
import math
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from ringserve.protocol.datatypes import DTYPES
from ringserve.server.testing import ServerProcess

ARRAYS = {
    datatype: np.array([[True, False, True]]) if datatype == "BOOL" else np.array([[1, 2, 0]], dtype)
    for datatype, dtype in DTYPES.items()
    if datatype not in ("BF16", "BYTES")
}
ARRAYS["FP32"] = np.array([[1.5, -0.0, 3e38]], np.float32)
ARRAYS["UINT64"] = np.array([[2**64 - 1, 0]], np.uint64)
ARRAYS["INT64"] = np.array([[-(2**63), 2**63 - 1]], np.int64)
ARRAYS["BYTES"] = np.array([["é", "", "a\0b"], ["x", "y", "z" * 5000]], object)


@pytest.fixture(scope="module")
def client(v2_server: ServerProcess) -> Any:
    with triton.InferenceServerClient(v2_server.inference_url.removeprefix("http://")) as client:
        yield client


def tensor(name: str, array: Any, *, binary: bool) -> triton.InferInput:
    made = triton.InferInput(name, array.shape, np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def refused(call: Any, *args: Any, **more: Any) -> str:
    with pytest.raises(InferenceServerException) as caught:
        call(*args, **more)
    return str(caught.value)


def test_the_server_and_its_models_are_described(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    about = client.get_server_metadata()
    assert about["name"] == "ringserve"
    assert {"binary_tensor_data", "classification", "parameters"} <= set(about["extensions"])
    assert client.is_model_ready("sums")
    assert client.is_model_ready("sums", "1.0")
    assert not client.is_model_ready("nobody")
    found = client.get_model_metadata("sums")
    assert (found["name"], found["versions"]) == ("sums", ["1.0"])
    assert found["inputs"] == [{"name": each, "datatype": "FP32", "shape": [-1, 3]} for each in ("left", "right")]
    assert client.get_model_metadata("words")["inputs"][0] == {"name": "text_input", "datatype": "BYTES", "shape": [1]}
    assert client.get_model_metadata("handler")["inputs"] == []
    config = client.get_model_config("scores")
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (4, [3])
    for call in (client.get_model_metadata, client.get_model_config):
        assert "Request for unknown model: 'nobody' is not found" in refused(call, "nobody")
        assert "Request for unknown model: 'sums' version 7 is not found" in refused(call, "sums", "7")


@pytest.mark.parametrize("sent_binary", [True, False])
@pytest.mark.parametrize("got_binary", [True, False])
def test_every_datatype_comes_back_as_it_went(
    client: triton.InferenceServerClient, sent_binary: bool, got_binary: bool
) -> None:
    for datatype, array in ARRAYS.items():
        if datatype == "FP16" and not sent_binary:
            continue  # this client sends those in the binary form only
        wanted = [triton.InferRequestedOutput(f"OUT_{datatype}", binary_data=got_binary)]
        inputs = [tensor(datatype, array, binary=sent_binary)]
        result = client.infer("types", inputs, outputs=wanted, request_id=datatype)
        assert result.get_response()["id"] == datatype
        found = result.as_numpy(f"OUT_{datatype}")
        if datatype == "BYTES":
            found = np.vectorize(lambda each: each if isinstance(each, str) else each.decode(), otypes=[object])(found)
        np.testing.assert_array_equal(found, array)
        assert len(result.get_response()["outputs"]) == 1


def test_several_inputs_of_both_forms_may_come_together(client: triton.InferenceServerClient) -> None:
    inputs = [tensor(each, ARRAYS[each], binary=each != "INT8") for each in ("INT8", "FP64", "BOOL", "UINT16")]
    result = client.infer("types", inputs)  # all outputs, binary
    for each in ("INT8", "FP64", "BOOL", "UINT16"):
        np.testing.assert_array_equal(result.as_numpy(f"OUT_{each}"), ARRAYS[each])
    assert result.get_output("OUT_BYTES")["parameters"] == {"binary_data_size": 0}
    assert [each["name"] for each in result.get_response()["outputs"]] == [f"OUT_{each}" for each in DTYPES]


def test_numbers_that_json_has_no_word_for_reach_the_client(client: triton.InferenceServerClient) -> None:
    array = np.array([[math.nan, math.inf, -math.inf]], np.float32)
    wanted = [triton.InferRequestedOutput("OUT_FP32", binary_data=False)]
    for binary in (True, False):
        result = client.infer("types", [tensor("FP32", array, binary=binary)], outputs=wanted)
        np.testing.assert_array_equal(result.as_numpy("OUT_FP32"), array)


def test_batches_of_fixed_rows_are_put_together_again(client: triton.InferenceServerClient) -> None:
    left, right = np.arange(24, dtype=np.float32).reshape(8, 3), np.ones((8, 3), np.float32)
    for binary in (True, False):
        result = client.infer("sums", [tensor("left", left, binary=binary), tensor("right", right, binary=binary)])
        np.testing.assert_array_equal(result.as_numpy("sum"), left + right)
        np.testing.assert_array_equal(result.as_numpy("double"), left * 2)
    one = client.infer(
        "sums",
        [tensor("right", right[:1], binary=True), tensor("left", left[:1], binary=True)],
        outputs=[triton.InferRequestedOutput("double")],
    )
    assert one.as_numpy("sum") is None
    np.testing.assert_array_equal(one.as_numpy("double"), left[:1] * 2)
    text = refused(
        client.infer, "sums", [tensor(each, np.ones((9, 3), np.float32), binary=True) for each in ("left", "right")]
    )
    assert "inference request batch-size must be <= 8 for 'sums'" in text


def test_the_highest_values_come_as_texts(client: triton.InferenceServerClient) -> None:
    scores = np.array([[1, 3, 2], [0.5, 0, 0.25]], np.float32)
    for binary in (True, False):
        wanted = [
            triton.InferRequestedOutput("y", binary_data=binary, class_count=2),
            triton.InferRequestedOutput("z", binary_data=binary, class_count=9),
        ]
        result = client.infer("scores", [tensor("x", scores, binary=binary)], outputs=wanted)
        texts = [[each if isinstance(each, str) else each.decode() for each in row] for row in result.as_numpy("y")]
        assert texts == [["6.000000:1:dog", "4.000000:2:fish"], ["1.000000:0:cat", "0.500000:2:fish"]]
        assert result.as_numpy("z").shape == (2, 3)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_bodies_are_compressed_both_ways(client: triton.InferenceServerClient, coding: str) -> None:
    array = np.tile(np.arange(100, dtype=np.int32), (8, 10))
    result = client.infer(
        "types",
        [tensor("INT32", array, binary=True)],
        outputs=[triton.InferRequestedOutput("OUT_INT32")],
        request_compression_algorithm=coding,
        response_compression_algorithm=coding,
    )
    np.testing.assert_array_equal(result.as_numpy("OUT_INT32"), array)


def test_long_tensors_pass_whole(client: triton.InferenceServerClient) -> None:
    array = np.arange(150528, dtype=np.float32).reshape(1, -1)
    for _ in range(3):
        result = client.infer("large", [tensor("x", array, binary=True)])
        np.testing.assert_array_equal(result.as_numpy("y"), array + 1)
    two = np.concatenate([array, array + 7])
    np.testing.assert_array_equal(client.infer("large", [tensor("x", two, binary=True)]).as_numpy("y"), two + 1)
    as_json = client.infer(
        "large", [tensor("x", array, binary=True)], outputs=[triton.InferRequestedOutput("y", binary_data=False)]
    )
    np.testing.assert_array_equal(as_json.as_numpy("y"), array + 1)


def test_a_handler_gets_tensors_as_json_and_answers_in_the_form_that_is_asked_for(
    client: triton.InferenceServerClient,
) -> None:
    array = np.array([[1.5, 2.5]], np.float32)
    for binary in (True, False):
        result = client.infer("handler", [tensor("x", array, binary=binary)], request_id="h")
        np.testing.assert_array_equal(result.as_numpy("out_x").reshape(array.shape), array)


def test_what_a_model_raises_is_its_failure(client: triton.InferenceServerClient) -> None:
    text = refused(client.infer, "scores", [tensor("x", -np.ones((1, 3), np.float32), binary=True)])
    assert text.startswith("[500]")
    assert "Prediction failed" in text
    assert "doesn't support models with decoupled transaction policy" in refused(
        client.infer, "words", [tensor("text_input", np.array(["a b"], object), binary=True)]
    )
    only = client.infer("words", [tensor("text_input", np.array(["alone"], object), binary=True)])
    assert only.as_numpy("text_output").tolist() == [b"alone"]


def test_many_requests_at_once_are_answered_each_with_its_own(v2_server: ServerProcess) -> None:
    async def run(url: str) -> None:
        async with triton_aio.InferenceServerClient(url) as aio:
            assert await aio.is_server_ready()

            async def ask(number: int) -> None:
                array = np.full((1 + number % 4, 3), number, np.float32)
                inputs = [tensor("left", array, binary=True), tensor("right", array, binary=number % 2 == 0)]
                coding = "gzip" if number % 3 == 0 else None
                result = await aio.infer("sums", inputs, response_compression_algorithm=coding)
                np.testing.assert_array_equal(result.as_numpy("sum"), array * 2)

            await asyncio.gather(*(ask(number) for number in range(100)))

    asyncio.run(run(v2_server.inference_url.removeprefix("http://")))

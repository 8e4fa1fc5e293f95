"""What is said to TorchServe's gRPC services, chapter by chapter."""

from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.e2e.inference.entry_points import MODULE, Archive
from tests.e2e.inference.scenes import Scene

INFERENCE, MANAGEMENT, OPEN = "inference", "management", "open"
Steps = Iterator[dict[str, Any]]
SEQUENCES = """sequenceBatching: true
sequenceMaxIdleMSec: 60000
sequenceTimeoutMSec: 0
maxSequenceJobQueueSize: 10
maxNumSequence: 4
batchSize: 4
maxBatchDelay: 100
minWorkers: 1
maxWorkers: 1
"""


def _call(service: str, rpc: str, **request: Any) -> dict[str, Any]:
    return {"service": service, "rpc": rpc, "request": request}


def _inputs(**values: str) -> dict[str, str]:
    return {name: b64encode(value.encode()).decode() for name, value in values.items()}


def _predict(code: str | None = None, model: str = "does", rpc: str = "Predictions", **more: Any) -> dict[str, Any]:
    given = {} if code is None else {"input": _inputs(code=code)}
    return _call(INFERENCE, rpc, model_name=model, **{**given, **more})


def predictions() -> Steps:
    yield _call(INFERENCE, "Ping")
    yield _predict()
    yield _predict("answer = 'text'")
    yield _predict("answer = b'bytes'")
    yield _predict("answer = bytearray(b'more')")
    yield _predict("answer = {'a': [1, 2.5, None, True]}")
    yield _predict("answer = [1, 'b']")
    yield _predict("answer = 5")
    yield _predict("answer = 1.5")
    yield _predict("answer = None")
    yield _predict("answer = ''")
    yield _predict("answer = '\u00e9\u4e16'")
    yield _predict(
        "import json; answer = json.dumps(sorted(row))", input=_inputs(code="answer = sorted(row)", b="x", a="y")
    )
    yield _predict("answer = str(type(row['code']))")
    yield _predict(
        "answer = bytes(row['raw']).hex()", input=_inputs(code="answer = bytes(row['raw']).hex()", raw="\0\x01z")
    )
    yield _predict("answer = len(data)")
    yield _predict("answer = str(context.get_request_id(0) != '')")
    yield _predict("answer = str(context.get_all_request_header(0).get('explain'))")
    for version in ("1.0", "2.0"):
        yield _predict("answer = 'v'", model_version=version)
    for model in ("nobody", ""):
        yield _predict("answer = 1", model=model)
        yield _predict("answer = 1", model=model, model_version="1.0")
    yield _predict("context.set_response_status(418); answer = 'teapot'")
    yield _predict("context.set_response_content_type(0, 'text/x'); answer = 'x'")
    yield _predict("raise ValueError('broken')")
    yield _predict("1 / 0")
    yield _predict("import sys; sys.exit(1)", model="mortal")
    for code in (400, 404, 409, 413, 422, 429, 500, 503, 504, 507):
        yield _predict(f"from ts.utils.util import PredictionException; raise PredictionException('said', {code})")
    yield _predict("raise MemoryError()")
    yield _predict("answer = 'long' * 100_000")


def streams() -> Steps:
    send = "from ts.handler_utils.utils import send_intermediate_predict_response as s; "
    yield _predict(f"{send}s(['a'], context.request_ids, 'ok', 200, context); answer = 'b'", rpc="StreamPredictions")
    parts = "for part in 'abc': s([part], context.request_ids, 'ok', 200, context)"
    yield _predict(f"{send}\n{parts}\nanswer = 'end'", rpc="StreamPredictions")
    yield _predict("answer = 'one'", model="other", rpc="StreamPredictions")
    yield _predict("answer = 1", model="nobody", rpc="StreamPredictions")
    yield _predict("answer = 1", model="", rpc="StreamPredictions")


def sequences() -> Steps:
    def one(value: int, sequence_id: str | None = None, **flags: str) -> dict[str, Any]:
        request: dict[str, Any] = {"model_name": "counter", "input": _inputs(value=str(value), **flags)}
        return request if sequence_id is None else {**request, "sequence_id": sequence_id}

    start, end = {"ts_request_sequence_start": "true"}, {"ts_request_sequence_end": "true"}
    for requests in (
        [one(1, "s1", **start), one(2, "s1"), one(3, "s1", **end)],
        [one(5, "s2", **start, **end)],
        [one(1)],
        [one(1, "s3", **start), {**one(1, "s3"), "model_name": "nobody"}],
    ):
        yield {"service": INFERENCE, "rpc": "StreamPredictions2", "stream": requests}


def management() -> Steps:
    def ask(rpc: str, **request: Any) -> dict[str, Any]:
        return _call(MANAGEMENT, rpc, **request)

    yield ask("ListModels", limit=10)
    yield ask("ListModels", limit=1)
    yield ask("ListModels", limit=1, next_page_token=1)
    yield ask("ListModels", limit=-1)
    yield ask("DescribeModel", model_name="does")
    yield ask("DescribeModel", model_name="does", model_version="1.0")
    yield ask("DescribeModel", model_name="does", model_version="all")
    yield ask("DescribeModel", model_name="does", model_version="7.0")
    yield ask("DescribeModel", model_name="nobody")
    yield ask("DescribeModel", model_name="")
    yield ask("RegisterModel")
    for url in ("missing.mar", "../spare.mar", "ftp://host/a.mar", "http://127.0.0.1:1/a.mar", "file:///etc/passwd"):
        yield ask("RegisterModel", url=url)
    yield ask("RegisterModel", url="spare.mar")
    yield ask("RegisterModel", url="spare.mar")
    yield ask("DescribeModel", model_name="spare")
    yield ask("ScaleWorker", model_name="spare", min_worker=1, synchronous=True)
    yield _predict("answer = 'scaled'", model="spare")
    yield ask("ScaleWorker", model_name="spare", min_worker=2, max_worker=1)
    yield ask("ScaleWorker", model_name="nobody", min_worker=1)
    yield ask("ScaleWorker", model_name="spare", model_version="7.0", min_worker=1)
    yield ask("ScaleWorker", model_name="", min_worker=1)
    yield ask("SetDefault", model_name="spare", model_version="1.0")
    yield ask("SetDefault", model_name="spare", model_version="7.0")
    yield ask("SetDefault", model_name="nobody", model_version="1.0")
    yield ask("UnregisterModel", model_name="spare", model_version="7.0")
    yield ask("UnregisterModel", model_name="spare")
    yield ask("UnregisterModel", model_name="spare")
    yield ask("UnregisterModel", model_name="")
    yield ask("DescribeModel", model_name="spare")
    wanted = {
        "batch_size": 2,
        "max_batch_delay": 50,
        "response_timeout": 60,
        "startup_timeout": 60,
        "initial_workers": 1,
    }
    yield ask("RegisterModel", url="spare.mar", model_name="renamed", synchronous=True, **wanted)
    yield _predict("answer = 'renamed'", model="renamed")
    yield ask("DescribeModel", model_name="renamed")
    yield ask("RegisterModel", url="spare2-2.0.mar", model_name="renamed", synchronous=True)
    yield ask("UnregisterModel", model_name="renamed", model_version="1.0")
    yield ask("SetDefault", model_name="renamed", model_version="2.0")
    yield ask("UnregisterModel", model_name="renamed", model_version="1.0")
    yield ask("UnregisterModel", model_name="renamed")
    yield ask("RegisterModel", url="broken.mar", initial_workers=1, synchronous=True)
    yield ask("DescribeModel", model_name="broken")


def open_inference() -> Steps:
    def ask(rpc: str, **request: Any) -> dict[str, Any]:
        return _call(OPEN, rpc, **request)

    yield ask("ServerLive")
    yield ask("ServerReady")
    yield ask("ServerMetadata")
    for model in ("tensors", "nobody"):
        yield ask("ModelReady", name=model)
        yield ask("ModelMetadata", name=model)
        yield ask("ModelReady", name=model, version="1.0")
    for datatype, contents in (
        ("INT32", {"int_contents": [1, 2, 3]}),
        ("INT64", {"int64_contents": [1, 2, 3]}),
        ("UINT8", {"uint_contents": [1, 2, 3]}),
        ("UINT64", {"uint64_contents": [1, 2, 3]}),
        ("FP32", {"fp32_contents": [0.5, 1.0, 1.5]}),
        ("FP64", {"fp64_contents": [0.5, 1.0, 1.5]}),
        ("BOOL", {"bool_contents": [True, False, True]}),
        ("BYTES", {"bytes_contents": [b64encode(b"text").decode()]}),
    ):
        tensor = {"name": "x", "datatype": datatype, "shape": [3], "contents": contents}
        yield ask("ModelInfer", model_name="tensors", id="42", inputs=[tensor])
    tensor = {"name": "x", "datatype": "FP32", "shape": [1], "contents": {"fp32_contents": [1.5]}}
    yield ask("ModelInfer", model_name="tensors", model_version="1.0", id="v", inputs=[tensor])
    yield ask("ModelInfer", model_name="nobody", id="42", inputs=[tensor])


HANDLERS = Path(__file__).parent
ONE = "minWorkers: 1\nmaxWorkers: 1\n"


def _archive(name: str, file: str, version: str = "1.0", config: str = ONE) -> Archive:
    return Archive(name, {MODULE: (HANDLERS / file).read_text()}, version=version, config=config)


SCENES = (
    Scene(
        "plain",
        {},
        (
            *(_archive(name, "handler.py") for name in ("does", "other", "mortal")),
            _archive("counter", "counter.py", config=SEQUENCES),
        ),
        (
            _archive("spare", "handler.py", config=""),
            _archive("spare2", "handler.py", "2.0", config=""),
            Archive("broken", {MODULE: "raise ValueError('broken')"}),
        ),
    ),
    Scene(
        "open",
        {},
        (_archive("tensors", "tensors.py"),),
        config={"service_envelope": "kservev2", "ts_open_inference_protocol": "true"},
    ),
)
# What is said to each of them.
CHAPTERS: dict[str, dict[str, Callable[[], Steps]]] = {
    "plain": {"predictions": predictions, "streams": streams, "sequences": sequences, "management": management},
    "open": {"open inference": open_inference},
}

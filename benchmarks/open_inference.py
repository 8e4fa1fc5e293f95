"""Experiment: what inference by the Open Inference Protocol costs over REST, over gRPC and through shared memory.

Each is compared with what its transport alone can do: Sanic, or a servicer of grpc.aio, that answers the same request with the same
answer and asks no model.
"""

import mmap
import statistics
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import msgspec
import numpy as np
import posix_ipc

from benchmarks import contestants, mlp, wrk
from benchmarks.contestants import HOST, ROOT, Archive, Target
from benchmarks.loader import TOLERANCE, Load
from benchmarks.measuring import SPARE_S, Conditions
from benchmarks.report import Ratio, load_columns, rates, ratio
from benchmarks.rpc_loader import RpcJob, as_it_is
from ringserve.protocol.grpc.open_inference_pb2 import ModelInferRequest, ModelInferResponse

CONNECTIONS = 16
GOAL = 0.6
METHOD = "/inference.GRPCInferenceService/ModelInfer"
HEADER = "Inference-Header-Content-Length"
GRPC_FRONT_END = "ringserve.server.rpc.frontend"
NUMBERS = 3 * 224 * 224  # of an image, 602 112 bytes
ECHO = Archive(
    "echo_typed",
    f"""\
backend: python
inputs:
  - {{name: x, dtype: float32, shape: [{NUMBERS}]}}
outputs:
  - {{name: y, dtype: float32, shape: [{NUMBERS}]}}
minWorkers: 1
maxWorkers: 1
batchSize: 8
""",
    handler=str(ROOT / "benchmarks" / "handlers" / "echo_typed.py"),
)


class Row(msgspec.Struct, frozen=True):
    """All rounds of one way to ask. CPU is that of the front end that answers, in µs a request."""

    name: str
    ours: list[Load]
    ceiling: list[Load]
    cpu_us: list[float]
    ceiling_cpu_us: list[float]

    @property
    def to_ceiling(self) -> Ratio:
        return ratio(rates(self.ours), rates(self.ceiling))

    @property
    def cpu(self) -> Ratio:
        return ratio(self.cpu_us, self.ceiling_cpu_us)


class Side(msgspec.Struct, frozen=True):
    """One server to ask one thing: a load on it, whether it answers right, and the process whose CPU counts."""

    load: Callable[[], Load]
    is_right: Callable[[], bool]
    pid: int


def render(rows: list[Row]) -> str:
    lines = [
        f"Open Inference Protocol, {CONNECTIONS} connections or calls; CPU of the front end in µs a request",
        f"{'':<22}       rps   p50 ms   p99 ms  errors    CPU   ceiling, rps    CPU   to the ceiling, rate      CPU",
    ]
    for row in rows:
        cpu, ceiling_cpu = statistics.median(row.cpu_us), statistics.median(row.ceiling_cpu_us)
        lines.append(
            f"{row.name:<22}{load_columns(row.ours)}{cpu:>7.0f}{statistics.median(rates(row.ceiling)):>15,.0f}"
            f"{ceiling_cpu:>7.0f}   {row.to_ceiling!s:<25} {row.cpu}"
        )
    lines.append(f"602 KB through shared memory to the 3 KB infer: {shared_to_small(rows)} (goal {GOAL})")
    return "\n".join(lines)


def shared_to_small(rows: list[Row]) -> Ratio:
    by_name = {row.name: row for row in rows}
    return ratio(rates(by_name["602 KB shared memory"].ours), rates(by_name["3 KB REST"].ours))


class Question(msgspec.Struct, frozen=True):
    """One tensor to one model, and the numbers that it must be answered with."""

    model: str
    sent: np.ndarray
    expected: np.ndarray

    @property
    def shape(self) -> list[int]:
        return list(self.sent.shape)

    def is_answered(self, raw: bytes) -> bool:
        """Whether these bytes are the numbers."""
        found = np.frombuffer(raw, "<f4") if len(raw) == self.expected.nbytes else np.array([np.nan], np.float32)
        return found.size == self.expected.size and np.allclose(found, self.expected.ravel(), atol=TOLERANCE)

    def rest_body(self) -> tuple[bytes, dict[str, str]]:
        """The body with its tensor as bytes behind the JSON, and its headers."""
        parameters = {"binary_data_size": self.sent.nbytes}
        tensor = {"name": "x", "datatype": "FP32", "shape": self.shape, "parameters": parameters}
        head = msgspec.json.encode({"inputs": [tensor], "parameters": {"binary_data_output": True}})
        headers = {"Content-Type": "application/octet-stream", HEADER: str(len(head))}
        return head + self.sent.tobytes(), headers

    def message(self) -> bytes:
        tensor = ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=self.shape)
        request = ModelInferRequest(model_name=self.model, inputs=[tensor], raw_input_contents=[self.sent.tobytes()])
        return request.SerializeToString()


class Regions:
    """A client's memory: the input lies in one region, the output goes to the other."""

    def __init__(self, stack: ExitStack, target: Target, question: Question) -> None:
        self._question = question
        self.maps = {}
        for name, array in (("source", question.sent), ("target", question.expected)):
            key = f"/bench-{name}-{uuid.uuid4().hex}"
            shared = posix_ipc.SharedMemory(key, posix_ipc.O_CREX, size=array.nbytes)
            stack.callback(posix_ipc.unlink_shared_memory, key)
            self.maps[name] = stack.enter_context(mmap.mmap(shared.fd, array.nbytes))
            shared.close_fd()
            url = f"http://{HOST}:{target.port}/v2/systemsharedmemory/region/{name}/register"
            contestants.ask(url, msgspec.json.encode({"key": key, "byte_size": array.nbytes}))
        self.maps["source"][:] = question.sent.tobytes()

    def body(self) -> bytes:
        question = self._question

        def place(region: str) -> dict[str, object]:
            return {"shared_memory_region": region, "shared_memory_byte_size": question.sent.nbytes}

        tensor = {"name": "x", "datatype": "FP32", "shape": question.shape, "parameters": place("source")}
        return msgspec.json.encode({"inputs": [tensor], "outputs": [{"name": "y", "parameters": place("target")}]})

    def is_answered(self) -> bool:
        """Whether the output is in its region; it is not there for the next look."""
        found = self._question.is_answered(bytes(self.maps["target"]))
        self.maps["target"][:] = bytes(len(self.maps["target"]))
        return found


def call(address: str, message: bytes) -> bytes:
    """One call, for a look at its answer."""
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(METHOD, request_serializer=as_it_is, response_deserializer=as_it_is)
        answer: bytes = ask(message, timeout=SPARE_S, wait_for_ready=True)
    return answer


def rpc_load(address: str, message: bytes, answer: bytes, seconds: float) -> Load:
    """The load of calls, from a process of its own."""
    job = RpcJob(address, METHOD, message, answer, CONNECTIONS, seconds)
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.rpc_loader"],
        input=msgspec.msgpack.encode(job),
        stdout=subprocess.PIPE,
        check=True,
        cwd=ROOT,
        timeout=seconds + SPARE_S,
    )
    return msgspec.json.decode(done.stdout, type=Load)


@contextmanager
def bare_servicer(message: bytes, answer: bytes, directory: Path) -> Iterator[tuple[str, int]]:
    """Ceiling of gRPC: its address and process."""
    (port,) = contestants.free_ports(1)
    file = directory / f"answer-{port}.pb"
    file.write_bytes(answer)
    log = directory / f"rpc-ceiling-{port}.log"
    command = [sys.executable, "-m", "benchmarks.rpc_ceiling", str(port), str(file)]

    def ready() -> bool:
        try:
            return call(f"{HOST}:{port}", message) == answer
        except grpc.RpcError:
            return False

    with contestants.process(command, directory, log, {"PYTHONPATH": str(ROOT)}) as child:
        contestants.wait_until(ready, child, log)
        yield f"{HOST}:{port}", child.pid


class OpenInference:
    def __init__(self, conditions: Conditions) -> None:
        self._seconds = conditions.seconds
        self._rows: list[Row] = []
        self._sides: list[tuple[Side, Side]] = []

    def start(self, stack: ExitStack, directory: Path) -> None:
        if not wrk.is_installed():
            raise SystemExit("v2 needs wrk, which sends headers of ours")
        self._directory = directory / "open-inference"
        self._directory.mkdir()
        self._stack = stack
        case = mlp.make(self._directory)
        small = Question(mlp.NAME, np.frombuffer(case.bodies[0], "<f4")[None], np.array([case.answers[0]], np.float32))
        image = np.random.default_rng(0).random((1, NUMBERS), np.float32)
        for label, archive, question in (
            ("3 KB", mlp.archive(case), small),
            ("602 KB", ECHO, Question(ECHO.name, image, image)),
        ):
            first, second = contestants.free_ports(2)
            settings = {"enable_grpc": "true", "grpc_inference_port": first, "grpc_management_port": second}
            target = stack.enter_context(contestants.ringserve(archive, self._directory, settings))
            self._add_rest(f"{label} REST", target, question)
            self._add_grpc(f"{label} gRPC", target, f"{HOST}:{first}", question)
        self._add_shared(target, question)
        for ours, ceiling in self._sides:
            if not (ours.is_right() and ceiling.is_right()):
                raise SystemExit("An answer before the load was wrong.")

    def _add(self, name: str, ours: Side, ceiling: Side) -> None:
        self._rows.append(Row(name, [], [], [], []))
        self._sides.append((ours, ceiling))

    def _http_side(
        self, url: str, pid: int, body: bytes, headers: dict[str, str], right: Callable[[bytes], bool]
    ) -> Side:
        def load() -> Load:
            with tempfile.TemporaryDirectory(prefix="ringserve-wrk-") as scratch:
                return wrk.run_on(url, body, headers, CONNECTIONS, self._seconds, Path(scratch))

        return Side(load, lambda: right(contestants.ask(url, body, headers)), pid)

    def _add_http(
        self, name: str, target: Target, body: bytes, headers: dict[str, str], right: Callable[[bytes], bool]
    ) -> None:
        url = f"http://{HOST}:{target.port}/v2/models/{target.model}/infer"
        answer = contestants.ask(url, body, headers)
        bare = self._stack.enter_context(contestants.sanic_without_a_model(body, answer, self._directory))
        (pid,) = contestants.front_end_pids(target)
        self._add(
            name,
            self._http_side(url, pid, body, headers, right),
            self._http_side(bare.url, bare.pid, body, headers, lambda found: found == answer),
        )

    def _add_rest(self, name: str, target: Target, question: Question) -> None:
        body, headers = question.rest_body()
        nbytes = question.expected.nbytes
        self._add_http(name, target, body, headers, lambda found: question.is_answered(found[-nbytes:]))

    def _add_shared(self, target: Target, question: Question) -> None:
        regions = Regions(self._stack, target, question)
        headers = {"Content-Type": "application/json"}
        self._add_http("602 KB shared memory", target, regions.body(), headers, lambda found: regions.is_answered())

    def _add_grpc(self, name: str, target: Target, address: str, question: Question) -> None:
        message = question.message()
        answer = call(address, message)
        bare, bare_pid = self._stack.enter_context(bare_servicer(message, answer, self._directory))
        (pid,) = contestants.front_end_pids(target, GRPC_FRONT_END)

        def side(address: str, pid: int) -> Side:
            def is_right() -> bool:
                (raw,) = ModelInferResponse.FromString(call(address, message)).raw_output_contents
                return question.is_answered(raw)

            return Side(lambda: rpc_load(address, message, answer, self._seconds), is_right, pid)

        self._add(name, side(address, pid), side(bare, bare_pid))

    def measure_round(self) -> None:
        for row, (ours, ceiling) in zip(self._rows, self._sides, strict=True):
            for side, loads, cpu_us in ((ours, row.ours, row.cpu_us), (ceiling, row.ceiling, row.ceiling_cpu_us)):
                (before_s,) = contestants.cpu_s([side.pid])
                load = side.load()
                (after_s,) = contestants.cpu_s([side.pid])
                cpu_us.append((after_s - before_s) * 1e6 / max(1, load.requests))
                loads.append(msgspec.structs.replace(load, errors=load.errors + (not side.is_right())))

    def finish(self) -> None:
        pass

    def render(self) -> str:
        return render(self._rows)

    def figures(self) -> object:
        ratios = [{"name": row.name, "to_ceiling": row.to_ceiling, "cpu_to_ceiling": row.cpu} for row in self._rows]
        return {"results": self._rows, "ratios": ratios, "shared_memory_to_3_kb": shared_to_small(self._rows)}

    @property
    def errors(self) -> int:
        return sum(load.errors for row in self._rows for load in (*row.ours, *row.ceiling))

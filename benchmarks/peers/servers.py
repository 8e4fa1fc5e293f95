"""The peers, each a context manager that starts one with a model, waits until it answers and stops all that it started."""

import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec
import numpy as np
import torch

from benchmarks.contestants import HOST, PREDICTIONS_HEADERS, Archive, ask, free_ports, process, ringserve, wait_until
from benchmarks.loader import Answer, is_right

HERE = Path(__file__).parent


class Peer(msgspec.Struct, frozen=True):
    """Where the requests of a point go and in which form. A `binary` answer ends with the tensor."""

    url: str
    body: bytes
    answer: Answer
    headers: dict[str, str] = msgspec.field(default_factory=lambda: dict(PREDICTIONS_HEADERS))
    binary: bool = False

    def is_answered_right(self) -> bool:
        """Whether one request gets the right answer. A refusal is no right answer."""
        try:
            reply = ask(self.url, self.body, self.headers)
        except OSError:
            return False
        return self._says_binary(reply) if self.binary else is_right(reply, self.answer)

    def _says_binary(self, reply: bytes) -> bool:
        """The tensor is the end of the answer."""
        if isinstance(self.answer, bytes):
            return reply.endswith(self.answer)
        row = np.frombuffer(reply[-4 * len(self.answer) :], "<f4")
        return bool(np.allclose(row, self.answer, atol=1e-4))


class Question(msgspec.Struct, frozen=True):
    """One point's model and request, in nobody's protocol yet."""

    name: str
    archive: Archive
    body: bytes
    answer: Answer
    shape: list[int]  # as Triton is to be told


@contextmanager
def ours(question: Question, directory: Path) -> Iterator[Peer]:
    with ringserve(question.archive, directory) as target:
        yield Peer(target.url, question.body, question.answer)


@contextmanager
def mosec(question: Question, directory: Path, environment: Path, wait_ms: int) -> Iterator[Peer]:
    home = directory / f"mosec-{question.name}"
    home.mkdir()
    (port,) = free_ports(1)
    model = ["echo"]
    if question.archive.weights is not None:
        model = ["mlp", str(question.archive.weights), str(wait_ms)]
    command = [str(environment / "bin" / "python"), str(HERE / "mosec_app.py"), *model]
    log = home / "server.log"
    with process([*command, "--port", str(port), "--log-level", "error"], home, log) as child:
        peer = Peer(f"http://{HOST}:{port}/inference", question.body, question.answer)
        wait_until(peer.is_answered_right, child, log)
        yield peer


def _site_packages(environment: Path) -> Path:
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    printed = subprocess.run([environment / "bin" / "python", "-c", script], check=True, capture_output=True, text=True)
    return Path(printed.stdout.strip())


def _save_weights(weights: Path, file: Path) -> None:
    """The matrices of the TorchScript file, for a server that has no torch."""
    state = torch.jit.load(str(weights)).state_dict()  # type: ignore[no-untyped-call]
    layers = sorted({name.rpartition(".")[0] for name in state})
    arrays = {f"weight{number}": state[f"{layer}.weight"].numpy() for number, layer in enumerate(layers)}
    arrays |= {f"bias{number}": state[f"{layer}.bias"].numpy() for number, layer in enumerate(layers)}
    np.savez(file, **arrays)


def _triton_home(question: Question, home: Path, installed: Path, delay_us: int) -> None:
    """A model repository with one model, and the python backend beside the stub for this version of Python."""
    model = home / "models" / question.name
    (model / "1").mkdir(parents=True)
    config = (HERE / "triton" / f"{question.name}.pbtxt").read_text()
    (model / "config.pbtxt").write_text(config.replace("delay_microseconds: 0", f"delay_microseconds: {delay_us}"))
    shutil.copy(HERE / "triton" / f"{question.name}_model.py", model / "1" / "model.py")
    if question.archive.weights is not None:
        _save_weights(question.archive.weights, model / "1" / "weights.npz")
    backend = home / "backends" / "python"
    shutil.copytree(installed / "tritonserver" / "backends" / "python", backend)
    version = sysconfig.get_python_version()
    for stub in (installed / "tritonserver" / "python_backend_stubs" / version).iterdir():
        shutil.copy(stub, backend)


@contextmanager
def triton(question: Question, directory: Path, environment: Path, delay_us: int) -> Iterator[Peer]:
    installed = _site_packages(environment) / "pytriton"
    home = directory / f"triton-{question.name}"
    _triton_home(question, home, installed, delay_us)
    http, grpc, metrics = free_ports(3)
    command = [str(installed / "tritonserver" / "bin" / "tritonserver"), f"--model-repository={home / 'models'}"]
    command += [f"--backend-directory={home / 'backends'}", f"--http-port={http}", f"--grpc-port={grpc}"]
    command += [f"--metrics-port={metrics}", f"--cache-directory={installed / 'tritonserver' / 'caches'}"]
    # The server links libraries of the wheel, the stub the shared library of Python.
    libraries = [str(installed.parent / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    variables = {"LD_LIBRARY_PATH": ":".join(libraries), "PATH": f"{environment / 'bin'}:/usr/bin:/bin"}
    log = home / "server.log"
    with process(command, home, log, variables) as child:
        peer = _v2_peer(question, f"http://{HOST}:{http}/v2/models/{question.name}/infer")
        wait_until(peer.is_answered_right, child, log)
        yield peer


def _v2_peer(question: Question, url: str) -> Peer:
    """The request in the open inference protocol, its tensor binary in both directions."""
    sent = {
        "name": "x",
        "shape": question.shape,
        "datatype": "FP32",
        "parameters": {"binary_data_size": len(question.body)},
    }
    wanted = {"name": "y", "parameters": {"binary_data": True}}
    head = msgspec.json.encode({"inputs": [sent], "outputs": [wanted]})
    headers = {**PREDICTIONS_HEADERS, "Inference-Header-Content-Length": str(len(head))}
    return Peer(url, head + question.body, question.answer, headers, binary=True)


def start_all(
    stack: ExitStack, question: Question, directory: Path, mosec_in: Path | None, triton_in: Path | None, wait_ms: int
) -> dict[str, Peer]:
    """Ours and the peers that are installed; the stack stops them."""
    peers = {"ringserve": stack.enter_context(ours(question, directory))}
    if mosec_in is not None:
        peers["mosec"] = stack.enter_context(mosec(question, directory, mosec_in, wait_ms))
    if triton_in is not None:
        peers["triton"] = stack.enter_context(triton(question, directory, triton_in, 0))
    return peers

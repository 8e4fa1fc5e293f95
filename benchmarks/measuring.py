"""One load on one target, by the chosen loader, with a look at the answers; and what every experiment has in common."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

import msgspec

from benchmarks import contestants, wrk
from benchmarks.contestants import Target
from benchmarks.loader import Answer, Job, Load, is_right
from benchmarks.open_loop import OpenJob, OpenLoad

WARM_UP_CONNECTIONS, WARM_UP_S = 16, 1.0
SPARE_S = 30.0


class Conditions(msgspec.Struct, frozen=True):
    """What was asked for on the command line."""

    loader: str
    seconds: int
    connections: list[int]


class Experiment(Protocol):
    """One question to the server. All are started together and measured in turn, so that what disturbs the machine
    disturbs everybody."""

    def __init__(self, conditions: Conditions) -> None: ...

    def start(self, stack: ExitStack, directory: Path) -> None:
        """Start what is measured; the stack stops it."""

    def measure_round(self) -> None:
        """One load on everybody who is compared, one right after the other."""

    def finish(self) -> None:
        """What is looked at after the last round, while the servers still run."""

    def render(self) -> str:
        """The figures as text."""

    def figures(self) -> object:
        """Every round, for JSON."""

    @property
    def errors(self) -> int:
        """Of all contestants: a figure that includes errors compares nothing."""
        ...


def run_loader(job: Job) -> Load:
    """The bundled loader, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loader"]
    return msgspec.json.decode(_run(command, msgspec.json.encode(job), job.seconds), type=Load)


def run_open_loop(job: OpenJob) -> OpenLoad:
    """Requests at their own pace, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.open_loop"]
    return msgspec.json.decode(_run(command, msgspec.json.encode(job), job.seconds), type=OpenLoad)


def _run(command: Sequence[str], sent: bytes, seconds: float) -> bytes:
    done = subprocess.run(
        command, input=sent, stdout=subprocess.PIPE, check=True, cwd=contestants.ROOT, timeout=seconds + SPARE_S
    )
    return done.stdout


def is_answered_right(url: str, body: bytes, answer: Answer) -> bool:
    """One request on its own. A refusal is no right answer."""
    try:
        return is_right(contestants.ask(url, body), answer)
    except OSError:
        return False


def wrong_answers(job: Job) -> int:
    """How many of the requests are answered wrong when asked one by one."""
    url = f"http://{job.host}:{job.port}{job.path}"
    asked = zip(job.bodies, job.answers, strict=True)
    return sum(not is_answered_right(url, body, answer) for body, answer in asked)


def measure(loader: str, job: Job) -> Load:
    """One run of the chosen loader, plus a look at the answers afterwards."""
    if loader == wrk.NAME:
        with tempfile.TemporaryDirectory(prefix="ringserve-wrk-") as scratch:
            load = wrk.run(job, Path(scratch))
    else:
        load = run_loader(job)
    return msgspec.structs.replace(load, errors=load.errors + wrong_answers(job))


def job_for(target: Target, bodies: list[bytes], answers: list[Answer], connections: int, seconds: float) -> Job:
    return Job(contestants.HOST, target.port, target.path, connections, seconds, bodies, answers)


def warm_up(target: Target, bodies: list[bytes], answers: list[Answer]) -> None:
    """Always by the bundled loader, which checks bodies: concurrent clients must each get their own answer."""
    load = run_loader(job_for(target, bodies, answers, WARM_UP_CONNECTIONS, WARM_UP_S))
    if load.errors:
        raise SystemExit(
            f"{load.errors} of {load.requests + load.errors} answers to the warm-up were wrong or missing."
        )

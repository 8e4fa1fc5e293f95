"""`ringserve run`: the real command, in a process of its own, as a handler's author uses it."""

import contextlib
import json
import logging
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ringserve.tools.archiver import ArchiveRequest, write_archive
from ringserve.tools.cli.run import run

WAIT_S = 60.0
COMMAND = [str(Path(sys.executable).with_name("ringserve")), "run"]
# Answers with everything that it was given, and sets what a client would see.
ECHO = """
from ts.context import Context
from helper import shown

class Echo:
    def initialize(self, context: Context):
        self.calls = 0
        self.batch_size = context.system_properties["batch_size"]

    def handle(self, data, context):
        self.calls += 1
        print("printed by the model")
        answers = []
        for index, row in enumerate(data):
            context.set_response_header(index, "x-row", str(index))
            headers = context.get_all_request_header(index)
            wanted = {name: headers.get(name) for name in ("explain", "url_path", "x-mine", "content-type")}
            answers.append({**shown(row), **wanted, "call": self.calls, "batch": [len(data), self.batch_size]})
        context.set_response_status(201, "Made", idx=0)
        return answers
"""
HELPER = "def shown(row):\n    return {name: str(value) for name, value in row.items()}\n"


def asked(
    *words: object, cwd: Path, stdin: str = "", code: int = 0, tmp: Path | None = None
) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, **({"TMPDIR": str(tmp)} if tmp is not None else {})}
    command = [*COMMAND, *map(str, words)]
    done = subprocess.run(
        command, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=WAIT_S, env=env, check=False
    )
    assert done.returncode == code, done.stderr
    return done


def objects(text: str) -> list[dict[str, Any]]:
    """JSON objects one after the other."""
    found, decoder, at = [], json.JSONDecoder(), 0
    while at < len(text):
        value, at = decoder.raw_decode(text, at)
        found.append(value)
        at += len(text[at:]) - len(text[at:].lstrip())
    return found


@pytest.fixture
def work(tmp_path: Path) -> Path:
    for name, text in {
        "echo.py": ECHO,
        "helper.py": HELPER,
        "a.json": '{"k": 1}',
        "b.txt": "text",
        "c.bin": "raw",
        "form": "left=1&right=two",
    }.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.process
def test_a_handler_file_is_run_as_a_server_would(work: Path) -> None:
    inputs = ["--input", "a.json", "--input", "b.txt", "--input", "c.bin"]
    more = ["--header", "X-Mine: yes", "--url-path", "v1/chat", "--extra-files", "helper.py"]
    done = asked("echo.py", *inputs, *more, cwd=work)
    answers = objects(done.stdout)
    assert [(each["body"], each["content-type"], each["call"]) for each in answers] == [
        ("{'k': 1}", "application/json", 1),
        ("text", "text/plain", 2),
        (str(bytearray(b"raw")), "application/octet-stream", 3),
    ]
    assert all((each["x-mine"], each["url_path"], each["explain"]) == ("yes", "v1/chat", "False") for each in answers)
    assert "printed by the model" in done.stderr
    heads = [line for line in done.stderr.splitlines() if line.startswith(("HTTP/", "x-row", "content-type"))]
    assert heads == ["HTTP/1.1 201 Made", "x-row: 0", "content-type: application/json"] * 3


@pytest.mark.process
def test_one_batch_and_repeats_and_forms_and_an_output_file(work: Path) -> None:
    form = ["--content-type", "application/x-www-form-urlencoded", "--explain"]
    done = asked("echo.py", "--input", "form", "--input", "form", "--batch", *form, "--output", "out", cwd=work)
    assert done.stdout.startswith("printed by the model\n")
    answers = objects((work / "out").read_text())
    assert [(each["left"], each["right"], each["batch"], each["explain"]) for each in answers] == [
        (str(bytearray(b"1")), str(bytearray(b"two")), [2, 2], "True")
    ] * 2
    (work / "model-config.yaml").write_text("batchSize: 7")
    boundary = ["--header", "Content-Type: multipart/form-data; boundary=x"]
    broken = asked("echo.py", "--input", "form", *boundary, cwd=work, code=1)
    assert "HTTP/1.1 400 Bad Request" in broken.stderr
    assert "a body that does not parse" in json.loads(broken.stdout)["message"]
    repeated = asked("echo.py", "--input", "-", "--repeat", 3, "-c", "model-config.yaml", cwd=work, stdin="typed in")
    (answer,) = objects(repeated.stdout)
    assert (answer["body"], answer["batch"], answer["call"]) == (str(bytearray(b"typed in")), [1, 7], 1)
    assert "Calls: 3, the first" in repeated.stderr


@pytest.mark.process
@pytest.mark.parametrize("archive_format", ["default", "tgz", "no-archive"])
def test_archives_and_folders_are_run_and_leave_nothing(work: Path, archive_format: str) -> None:
    request = ArchiveRequest(
        model_name="packed",
        version="3.0",
        handler=str(work / "echo.py"),
        extra_files=str(work / "helper.py"),
        export_path=work / "out",
        archive_format=archive_format,
    )
    path = write_archive(request)
    (work / "tmp").mkdir()
    done = asked(path, "--input", "a.json", cwd=work, tmp=work / "tmp")
    assert objects(done.stdout)[0]["body"] == "{'k': 1}"
    assert "Loaded packed 3.0 in" in done.stderr
    assert list((work / "tmp").iterdir()) == []


ENDS = """
import os, signal, subprocess, sys, time

def handle(data, context):
    if data is None:
        return
    word = data[0]["body"]
    if word == "child":
        subprocess.run([sys.executable, "-c", "print('printed by a child')"], check=True)
        return ["answered"]
    os.kill(os.getpid(), getattr(signal, word))
    time.sleep(60)
"""


@pytest.mark.process
def test_whatever_ends_it_no_folder_stays_for_good(tmp_path: Path) -> None:
    (tmp_path / "ends.py").write_text(ENDS)
    (tmp_path / "tmp").mkdir()
    path = write_archive(ArchiveRequest("ends", "1.0", str(tmp_path / "ends.py"), export_path=tmp_path))
    for word, code in (("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGKILL", -9)):
        (tmp_path / "in.txt").write_text(word)
        done = asked(path, "--input", "in.txt", cwd=tmp_path, tmp=tmp_path / "tmp", code=code)
        assert "Traceback" not in done.stderr
        assert len(list((tmp_path / "tmp").iterdir())) == (1 if word == "SIGKILL" else 0)
    (tmp_path / "in.txt").write_text("child")
    done = asked(path, "--input", "in.txt", cwd=tmp_path, tmp=tmp_path / "tmp")  # and tidies up
    assert (done.stdout, "printed by a child" in done.stderr) == ("answered\n", True)
    assert list((tmp_path / "tmp").iterdir()) == []


FAILING = """
from ts.utils.util import PredictionException

def handle(data, context):
    if data is None:
        return
    word = data[0]["body"]
    if word == "refuse":
        raise PredictionException("not today", 404)
    if word == "stream":
        yield ["one "]
        yield ["two "]
        raise ValueError("in the middle")
    kept = "a local variable"
    yield [1 / 0]
"""


@pytest.mark.process
def test_failures_are_shown_in_full_and_answered_as_clients_see_them(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    for word in ("refuse", "stream", "divide"):
        (tmp_path / f"{word}.txt").write_text(word)
    inputs = ["--input", "refuse.txt", "--input", "stream.txt", "--input", "divide.txt"]
    done = asked("failing.py", *inputs, "--pdb", cwd=tmp_path, code=1, stdin="p 'in pdb:', word\nq\np kept\nq\n")
    refusal, rest = done.stdout.split("}\n", 1)
    assert json.loads(refusal + "}") == {"code": 404, "type": "InternalServerException", "message": "not today"}
    assert rest.startswith("one two \n")
    assert json.loads(rest.removeprefix("one two \n"))["message"] == "Prediction failed"
    assert re.findall(r"HTTP/.*|transfer-encoding.*", done.stderr) == [
        "HTTP/1.1 404 Not Found",
        "HTTP/1.1 200 OK",
        "transfer-encoding: chunked",
        "HTTP/1.1 503 Service Unavailable",
    ]
    assert "The answer breaks off here: Prediction failed" in done.stderr
    assert 'raise ValueError("in the middle")' in done.stderr
    assert "ZeroDivisionError: division by zero" in done.stderr
    assert "('in pdb:', 'stream')" in done.stderr
    assert "'a local variable'" in done.stderr


@pytest.mark.process
def test_a_model_that_cannot_be_loaded_shows_why(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import there_is_no_such_package\n")
    (tmp_path / "in.txt").write_text("")
    done = asked("broken.py", "--input", "in.txt", cwd=tmp_path, code=1)
    assert "import there_is_no_such_package" in done.stderr
    assert "ModuleNotFoundError: No module named 'there_is_no_such_package'" in done.stderr
    (tmp_path / "model-config.yaml").write_text("batching: sometimes")
    refused = asked("broken.py", "--input", "in.txt", "-c", "model-config.yaml", cwd=tmp_path, code=1)
    assert refused.stderr == ("Error: model-config.yaml: batching: expected one of adaptive, fill, got 'sometimes'\n")


SUMS = """
class Sums:
    def predict(self, inputs, outputs):
        inputs["x"] += 0  # a worker's arrays can be written to
        outputs["sum"][:] = inputs["x"].sum(axis=1, keepdims=True)

    def describe(self):
        return {"adds": "three numbers"}
"""
SUMS_CONFIG = """
backend: python
inputs:
  - {name: x, dtype: float32, shape: [3]}
outputs:
  - {name: sum, dtype: float32, shape: [1]}
"""


@pytest.mark.process
def test_a_typed_model_is_given_arrays_and_describes_itself(tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(SUMS)
    (tmp_path / "model-config.yaml").write_text(SUMS_CONFIG)
    (tmp_path / "a.json").write_text("[1, 2, 3]")
    (tmp_path / "b.json").write_text('{"x": [4, 5, 6]}')
    common = ["sums.py", "-c", "model-config.yaml", "--batch", "--input", "a.json"]
    done = asked(*common, "--input", "b.json", "--describe", cwd=tmp_path)
    assert done.stdout == '{"adds":"three numbers"}\n[6.0]\n[15.0]\n'
    (tmp_path / "short.json").write_text("[1, 2]")
    explained = asked(*common, "--explain", cwd=tmp_path, code=1)
    assert "Explanation: expected a model with a handler" in explained.stdout
    wrong = asked(*common, "--input", "short.json", cwd=tmp_path, code=1)
    assert wrong.stderr.count("HTTP/1.1 400 Bad Request") == 2
    assert "x" in json.loads(wrong.stdout[: wrong.stdout.index("}") + 1])["message"]


COUNTS = """
import numpy as np


class Counts:
    def predict(self, inputs):
        for number in range(int(inputs["n"][0])):
            yield {"texts": np.array([f"{number} of {len(inputs['n'])}"], dtype=object)}
"""
COUNTS_CONFIG = """
backend: python
model_transaction_policy: {decoupled: true}
input:
  - {name: n, data_type: TYPE_INT32, dims: [-1]}
output:
  - {name: texts, data_type: TYPE_STRING, dims: [1]}
"""
LONGEST = """
class Longest:
    def predict(self, inputs):
        return {"length": inputs["x"].max(axis=1, keepdims=True)}
"""
LONGEST_CONFIG = """
backend: python
max_batch_size: 4
input:
  - {name: x, data_type: TYPE_FP32, dims: [-1]}
output:
  - {name: length, data_type: TYPE_FP32, dims: [1]}
"""


@pytest.mark.process
def test_tensors_of_any_size_and_answers_of_any_number_are_shown_as_json(tmp_path: Path) -> None:
    (tmp_path / "counts.py").write_text(COUNTS)
    (tmp_path / "counts.yaml").write_text(COUNTS_CONFIG)
    (tmp_path / "longest.py").write_text(LONGEST)
    (tmp_path / "longest.yaml").write_text(LONGEST_CONFIG)
    (tmp_path / "a.json").write_text("[2, 1]")
    (tmp_path / "b.json").write_text("[1, 7, 3]")
    counted = asked("counts.py", "-c", "counts.yaml", "--input", "a.json", cwd=tmp_path)
    assert counted.stdout.split("\n") == ['["0 of 2"]', '["1 of 2"]', "", ""], (
        "lines as in a server, and the end of the answer"
    )
    both = ["--batch", "--input", "a.json", "--input", "b.json"]
    longest = asked("longest.py", "-c", "longest.yaml", *both, cwd=tmp_path)
    assert longest.stdout == "[2.0]\n[7.0]\n"


STOPS = """
def handle(data, context):
    if data is None:
        return
    secret = "abc" * len(data)
    breakpoint()
    return [secret.upper()]
"""


class Terminal:
    """A command with a terminal of its own, and what it has shown."""

    def __init__(self, command: Sequence[str], cwd: Path) -> None:
        self._fd, theirs = pty.openpty()
        env = {**os.environ, "TERM": "dumb", "PYTHONBREAKPOINT": "pdb.set_trace"}
        self._process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd, env=env)
        os.close(theirs)
        self.shown = ""
        self._at = 0

    def read_until(self, text: str) -> None:
        """Everything up to the next `text`, or to the end for ""."""
        end_s = time.monotonic() + WAIT_S
        while not text or text not in self.shown[self._at :]:
            assert select.select([self._fd], [], [], max(0.0, end_s - time.monotonic()))[0], self.shown
            try:
                data = os.read(self._fd, 4096)
            except OSError:  # EIO: nobody has the other end any more
                data = b""
            if not data:
                assert not text, f"{text!r} did not come: {self.shown}"
                return
            self.shown += data.decode()
        self._at = self.shown.index(text, self._at) + len(text)

    def type(self, line: str) -> None:
        os.write(self._fd, f"{line}\n".encode())

    def ended(self) -> int:
        self.read_until("")
        return self._process.wait(WAIT_S)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        with contextlib.suppress(OSError):
            os.close(self._fd)


@pytest.mark.process
def test_a_breakpoint_stops_on_the_terminal_and_goes_on_to_the_answer(tmp_path: Path) -> None:
    (tmp_path / "stops.py").write_text(STOPS)
    (tmp_path / "in.txt").write_text("x")
    for last, code in (("c", 0), ("q", 1)):
        terminal = Terminal([*COMMAND, "stops.py", "--input", "in.txt"], tmp_path)
        try:
            terminal.read_until("(Pdb)")
            assert "return [secret.upper()]" in terminal.shown
            terminal.type("p secret + '!'")
            terminal.read_until("'abc!'")
            terminal.read_until("(Pdb)")
            assert "ABC" not in terminal.shown
            terminal.type(last)
            assert terminal.ended() == code, terminal.shown
        finally:
            terminal.close()
        assert ("\nABC" in terminal.shown) == (code == 0)
        assert "Traceback" not in terminal.shown


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["echo.py"], "Missing option '--input' (or '--describe')."),
        (["", "--describe"], "expected an archive, a folder or a handler, found nothing at "),
        (["gone.mar", "--describe"], "expected an archive, a folder or a handler, found nothing at gone.mar"),
        (["echo.py", "--input", "gone"], "'gone' does not exist"),
        (["echo.py", "--describe", "--header", "no colon"], "expected 'Name: value', got 'no colon'"),
        (["echo.py", "--describe", "--device", "gpu"], "expected cpu, cuda or cuda:0, got 'gpu'"),
        (["folder", "--describe", "--model-file", "x"], "--model-file goes with a handler file, got folder"),
    ],
)
def test_wrong_usage_exits_with_2(work: Path, words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (work / "folder").mkdir()
    monkeypatch.chdir(work)
    (work / "kept").write_text("an answer of before")
    result = CliRunner().invoke(run, [*words, "--output", "kept"])
    assert (result.exit_code, sentence in result.stderr) == (2, True), result.stderr
    assert (work / "kept").read_text() == "an answer of before"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["gone.py", "--describe"], "File does not exist: gone.py (given as --handler)"),
        (["folder", "--describe"], "MAR-INF/MANIFEST.json is missing, and nothing else names a handler"),
        (["c.bin", "--describe"], "Archive c.bin: expected a zip under a name that ends in .mar"),
        (["echo.py", "--describe", "--config", "gone.yaml"], "--config: expected a file, got "),
        (["echo.py", "--describe", "--output", "gone/out"], "--output: gone/out cannot be written: No such file"),
    ],
)
def test_what_cannot_be_opened_says_so(
    work: Path, words: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (work / "folder").mkdir()
    monkeypatch.chdir(work)
    handlers = list(logging.getLogger().handlers)
    result = CliRunner().invoke(run, words)
    assert (result.exit_code, sentence in result.stderr) == (1, True), result.stderr
    assert logging.getLogger().handlers == handlers, "the caller's logging is as it was"

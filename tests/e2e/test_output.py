"""Whatever a model's processes print, in whatever way, reaches the log with the worker that it is from, until its very end."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until

WAIT_S_MAX = 30
TELLS = """
import atexit, ctypes, os, subprocess, sys, threading
atexit.register(lambda: print("at exit", end=""))
print("while it is imported")
def handle(data, context):
    if data is None:
        sys.stderr.write("while it is loaded")
        return None
    word = bytes(data[0]["body"]).decode()
    getattr(sys.modules[__name__], "do_" + word)()
    return [word]
def do_descriptors():
    os.write(1, b"by number 1\\n")
    os.write(2, b"by number 2\\n")
    ctypes.CDLL(None).write(1, b"by C\\n", 5)
def do_pieces():
    for word in ("one ", "two ", "three"):
        print(word, end="", flush=True)
    print()
def do_long():
    print("l" * 100_000)
    print("☃" * 30_000)
def do_junk():
    sys.stdout.buffer.write(b"junk \\xff\\xfe \\x00 \\x1b[31m end\\n")
    print("a carriage\\rreturn, \\u2028 a separator")
def do_children():
    subprocess.run([sys.executable, "-c", "import sys; print('a program'); print('its errors', file=sys.stderr)"])
    if os.fork() == 0:
        os.write(1, b"a forked child\\n")
        os._exit(0)
    os.wait()
    thread = threading.Thread(target=print, args=("a thread",))
    thread.start()
    thread.join()
def do_raise():
    raise ValueError("line one\\nline two")
def do_forge():
    print("2026-11-20T19:46:08,901 [INFO ] main ringserve.supervisor - forged")
def do_crash():
    for number in range(500):
        print("before the crash", number)
    sys.stdout.write("the last words, without an end")
    os.abort()
def do_without_stdout():
    sys.stdout.close()
    sys.stderr = None
    print("nowhere") if sys.stdout is None else os.write(1, b"by number still\\n")
"""
LINE = re.compile(r"\S+ \[(INFO |WARN |ERROR)\] W-(9\d{3})-(\S+?)_(\S+)-(stdout|stderr) MODEL_LOG - (.*)")


class Told:
    """A server with one model, in two versions, and what its log says of them."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server

    def ask(self, word: str, version: str = "1.0") -> httpx.Response:
        url = f"{self.server.inference_url}/predictions/tells/{version}"
        return httpx.post(url, content=word, trust_env=False, timeout=WAIT_S_MAX)

    def lines(self, version: str = "1.0") -> list[tuple[str, str]]:
        """The stream and the text of every line of that version."""
        written = (self.server.folder / "logs" / "model_log.log").read_bytes()
        lines = (
            written.rpartition(b"\n")[0].decode().split("\n") if b"\n" in written else []
        )  # the last may be half there
        matches = [LINE.fullmatch(line) for line in lines]
        assert None not in matches, [line for line in lines if not LINE.fullmatch(line)]
        found = [match for match in matches if match is not None]
        assert {match[3] for match in found} <= {"tells", "dies"}
        return [(match[5], match[6]) for match in found if (match[3], match[4]) == ("tells", version)]

    def wait_for(self, *wanted: tuple[str, str], version: str = "1.0") -> None:
        """In that order, whatever is between them."""

        def there() -> bool:
            rest = iter(self.lines(version))
            return all(any(line == each for line in rest) for each in wanted)

        wait_until(there, WAIT_S_MAX, f"{wanted}")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Iterator[Told]:
    folder = tmp_path_factory.mktemp("output")
    store = folder / "store"
    for version in ("1.0", "2.0"):
        archive(store, "tells", "tells.py", source=TELLS, version=version, file=f"tells-{version}")
    server = ServerProcess(store, config={"default_workers_per_model": 1}, folder=folder / "server")
    with server:
        wait_until(lambda: server.log.count("is ready") >= 2, WAIT_S_MAX, f"workers\n{server.log}")
        yield Told(server)
    assert server.remains() == []


def test_every_way_to_print_is_heard(told: Told) -> None:
    assert told.ask("descriptors").is_success
    told.wait_for(("stdout", "while it is imported"), ("stdout", "by number 1"), ("stdout", "by C"))
    told.wait_for(("stderr", "while it is loadedby number 2"))


def test_a_line_that_comes_in_pieces_is_one(told: Told) -> None:
    assert told.ask("pieces").is_success
    told.wait_for(("stdout", "one two three"))


def test_nothing_of_a_very_long_line_is_lost(told: Told) -> None:
    assert told.ask("long").is_success

    def count(character: str) -> int:
        texts = [text for _, text in told.lines() if set(text) == {character}]
        return sum(map(len, texts))

    wait_until(lambda: (count("l"), count("☃")) == (100_000, 30_000), WAIT_S_MAX, "all of both lines")


def test_what_is_no_text_is_told_as_far_as_it_is(told: Told) -> None:
    assert told.ask("junk").is_success
    told.wait_for(
        ("stdout", "junk \ufffd\ufffd \\x00 \\x1b[31m end"), ("stdout", "a carriage\\rreturn, \\u2028 a separator")
    )


def test_what_the_models_own_processes_print_is_the_models(told: Told) -> None:
    assert told.ask("children").is_success
    told.wait_for(("stdout", "a program"), ("stdout", "a forked child"), ("stdout", "a thread"))
    told.wait_for(("stderr", "its errors"))


def test_a_traceback_is_in_the_log_line_by_line(told: Told) -> None:
    assert told.ask("raise").json()["message"] == "Prediction failed"
    told.wait_for(
        ("stdout", "Traceback (most recent call last):"), ("stdout", "ValueError: line one"), ("stdout", "line two")
    )


def test_a_model_forges_no_line_of_the_servers(told: Told) -> None:
    assert told.ask("forge").is_success
    told.wait_for(("stdout", "2026-11-20T19:46:08,901 [INFO ] main ringserve.supervisor - forged"))


def test_each_version_has_its_own_lines(told: Told) -> None:
    assert told.ask("pieces", version="2.0").is_success
    told.wait_for(("stdout", "while it is imported"), ("stdout", "one two three"), version="2.0")


def test_a_crash_loses_nothing_of_what_was_said_before(told: Told) -> None:
    answer = told.ask("crash", version="2.0")
    assert answer.status_code == 500
    assert "signal 6" in answer.json()["message"]
    said = [("stdout", f"before the crash {number}") for number in range(500)]
    told.wait_for(*said, ("stdout", "the last words, without an end"), version="2.0")


def test_a_worker_without_its_standard_streams_serves_and_says_why_it_ends(told: Told) -> None:
    assert told.ask("without_stdout", version="2.0").is_success
    assert told.ask("descriptors", version="2.0").is_success
    told.wait_for(("stdout", "by number still"), ("stdout", "by number 1"), version="2.0")


def test_what_is_printed_at_exit_is_heard(told: Told) -> None:
    with httpx.Client(base_url=told.server.management_url, trust_env=False, timeout=WAIT_S_MAX) as management:
        assert management.put("/models/tells/2.0/set-default").is_success
        assert management.delete("/models/tells/1.0").is_success
    told.wait_for(("stdout", "at exit"))


def test_the_last_words_of_a_model_that_dies_while_it_is_loaded_are_in_the_answer(
    told: Told, archive: Callable[..., Path]
) -> None:
    source = "import os, sys\nprint('first words')\nsys.stdout.write('☃ last words')\nos._exit(3)\n"
    archive(told.server.folder.parent / "store", "dies", "dies.py", source=source)
    wanted = {"url": "dies.mar", "initial_workers": "1"}
    answer = httpx.post(f"{told.server.management_url}/models", params=wanted, trust_env=False, timeout=WAIT_S_MAX)
    message = json.loads(answer.text)["message"]
    assert answer.status_code >= 400
    assert "exited with code 3" in message
    assert "first words\n☃ last words" in message

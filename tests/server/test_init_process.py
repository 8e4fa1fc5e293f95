"""What process 1 does, by a process that is told to take orphans as process 1 has to."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ringserve.server.testing import wait_until

# Becomes an init process, whose server runs the rest of the program.
START = """
import ctypes, os, signal, sys, time
from pathlib import Path
from ringserve.server.init_process import become_init
ctypes.CDLL(None).prctl(36, 1)  # PR_SET_CHILD_SUBREAPER: orphans come to us
folder = Path(sys.argv[1])

def orphaned():
    if os.fork() == 0:
        if os.fork() == 0:
            return True
        os._exit(0)
    os.wait()
    return False

def until(name):
    while not (folder / name).exists():
        time.sleep(0.005)

become_init(str(folder / "pid"))
"""
# As a rolling restart: another process has taken the PID file, and the first one still answers.
SUCCESSOR = """
if orphaned():
    (folder / "pid.part").write_text(str(os.getpid()))
    (folder / "pid.part").rename(folder / "pid")  # it appears with its content, as the real one does
    until("end")
    {end}
until("pid")
"""


def start(folder: Path, program: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", START + program, str(folder), "ringserve"])


def end_of(process: "subprocess.Popen[bytes]") -> int:
    try:
        return process.wait(10)
    finally:
        process.kill()


@pytest.mark.parametrize(
    ("end", "code"), [("os._exit(7)", 7), ("os.kill(os.getpid(), signal.SIGKILL)", 128 + signal.SIGKILL)]
)
def test_it_ends_as_its_server_ends(tmp_path: Path, end: str, code: int) -> None:
    (tmp_path / "pid").write_text(str(os.getpid()))  # of a former life: somebody has that pid, and is no server
    assert end_of(start(tmp_path, end)) == code


def test_it_goes_on_with_the_successor_of_its_server(tmp_path: Path) -> None:
    process = start(tmp_path, SUCCESSOR.format(end="os._exit(5)") + "os._exit(0)")
    wait_until((tmp_path / "pid").exists, 10, "a successor")
    (tmp_path / "end").touch()
    assert end_of(process) == 5


def test_a_successor_that_ends_while_its_predecessor_is_buried_is_waited_for(tmp_path: Path) -> None:
    # The look for a living server comes just after the successor's end, and just before anybody has waited for it.
    program = """
import os, signal, sys
from ringserve.server import init_process

def child(code):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(read, 1)
        os._exit(code)
    return pid, write

signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
(server, end_server), (successor, end_successor) = child(0), child(5)
look = init_process._named

def late_look(pid_file):
    os.write(end_successor, b".")
    os.waitid(os.P_PID, successor, os.WEXITED | os.WNOWAIT)
    return look(pid_file)

init_process._named = late_look
with open(sys.argv[1], "w") as file:
    file.write(str(successor))
os.write(end_server, b".")
sys.exit(init_process.attend(server, sys.argv[1]))
"""
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "pid"), "ringserve"])
    assert end_of(process) == 5


def test_a_successor_that_dies_while_the_one_before_it_still_answers_is_not_forgotten(tmp_path: Path) -> None:
    program = SUCCESSOR.format(end="os._exit(6)") + "until('last')\nos._exit(0)"
    process = start(tmp_path, program)
    wait_until((tmp_path / "pid").exists, 10, "a successor")
    successor = Path(f"/proc/{(tmp_path / 'pid').read_text()}")
    (tmp_path / "end").touch()
    wait_until(lambda: not successor.exists(), 10, "its end")
    (tmp_path / "last").touch()
    assert end_of(process) == 6


def test_signals_go_to_the_server_whatever_a_former_life_has_left(tmp_path: Path) -> None:
    program = "signal.signal(signal.SIGTERM, lambda *_: os._exit(4))\n(folder / 'ready').touch()\ntime.sleep(60)"
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as other:
        (tmp_path / "pid").write_text(str(other.pid))
        process = start(tmp_path, program)
        wait_until((tmp_path / "ready").exists, 10, "a server")
        process.send_signal(signal.SIGTERM)
        assert end_of(process) == 4
        other.communicate(b"\n")
    assert other.returncode == 0

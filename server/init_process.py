"""Process 1 of a container: it reaps what nobody else does, passes signals on, and ends as the server ended.

The kernel gives process 1 every orphan of its namespace, and no default actions of signals. The server is not made for that: an
orphan must be waited for, and waiting for whatever comes would take from it the ends of its own processes. So where it is
started as process 1, that one becomes this file, run by a bare interpreter (10 MB), and the server its child.

After a rolling restart the server is another process, which the PID file names. It has been orphaned by the command that started it, so
it is process 1's child as well.
"""

import contextlib
import os
import signal
import sys

# Who sends these to process 1 means the terminal's jobs, or the kernel does: nothing for the server.
_NOT_PASSED_ON = frozenset(
    (signal.SIGTTIN, signal.SIGTTOU, signal.SIGTSTP, signal.SIGCONT, signal.SIGPIPE, signal.SIGURG)
)
_FAULTS = frozenset(
    (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS)
)
_NAMES = {b"ringserve", b"torchserve", b"ringserve.tools.cli.main"}  # what is among the words of a server
_SIGNALS = signal.valid_signals() - _FAULTS - {signal.SIGKILL, signal.SIGSTOP}


def become_init(pid_file: str) -> None:
    """Returns in a child, which is to be the server; this process waits for it, and for every other one, until it has ended."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    # From here to the other's first look no signal is lost: they are blocked, also across exec.
    server = os.fork()
    if server == 0:
        # What a terminal sends goes to process 1's group, which passes it on: once.
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    os.execv(sys.executable, [sys.executable, "-I", "-S", os.path.abspath(__file__), str(server), pid_file])


def attend(server: int, pid_file: str) -> int:
    """Until the server has ended, and whoever has taken over from it; the exit code."""
    lost: int | None = None  # how a successor ended that left its PID file, while the one before it still answered
    while True:
        number = signal.sigwait(_SIGNALS)
        if number == signal.SIGCHLD:
            written, ends = _written(pid_file), _reap()
            if server not in ends:
                lost = ends.get(written, lost)
                continue
            successor = _named(pid_file)
            if successor is None:
                ends |= _reap()  # it may have ended between the two looks, and is no server any more to the second
                return ends.get(written, ends[server] if lost is None else lost)
            server, lost = successor, None
        elif number not in _NOT_PASSED_ON:
            with contextlib.suppress(OSError):
                os.kill(_named(pid_file) or server, number)


def _reap() -> dict[int, int]:
    """Wait for all that have ended; their exit codes: of those that were killed as shells say it."""
    ends = {}
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0] != 0:
            code = os.waitstatus_to_exitcode(ended[1])
            ends[ended[0]] = code if code >= 0 else 128 - code
    return ends


def _written(pid_file: str) -> int:
    """What the PID file says; 0 where it says nothing."""
    try:
        with open(pid_file, encoding="ascii") as file:
            return int(file.read(64))
    except (OSError, ValueError):
        return 0


def _named(pid_file: str) -> int | None:
    """The living server that the PID file names: one of a former life of the container may name anything by now."""
    pid = _written(pid_file)
    if pid <= 1:
        return None
    try:
        os.kill(pid, 0)
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read(4096)
    except OSError:
        return None
    return pid if _NAMES & {os.path.basename(word) for word in words.split(b"\0")} else None


if __name__ == "__main__":
    sys.exit(attend(int(sys.argv[1]), sys.argv[2]))

"""Process 1 of a container: it reaps what nobody else does, passes signals on, and ends as the server ended.

The kernel gives process 1 every orphan of its namespace, and no default actions of signals. The server is not made for that: an
orphan must be waited for, and waiting for whatever comes would take from it the ends of its own processes. So where it is
started as process 1, that one becomes this file, run by a bare interpreter (8 MB), and the server its child.

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
    while True:
        number = signal.sigwait(_SIGNALS)
        if number == signal.SIGCHLD:
            code = _reap(server)
            if code is not None:
                successor = _named(pid_file)
                if successor is None or successor == server:
                    return code
                server = successor
        elif number not in _NOT_PASSED_ON:
            with contextlib.suppress(OSError):
                os.kill(_named(pid_file) or server, number)


def _reap(server: int) -> int | None:
    """Wait for all that have ended; how the server did, if it is one of them: a killed one as shells say it."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == server:
            ended = os.waitstatus_to_exitcode(status)
            code = ended if ended >= 0 else 128 - ended


def _named(pid_file: str) -> int | None:
    """The living process that the PID file names."""
    try:
        with open(pid_file, encoding="ascii") as file:
            pid = int(file.read(64))
        os.kill(pid, 0)
    except (OSError, ValueError):
        return None
    return pid if pid > 1 else None


if __name__ == "__main__":
    sys.exit(attend(int(sys.argv[1]), sys.argv[2]))

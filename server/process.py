"""One child process: start, talk, listen to what it prints, notice its end."""

import asyncio
import contextlib
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ringserve.server.channel import Channel, ControlClosed, ControlFull, channel_pair
from ringserve.server.lifecycle import Event, State, after
from ringserve.server.logs.formats import MODEL_LOG, SOURCE
from ringserve.server.messages import Message

output_logger = logging.getLogger("ringserve.output")
model_logger = logging.getLogger(MODEL_LOG)
logger = logging.getLogger("ringserve.process")

# glibc gives memory of more than 128 KiB back to the kernel as soon as it is freed, and gets it anew, page by page, for the next
# request: 0.4 ms for a handler that is given 600 KB and returns them. Up to these sizes, processes keep it. (Not with
# RINGSERVE_KEEP_MEMORY=0, for measuring what that is worth.)
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(128 << 20)}
if os.environ.get("RINGSERVE_KEEP_MEMORY") == "0":
    ALLOCATOR = {}
# What our own processes log is of the level that they say; else standard output is worth INFO, standard error WARNING.
_OWN_LINE = re.compile(r"(DEBUG|INFO|WARNING|ERROR|CRITICAL) ringserve(\.\w+)* ")
TAIL_LINES = 30
LINE_BYTES_MAX = 16_384
# What is taken at a time. Every line costs time, and empty ones are many: 18 s for what a model prints in a moment, when as much was
# taken as there was.
READ_BYTES = 2048
LAST_BYTES_MAX = 1 << 20  # of a process that has ended: something that it started may still print
LAST_LINES_MAX = 1000


def _whole_characters(data: bytes) -> int:
    """How many bytes there are before a character of UTF-8 that has begun at the end and is not complete."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte >= 0xC0:  # the first of several
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if back < length else len(data)
        if byte < 0x80:
            break
    return len(data)


class _Output:
    """Reads a pipe of the child line by line into the log, and remembers the last lines."""

    def __init__(
        self,
        fd: int,
        source: str,
        level: int,
        to: logging.Logger,
        tail: deque[str],
        takes: Callable[[str], bool] = lambda line: False,
    ) -> None:
        self._fd = fd
        self._source = {SOURCE: source}
        self._level = level
        self._to = to
        self._tail = tail
        self._takes = takes
        self._rest = b""
        os.set_blocking(fd, False)
        asyncio.get_running_loop().add_reader(fd, self.read)

    def read(self) -> None:
        """Take some of what there is; a child that never stops printing does not stop us."""
        data = self._taken(READ_BYTES)
        if data == b"":
            self.close()
        elif data is not None:
            for line in self._lines(data):
                self._say(line)

    def read_last(self) -> None:
        """The process has ended: its last lines, then no more."""
        last = bytearray()
        while len(last) < LAST_BYTES_MAX and (data := self._taken(65_536)):
            last += data
        lines = self._lines(bytes(last))
        if len(lines) > LAST_LINES_MAX:
            self._say(b"(%d lines are left out here)" % (len(lines) - LAST_LINES_MAX))
        for line in lines[-LAST_LINES_MAX:]:
            self._say(line)
        self.close()

    def _taken(self, bytes_max: int) -> bytes | None:
        """None when there is nothing now, nothing at all when there will be no more."""
        try:
            return os.read(self._fd, bytes_max) if self._fd >= 0 else None
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def _lines(self, data: bytes) -> list[bytes]:
        """Those that are complete, or too long to wait for their end."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LINE_BYTES_MAX:
            end = _whole_characters(self._rest)
            lines.append(self._rest[:end])
            self._rest = self._rest[end:]
        return lines

    def _say(self, line: bytes) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if self._takes(text):
            return
        self._tail.append(text)
        own = _OWN_LINE.match(text)
        level = logging.getLevelNamesMapping()[own[1]] if own else self._level
        self._to.log(level, "%s", text, extra=self._source)

    def close(self) -> None:
        """Stop listening; a last line without its end still counts."""
        if self._fd < 0:
            return
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        self._fd = -1
        if self._rest:
            self._say(self._rest)
            self._rest = b""


class Child:
    """One process. `on_message(message, fds)` is called for what it sends, `on_exit()` once, after it was reaped. Lines
    of its standard output that `takes_line` takes are none of the log."""

    def __init__(
        self,
        label: str,
        receives: object,
        says_to: logging.Logger = output_logger,
        takes_line: Callable[[str], bool] = lambda line: False,
    ) -> None:
        self.label = label
        self._says_to = says_to
        self._takes_line = takes_line
        self.state = State.STARTING
        self.pid = -1
        self.exit_code: int | None = None
        self.started_s = time.time()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self.exited = asyncio.Event()
        self._receives = receives
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: Channel | None = None
        self._outputs: list[_Output] = []
        self._on_exit: Callable[[], None] = lambda: None

    def start(
        self,
        module: str,
        env: Mapping[str, str],
        on_message: Callable[[object, list[int]], None],
        on_exit: Callable[[], None],
        python: str = sys.executable,
    ) -> None:
        """Start `python -P -m module CONTROL_FD`. Raises `OSError` when the process cannot be made."""
        ours, theirs = channel_pair()
        with theirs:
            try:
                # A process group of its own: Ctrl-C in a terminal reaches the supervisor alone, which stops in order.
                process = subprocess.Popen(
                    [python, "-P", "-m", module, str(theirs.fileno())],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=dict(env),
                    pass_fds=(theirs.fileno(),),
                    process_group=0,
                )
            except OSError:
                ours.close()
                raise
        self._process, self.pid, self._on_exit = process, process.pid, on_exit
        assert process.stdout is not None
        assert process.stderr is not None
        self._outputs = [
            _Output(os.dup(stream.fileno()), f"{self.label}-{name}", level, self._says_to, self.tail, takes)
            for name, level, stream, takes in (
                ("stdout", logging.INFO, process.stdout, self._takes_line),
                ("stderr", logging.WARNING, process.stderr, lambda line: False),
            )
        ]
        process.stdout.close()
        process.stderr.close()
        self._channel = Channel(ours, self._receives)
        # A closed channel says nothing by itself: the process' end does.
        self._channel.watch(on_message, lambda: None)
        self._pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def send(self, message: Message, fds: Sequence[int] = ()) -> None:
        """A message to a process that is gone goes nowhere: its end is noticed elsewhere. One that reads nothing any more is
        killed, for we never wait for a child."""
        if self._channel is None:
            return
        try:
            self._channel.send(message, fds, wait=False)
        except ControlClosed:
            pass
        except ControlFull:
            logger.error("%s has stopped reading its messages; killed", self.label)
            self.kill()

    def saw(self, event: Event) -> None:
        self.state = after(self.state, event)

    def kill(self) -> None:
        """SIGKILL, unless it is already gone. The pid cannot have been reused: nobody else reaps it."""
        if self._process is not None and self.exit_code is None:
            if self.state is not State.DRAINING:
                self.saw(Event.STOP_ASKED)
            self._process.send_signal(signal.SIGKILL)

    async def stopped(self, grace_s: float) -> bool:
        """Wait for the end, killing it after the grace; whether it ended by itself."""
        try:
            await asyncio.wait_for(self.exited.wait(), grace_s)
        except TimeoutError:
            logger.warning("%s did not stop within %.1f s; killed", self.label, grace_s)
            self.kill()
            await self.exited.wait()
            return False
        return True

    def _reap(self) -> None:
        assert self._process is not None
        assert self._channel is not None
        # What it started and left behind goes with it. Not reaped yet, it still holds its pid: the group cannot be another's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)
        code = self._process.poll()
        if code is None:
            return
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.exit_code = code
        self._channel.drain()
        self._channel.close()
        for output in self._outputs:
            output.read_last()
        self.saw(Event.EXITED)
        self.exited.set()
        self._on_exit()

    def how_it_ended(self) -> str:
        """A clause for people: by which signal, or with which code."""
        assert self.exit_code is not None
        if self.exit_code < 0:
            number = -self.exit_code
            with contextlib.suppress(ValueError):
                return f"was killed by signal {number} ({signal.Signals(number).name})"
            return f"was killed by signal {number}"
        return f"exited with code {self.exit_code}"


def oom_kills(path: Path = Path("/proc/vmstat")) -> int:
    """How many processes the kernel has killed for memory since it booted; 0 where it does not say."""
    with contextlib.suppress(OSError, ValueError):
        for line in path.read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


def rss_bytes(pid: int) -> int:
    """How much memory a process takes; 0 for one that is gone."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0

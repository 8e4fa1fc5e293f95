"""`ringserve start`, `stop` and `restart`, with TorchServe's flags (contract section 7.1).

Exit codes: 0 done; 1 could not be done, and stderr says why; 2 wrong usage.
"""

import contextlib
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import click
import psutil

from ringserve.protocol.errors import RingServeError
from ringserve.server.handover import NotHandedOver
from ringserve.server.init_process import become_init
from ringserve.server.instance import run_server, started_how, stop_server, take_over
from ringserve.server.logs.setup import CONSOLE_FILE, TS_LOG_FILE, Logs
from ringserve.server.pid_file import MODULE, AlreadyRunning, PidFileError, pid_file, running_pid
from ringserve.server.settings import ConfigError, Settings, check
from ringserve.server.stop_request import holding_stop_signals
from ringserve.tools.cli.flags import check_files, check_more_files, settings_flags, settings_of, told, warned

START_S_MAX = 180.0
# A new instance takes over when its models have loaded, which is theirs to say.
RESTART_S_MAX = 3600.0
LOG_TAIL_LINES = 15
# Of one start only, not of those that repeat it.
_OF_ONE_START = ("--foreground", "--start", "--as-before")
_HIDDEN = ("--ready-fd=", "--take-over=")


class NotStarted(Exception):
    """The server did not start; the message says why, with the end of its log."""


@click.command()
@settings_flags
@click.option("--foreground", is_flag=True, help="Stay until stopped.")
@click.option("--ready-fd", type=int, hidden=True)
@click.option("--take-over", "running", type=int, hidden=True)
@click.option("--as-before", is_flag=True, hidden=True)
@click.pass_context
def start(
    context: click.Context,
    /,
    foreground: bool,
    ready_fd: int | None,
    running: int | None,
    as_before: bool,
    **flags: object,
) -> None:
    """Start the server, in the background unless told otherwise; returns when it listens."""
    try:
        settings = checked_settings(context)
        if foreground:
            serve(settings, ready_fd, running, as_before=as_before)
        else:
            other = running_pid()
            if other is not None:
                raise AlreadyRunning(other)
            pid, log_path = start_in_background(start_words(sys.argv[1:]), settings.log_location)
            click.echo(f"RingServe is running, pid {pid}, log in {log_path}.")
    except (ConfigError, AlreadyRunning, PidFileError, RingServeError, NotStarted) as error:
        fail(str(error))


def checked_settings(context: click.Context) -> Settings:
    """What the command line comes to. Raises `ConfigError`."""
    check_files(context)
    settings = settings_of(context)
    check(settings)
    check_more_files(context)
    return warned(context, settings)


def fail(message: str) -> None:
    """The end of a command that could not do its work."""
    click.echo(message, err=True)
    sys.exit(1)


def start_words(arguments: Sequence[str]) -> list[str]:
    """The command line that starts the same server again, of either kind."""
    words = [word for word in arguments if word not in _OF_ONE_START and not word.startswith(_HIDDEN)]
    return words if words[:1] == ["start"] else ["start", *words]


@holding_stop_signals()
def serve(
    settings: Settings, ready_fd: int | None = None, running: int | None = None, *, as_before: bool = False
) -> None:
    """Be the server, until it is told to stop. Raises what `run_server` does."""
    if os.getpid() == 1:
        become_init(str(pid_file()))
    logs = Logs(settings.log_location, settings.log_format)

    def started() -> None:
        logs.flush()
        _say_started()
        if ready_fd is not None:
            os.close(ready_fd)

    if ready_fd is not None:
        os.set_inheritable(ready_fd, False)
    words = start_words(sys.argv[1:])
    try:
        if running is None:
            run_server(settings, started, words)
        else:
            take_over(settings, started, words, running, as_before=as_before)
    finally:
        logs.close()


def _say_started() -> None:
    try:
        click.echo("Model server started.")
        sys.stdout.flush()
    except OSError:  # nobody reads it: no reason to end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def start_in_background(
    words: Sequence[str],
    log_location: Path | None,
    *,
    patience_s: float = START_S_MAX,
    folder: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> tuple[int, Path | None]:
    """Start the server in the foreground of a new session, its log in that folder, or where our own output goes; its pid and its log
    when it listens. Raises `NotStarted`."""
    console = None if log_location is None else (folder or Path.cwd()) / log_location / CONSOLE_FILE
    log_path = None if console is None else console.with_name(TS_LOG_FILE)
    before = [(path, _size(path)) for path in (log_path, console) if path is not None]
    ready_read, ready_write = os.pipe()
    command = [sys.executable, "-P", "-m", MODULE, *words, "--foreground", f"--ready-fd={ready_write}"]
    try:
        with _opened(console) as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(ready_write,),
                start_new_session=True,
                cwd=folder,
                env=None if environ is None else dict(environ),
            )
    except OSError as error:
        os.close(ready_read)
        raise NotStarted(f"RingServe cannot be started: {error}.") from None
    finally:
        os.close(ready_write)
    # The pipe closes when the listeners are up, and also when the process ends.
    readable, _, _ = select.select([ready_read], [], [], patience_s)
    os.close(ready_read)
    see = "" if log_path is None else f", see {_shown(log_path)}"
    if not readable:
        raise NotStarted(f"RingServe (pid {process.pid}) has not started listening within {patience_s:.0f} s{see}.")
    if _exited(process):
        lines = [line for path, size in before for line in _lines_from(path, size)][-LOG_TAIL_LINES:]
        said = f"RingServe did not start (exit code {process.returncode}){see if lines else ''}."
        if not lines and log_path is not None:
            said += " With --foreground it says why."
        raise NotStarted("\n".join([*lines, said]))
    return process.pid, None if log_path is None else _shown(log_path)


def _opened(console: Path | None) -> contextlib.AbstractContextManager[IO[bytes] | int | None]:
    """Where a server in the background prints what no log has; nowhere when that cannot be written, which is said."""
    if console is None:
        return contextlib.nullcontext()
    try:
        console.parent.mkdir(parents=True, exist_ok=True)
        return console.open("ab")
    except OSError as error:
        click.echo(f"RingServe starts without logs: {console.parent} cannot be written: {error}.", err=True)
        return contextlib.nullcontext(subprocess.DEVNULL)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def _lines_from(path: Path, size: int) -> list[str]:
    """What has come to a log since it had that size, as far as it is still there."""
    with contextlib.suppress(OSError), path.open("rb") as log:
        log.seek(size)
        return log.read().decode(errors="replace").splitlines()
    return []


def _shown(path: Path) -> Path:
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _exited(process: "subprocess.Popen[bytes]") -> bool:
    """A process that fails closes the pipe a moment before it is gone."""
    if running_pid() == process.pid:
        return False
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        return False
    return True


@click.command()
@click.option("--foreground", is_flag=True, help="Accepted for TorchServe's sake: stopping always waits.")
def stop(foreground: bool) -> None:
    """Stop the server and wait until it is stopped."""
    try:
        pid = stop_server()
    except (TimeoutError, PermissionError, PidFileError) as error:
        fail(str(error))
    except ProcessLookupError:
        click.echo("RingServe already stopped.")
    else:
        click.echo("RingServe is not currently running." if pid is None else "RingServe has stopped.")


@click.command()
@settings_flags
@click.pass_context
def restart(context: click.Context, /, **flags: object) -> None:
    """Start a new instance that takes over from the running one, without a request lost. Without flags it is started as the running
    one was, in its folder and environment; with flags, as `start` would. When it cannot start, the running one goes on."""
    try:
        pid = running_pid()
        if pid is None:
            fail("RingServe is not currently running.")
            return
        how = started_how(pid)
        log_location, folder, environ = Path(how.log_location), Path(how.folder), None
        if told(context):
            settings = checked_settings(context)
            log_location, folder = settings.log_location, Path.cwd()
            words = start_words(sys.argv[2:])
        else:
            words, environ = [*how.words, "--as-before"], psutil.Process(pid).environ()
        new, log_path = start_in_background(
            [*words, f"--take-over={pid}"], log_location, patience_s=RESTART_S_MAX, folder=folder, environ=environ
        )
        click.echo(f"RingServe is running, pid {new}, log in {log_path}. It has taken over from pid {pid}.")
    except (ConfigError, PidFileError, NotHandedOver, NotStarted) as error:
        fail(str(error))
    except psutil.Error as error:
        fail(f"The running instance has ended meanwhile: {error}.")

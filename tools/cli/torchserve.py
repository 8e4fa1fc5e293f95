"""TorchServe's own command line (contract section 7.1): `--start`, `--stop`, `--version`, and none of them is `--start`.

For scripts that call `torchserve`, by a link or an alias. What it prints is TorchServe's, on stdout as there. It is not repeated where
it is untrue: "has stopped" is said when it has, and a start returns when the server listens.
"""

import logging
import sys
from collections.abc import Sequence

import click

from ringserve.protocol.errors import RingServeError
from ringserve.server.banner import TORCHSERVE_VERSION
from ringserve.server.instance import stop_server
from ringserve.server.pid_file import AlreadyRunning, PidFileError, running_pid
from ringserve.server.settings import ConfigError
from ringserve.tools.cli.flags import settings_flags
from ringserve.tools.cli.serve import NotStarted, checked_settings, serve, start_in_background, start_words

STOP_S_MAX = 60.0
_FLAGS = (
    *("--version", "--start", "--stop", "--ts-config", "--model-store", "--workflow-store", "--models", "--log-config"),
    *("--cpp-log-config", "--foreground", "--no-config-snapshots", "--ncs", "--plugins-path", "--ppath"),
    *("--disable-token-auth", "--dt", "--enable-model-api"),
)


def in_full(words: Sequence[str], flags: Sequence[str] = _FLAGS) -> list[str]:
    """TorchServe and its archiver take the beginning of a flag for it, where only one of `flags`, by default TorchServe's own,
    begins so."""
    return [_in_full(word, flags) for word in words]


def _in_full(word: str, flags: Sequence[str]) -> str:
    flag, is_, value = word.partition("=")
    meant = [each for each in flags if each.startswith(flag)]
    return f"{meant[0]}{is_}{value}" if len(flag) > 2 and len(meant) == 1 else word


@click.command(hidden=True)
@settings_flags
@click.option("--start", "to_start", is_flag=True, help="Start the model server.")
@click.option("--stop", "to_stop", is_flag=True, help="Stop the model server.")
@click.option("-v", "--version", "to_say", is_flag=True, help="Print TorchServe's version.")
@click.option("--foreground", is_flag=True, help="Start: stay until stopped. Stop: wait at most 60 s.")
@click.pass_context
def torchserve(
    context: click.Context, /, to_start: bool, to_stop: bool, to_say: bool, foreground: bool, **flags: object
) -> None:
    """TorchServe's command line."""
    asked = [name for name, given in (("--start", to_start), ("--stop", to_stop), ("--version", to_say)) if given]
    if len(asked) > 1:
        raise click.UsageError(f"{' and '.join(asked)} exclude each other.")
    # What is logged on the way to a decision is printed, as there.
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(message)s")
    try:
        if to_say:
            running_pid()  # a stale PID file goes, whatever was asked
            click.echo(f"TorchServe Version is {TORCHSERVE_VERSION}")
        elif to_stop:
            _stop(STOP_S_MAX if foreground else None)
        else:
            _start(context, foreground=foreground)
    except AlreadyRunning:
        _fail("TorchServe is already running, please use torchserve --stop to stop TorchServe.")
    except (ConfigError, PidFileError, RingServeError, NotStarted) as error:
        _fail(str(error))


def _fail(message: str) -> None:
    click.echo(message)
    sys.exit(1)


def _start(context: click.Context, *, foreground: bool) -> None:
    """What the server prints goes where ours does: scripts wait for a line of it."""
    other = running_pid()
    if other is not None:
        raise AlreadyRunning(other)
    settings = checked_settings(context)
    if foreground:
        serve(settings)
    else:
        start_in_background(start_words(sys.argv[1:]), None)


def _stop(patience_s: float | None) -> None:
    try:
        pid = stop_server(patience_s)
    except TimeoutError:
        click.echo("Stopping TorchServe took too long.")
    except (PermissionError, ProcessLookupError):
        click.echo("TorchServe already stopped.")
    else:
        if pid is None:
            click.echo("TorchServe is not currently running.")
        elif patience_s is None:
            click.echo("TorchServe has stopped.")

"""`ringserve start` and `stop`, with TorchServe's flags (contract section 7.1).

Exit codes: 0 done; 1 could not be done, and stderr says why; 2 wrong usage.
"""

import os
import select
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import click

from ringserve.protocol.errors import RingServeError
from ringserve.server.instance import AlreadyRunning, log_to_stderr, run_server, running_pid, stop_server
from ringserve.server.settings import (
    MODEL_CONTROL_MODES,
    ConfigError,
    Settings,
    check,
    read_config_file,
    with_repository,
)

START_S_MAX = 180.0
LOG_TAIL_LINES = 15


@click.command()
@click.option("--model-store", type=click.Path(path_type=Path), help="Folder of model archives.")
@click.option(
    "--model-repository",
    type=click.Path(path_type=Path),
    help="Folder of models to serve and watch; by default model_repository, where neither folder is named.",
)
@click.option(
    "--model-control-mode",
    type=click.Choice(MODEL_CONTROL_MODES[1:]),
    help="watch: serve what lies in the folder as it comes and goes; poll: the same without reports of the file system; "
    "explicit: only what the management API registers; none: only --models.",
)
@click.option("--repository-poll-s", type=click.IntRange(min=1), help="Seconds between two looks of `poll`.")
@click.option("--models", multiple=True, help="`all`, or `name=location` or `location`, one or more.")
@click.option("--ts-config", type=click.Path(path_type=Path), help="A config.properties.")
@click.option(
    "--frontends", type=click.IntRange(min=1), help="Front-end processes; by default as the processors allow."
)
@click.option("--foreground", is_flag=True, help="Stay until stopped.")
@click.option("--no-config-snapshots", "--ncs", is_flag=True, help="Neither write nor restore snapshots.")
@click.option("--enable-model-api", is_flag=True, help="Allow registering and unregistering over the management API.")
@click.option("--disable-token-auth", "--dt", is_flag=True, help="Serve without tokens.")
@click.option("--ready-fd", type=int, hidden=True)
@click.argument("more_models", nargs=-1)
def start(
    model_store: Path | None,
    model_repository: Path | None,
    model_control_mode: str | None,
    repository_poll_s: int | None,
    models: tuple[str, ...],
    ts_config: Path | None,
    frontends: int | None,
    foreground: bool,
    no_config_snapshots: bool,
    enable_model_api: bool,
    disable_token_auth: bool,
    ready_fd: int | None,
    more_models: tuple[str, ...],
) -> None:
    """Start the server, in the background unless told otherwise; returns when it listens."""
    named = [entry for words in (*models, *more_models) for entry in words.split(",") if entry]
    if more_models and not models:
        raise click.UsageError(f"Got unexpected arguments: {' '.join(more_models)}")
    if model_store and model_repository:
        raise click.UsageError("--model-store and --model-repository name the same folder: expected one of them.")
    config = Path(os.environ["TS_CONFIG_FILE"]) if os.environ.get("TS_CONFIG_FILE") else ts_config
    try:
        settings = read_config_file(config, os.environ) if config else Settings()
        settings = replace(
            settings,
            model_store=model_store or settings.model_store,
            models=tuple(named) or settings.models,
            frontends=frontends or settings.frontends,
            enable_model_api=enable_model_api or settings.enable_model_api,
            disable_token_authorization=disable_token_auth or settings.disable_token_authorization,
            snapshots=settings.snapshots and not no_config_snapshots,
            model_control_mode=model_control_mode or settings.model_control_mode,
            repository_poll_s=repository_poll_s or settings.repository_poll_s,
        )
        settings = with_repository(settings, model_repository)
        check(settings)
        if foreground:
            _serve(settings, ready_fd)
        else:
            _start_in_background(sys.argv[1:], Path(os.environ.get("LOG_LOCATION") or "logs"))
    except (ConfigError, AlreadyRunning, RingServeError) as error:
        _fail(str(error))


def _fail(message: str) -> None:
    click.echo(message, err=True)
    sys.exit(1)


def _serve(settings: Settings, ready_fd: int | None) -> None:
    log_to_stderr()

    def started() -> None:
        click.echo("Model server started.")
        sys.stdout.flush()
        if ready_fd is not None:
            os.close(ready_fd)

    if ready_fd is not None:
        os.set_inheritable(ready_fd, False)
    run_server(settings, started)


def _start_in_background(arguments: Sequence[str], log_dir: Path) -> None:
    """Start ourselves in the foreground of a new session; return when it listens, or say why it does not."""
    other = running_pid()
    if other is not None:
        raise AlreadyRunning(other)
    log_dir.mkdir(parents=True, exist_ok=True)
    log_path = log_dir / "ringserve.log"
    ready_read, ready_write = os.pipe()
    with log_path.open("ab") as log:
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "ringserve.tools.cli.main",
                *arguments,
                "--foreground",
                f"--ready-fd={ready_write}",
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(ready_write,),
            start_new_session=True,
        )
    os.close(ready_write)
    # The pipe closes when the listeners are up, and also when the process ends.
    readable, _, _ = select.select([ready_read], [], [], START_S_MAX)
    os.close(ready_read)
    if not readable:
        _fail(f"RingServe (pid {process.pid}) has not started listening within {START_S_MAX:.0f} s, see {log_path}.")
    if _exited(process):
        lines = log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
        _fail("\n".join([*lines, f"RingServe did not start (exit code {process.returncode}), see {log_path}."]))
    click.echo(f"RingServe is running, pid {process.pid}, log in {log_path}.")


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
    except (TimeoutError, PermissionError) as error:
        _fail(str(error))
        return
    click.echo("RingServe is not currently running." if pid is None else "RingServe has stopped.")

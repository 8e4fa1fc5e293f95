"""The flags that are settings: `ringserve start` has them, and `ringserve config show`, which shows what would come of them."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ringserve.server.configuration.sources import configure
from ringserve.server.settings import MODEL_CONTROL_MODES, ConfigError, Settings
from ringserve.server.snapshots.store import newest

_FOLDER = click.Path(path_type=Path)
_OPTIONS = (
    click.option("--model-store", type=_FOLDER, help="Folder of model archives."),
    click.option(
        "--model-repository",
        type=_FOLDER,
        help="Folder of models to serve and watch; by default model_repository, where neither folder is named.",
    ),
    click.option(
        "--model-control-mode",
        type=click.Choice(MODEL_CONTROL_MODES[1:]),
        help="watch: serve what lies in the folder as it comes and goes; poll: the same without reports of the file "
        "system; explicit: only what is registered over the management API, or loaded by its name; none: only --models.",
    ),
    click.option("--repository-poll-s", type=click.IntRange(min=1), help="Seconds between two looks of `poll`."),
    click.option("--models", multiple=True, help="`all`, or `name=location` or `location`, one or more."),
    click.option(
        "--load-model",
        multiple=True,
        help="A model of the folder to load at the start, by name, one or more; `*`: all. With --model-control-mode explicit.",
    ),
    click.option("--model-config-name", help="Read configs/NAME.pbtxt of the models that have it, not config.pbtxt."),
    click.option("--disable-auto-complete-config", is_flag=True, help="Models add nothing to their configuration."),
    click.option("--ts-config", type=_FOLDER, help="A config.properties."),
    click.option(
        "--frontends", type=click.IntRange(min=1), help="Front-end processes; by default as the processors allow."
    ),
    click.option("--grpc-frontends", type=click.IntRange(min=1), help="Front-end processes of gRPC; by default one."),
    click.option("--grpc-inference-port", type=click.IntRange(0, 65_535), help="By default 7070."),
    click.option("--grpc-management-port", type=click.IntRange(0, 65_535), help="By default 7071."),
    # The short form is what TorchServe's users write.
    click.option(
        "--no-config-snapshots",
        "--no-config-snapshot",
        "--ncs",
        is_flag=True,
        help="Neither write nor restore snapshots.",
    ),
    click.option(
        "--enable-model-api", is_flag=True, help="Allow registering and unregistering over the management API."
    ),
    click.option("--disable-token-auth", "--dt", is_flag=True, help="Serve without tokens."),
    click.option("--insecure", is_flag=True, help="Without tokens, serve other machines as well."),
    click.option(
        "--drain-delay", type=click.IntRange(min=0), help="Seconds to accept requests after being told to stop."
    ),
    click.option("--drain-timeout", type=click.IntRange(min=0), help="Seconds that requests then have to be answered."),
    click.option("--workflow-store", type=_FOLDER, help="Accepted for TorchServe's sake: there are no workflows."),
    click.option("--log-config", type=_FOLDER, help="Accepted for TorchServe's sake: log4j2 files are not read."),
    click.option("--cpp-log-config", type=_FOLDER, help="Accepted for TorchServe's sake: there is no C++ backend."),
    click.option(
        "--plugins-path", "--ppath", type=_FOLDER, help="Accepted for TorchServe's sake: there are no Java plugins."
    ),
    click.argument("more_models", nargs=-1),
)


def settings_flags(command: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a command that asks `told` what it was given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def told(context: click.Context) -> dict[str, object]:
    """The flags that were given, with their values. Raises `click.UsageError` for those that contradict each other."""
    given: dict[str, object] = {}
    for parameter in context.command.params:
        value = context.params.get(parameter.name or "")
        if isinstance(parameter, click.Option) and not (value is None or value is False or value == ()):
            given[parameter.opts[0]] = value
            if any(str(each).startswith("--") for each in (value if isinstance(value, tuple) else (value,))):
                raise click.UsageError(f"Option '{parameter.opts[0]}' requires an argument.")
    more = context.params.get("more_models", ())
    if more and "--models" not in given:
        raise click.UsageError(f"Got unexpected arguments: {' '.join(more)}")
    if "--models" in given:
        words = (*context.params["models"], *more)
        given["--models"] = tuple(entry for word in words for entry in word.split(",") if entry)
    if "--load-model" in given:
        given["--load-model"] = tuple(context.params["load_model"])
    if "--model-store" in given and "--model-repository" in given:
        raise click.UsageError("--model-store and --model-repository name the same folder: expected one of them.")
    return given


# TorchServe's flags that a command line may have, and what becomes of them.
_WITHOUT_EFFECT = {
    "--workflow-store": "workflows are not supported: register the models and call them one after the other",
    "--log-config": "log4j2 files are not read: docs/logs.md says what can be set instead",
    "--cpp-log-config": "there is no C++ backend",
    "--plugins-path": "Java plugins are not loaded",
}


def check_files(context: click.Context) -> None:
    """What TorchServe looks for before anything else, in its words. Raises `ConfigError`."""
    _check_file(told(context), "--log-config")


def check_more_files(context: click.Context) -> None:
    """What it looks for when the model store is there. Raises `ConfigError`."""
    given = told(context)
    store = given.get("--workflow-store")
    if isinstance(store, Path) and not store.is_dir():
        raise ConfigError(f"--workflow-store directory not found: {store}")
    _check_file(given, "--cpp-log-config")


def _check_file(given: dict[str, object], flag: str) -> None:
    path = given.get(flag)
    if isinstance(path, Path) and not path.is_file():
        raise ConfigError(f"{flag} file not found: {path.resolve()}")


def warned(context: click.Context, settings: Settings) -> Settings:
    """With a warning for each flag that has no effect."""
    given = told(context)
    warnings = [f"{flag} has no effect: {why}." for flag, why in _WITHOUT_EFFECT.items() if flag in given]
    return replace(settings, warnings=(*settings.warnings, *warnings))


def settings_of(context: click.Context) -> Settings:
    """What the flags, the environment, the files and the newest snapshot come to. Raises `ConfigError`."""
    try:
        folder = Path.cwd()
    except OSError as error:
        raise ConfigError(f"The working directory cannot be used: {error.strerror}.") from None
    return configure(told(context), os.environ, folder, newest)

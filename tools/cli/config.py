"""`ringserve config show`: what a start with these flags, in this folder and environment, would run with, and who says so."""

import sys
from typing import Any

import click
import orjson

from ringserve.server.configuration.keys import BY_FIELD
from ringserve.server.configuration.kinds import written
from ringserve.server.configuration.sources import HIDDEN, SHOWN_FIELDS, shown, without_credentials
from ringserve.server.settings import ConfigError, Settings, check
from ringserve.tools.cli.flags import settings_flags, settings_of, warned
from ringserve.tools.cli.status import table

HEADINGS = ("setting", "value", "said by")


@click.group()
def config() -> None:
    """Look at the configuration."""


@config.command()
@settings_flags
@click.option("--origin", is_flag=True, help="Say for each setting who said it.")
@click.option("--json", "as_json", is_flag=True, help="The same for programs.")
@click.pass_context
def show(context: click.Context, /, origin: bool, as_json: bool, **flags: object) -> None:
    """Print every setting as `ringserve start` with the same flags would have it; 1 where it would refuse to start."""
    try:
        settings = warned(context, settings_of(context))
    except ConfigError as error:
        click.echo(error, err=True)
        sys.exit(1)
    click.echo(_json(settings, origin) if as_json else "\n".join(_lines(settings, origin)))
    for line in (*settings.notes, *settings.warnings):
        click.echo(line, err=True)
    try:
        check(settings)
    except ConfigError as error:
        click.echo(error, err=True)
        sys.exit(1)


def _lines(settings: Settings, origin: bool) -> list[str]:
    rows = [(_name(field), shown(field, getattr(settings, field)), settings.origins[field]) for field in SHOWN_FIELDS]
    if origin:
        return table([HEADINGS, *rows])
    return [f"{name}={value}" for name, value, _ in rows]


def _json(settings: Settings, origin: bool) -> str:
    values = {_name(field): _value(settings, field) for field in SHOWN_FIELDS}
    if origin:
        said_by = {_name(field): settings.origins[field] for field in SHOWN_FIELDS}
        values = {name: {"value": value, "origin": said_by[name]} for name, value in values.items()}
    return orjson.dumps(values, option=orjson.OPT_INDENT_2).decode()


def _name(field: str) -> str:
    """As in config.properties; a few settings have no key there."""
    return BY_FIELD[field].name if field in BY_FIELD else field


def _value(settings: Settings, field: str) -> Any:
    value = getattr(settings, field)
    if field in BY_FIELD and BY_FIELD[field].secret:
        return HIDDEN if value else ""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, tuple):
        return [without_credentials(str(each)) for each in value]
    return value if isinstance(value, dict) else without_credentials(written(value))

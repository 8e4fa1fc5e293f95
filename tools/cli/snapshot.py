"""`ringserve snapshot list|show|diff|restore`: what restarts have to go by.

Exit codes: 0 done; 1 could not be done, and stderr says why; 2 wrong usage. `diff` ends with 0 also where there are differences.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import click
import orjson
import psutil

from ringserve.server.configuration.keys import HONOURED
from ringserve.server.configuration.sources import HIDDEN, without_credentials
from ringserve.server.pid_file import PidFileError, running_pid
from ringserve.server.snapshots.comparison import compare, compare_running
from ringserve.server.snapshots.document import KEY, Snapshot, SnapshotError, VersionRecord, read_snapshot, render_state
from ringserve.server.snapshots.store import Entry, SnapshotStore, entries, entry_of, folder_of
from ringserve.tools.cli.status import NoAnswer, ask, table

RUNNING = "running"
LIST_HEADINGS = ("NAME", "KIND", "WRITTEN", "MODELS")
MODEL_HEADINGS = ("MODEL", "VERSION", "FILE", "WORKERS", "BATCH", "DELAY MS", "TIMEOUT S", "BESIDES")
NONE_PRUNED = sys.maxsize  # writing a copy is no occasion to remove others

location = click.option(
    "--log-location",
    type=click.Path(path_type=Path),
    default=lambda: os.environ.get("LOG_LOCATION") or "logs",
    show_default="LOG_LOCATION, or logs",
    help="The server's folder of logs; its snapshots lie in `config` below it.",
)
as_json = click.option("--json", "as_json", is_flag=True, help="The same for programs.")


@click.group()
def snapshot() -> None:
    """Look at what restarts restore, and choose it."""


@snapshot.command("list")
@location
@as_json
def list_(log_location: Path, as_json: bool) -> None:
    """Print the snapshots, newest first; the next start restores the first one that can be read."""
    found = entries(folder_of(Path(log_location)))
    if as_json:
        _print_json([_listed(entry) for entry in found])
    elif found:
        _print(table([LIST_HEADINGS, *map(_row, found)]))
    else:
        _print([f"There are no snapshots in {folder_of(Path(log_location))}."])


@snapshot.command()
@click.argument("name", required=False)
@location
@as_json
def show(name: str | None, log_location: Path, as_json: bool) -> None:
    """Print what a snapshot says, by default the newest one that can be read."""
    path, found = _read(Path(log_location), name)
    if as_json:
        _print_json({**_shown_properties(found), KEY: orjson.loads(render_state(found.state))})
        return
    records = found.state.records
    rows = [_model_row(each) for each in sorted(records, key=lambda each: (each.model, each.version))]
    broken = [f"  {each.model} {each.version}: {each.reason}" for each in found.state.problems]
    settings = [f"  {key}={_plain(value)}" for key, value in sorted(_shown_properties(found).items())]
    _print(
        [
            f"Snapshot {path.name}",
            *(table([MODEL_HEADINGS, *rows]) if rows else ["No models."]),
            *(["Cannot be restored:", *map(_plain, broken)] if broken else []),
            *(["Settings:", *settings] if settings else []),
        ]
    )


@snapshot.command()
@click.argument("before")
@click.argument("after")
@location
@as_json
def diff(before: str, after: str, log_location: Path, as_json: bool) -> None:
    """Print in sentences how AFTER differs from BEFORE. AFTER may be `running`, the server that runs now."""
    _, old = _read(Path(log_location), before)
    if after == RUNNING:
        sentences = compare_running(old.state, _running())
    else:
        sentences = compare(*map(_without_secrets, (old, _read(Path(log_location), after)[1])))
    if as_json:
        _print_json(sentences)
    else:
        _print(list(map(_plain, sentences)) or ["No differences."])


@snapshot.command()
@click.argument("name")
@location
def restore(name: str, log_location: Path) -> None:
    """Make NAME what the next start restores, by writing a new copy of it."""
    path, found = _read(Path(log_location), name)
    pid = _running_pid()
    if pid is not None and _writes_to(pid, path.parent):
        _fail(f"RingServe is running (pid {pid}) and writes a newer snapshot when it stops: stop it first.")
    entry = entry_of(path)
    assert entry is not None, "it was read by its name"
    try:
        copy = SnapshotStore(path.parent, NONE_PRUNED).write(entry.kind, found.state, sorted(found.properties.items()))
    except OSError as error:
        _fail(f"{path.parent}: no snapshot can be written: {error.strerror or error}")
    left_out = [f"Left out: {each.model} {each.version}: {each.reason}" for each in found.state.problems]
    _print([*map(_plain, left_out), f"The next start restores {name}, as {copy.name}."])


def _writes_to(pid: int, folder: Path) -> bool:
    """Whether a server keeps its snapshots there; one that cannot be looked at may."""
    try:
        process = psutil.Process(pid)
        its_own = Path(process.cwd(), process.environ().get("LOG_LOCATION") or "logs")
    except psutil.Error:
        return True
    return folder_of(its_own).resolve() == folder.resolve()


# ---- reading


def _read(log_location: Path, name: str | None) -> tuple[Path, Snapshot]:
    folder = folder_of(log_location)
    if name is None:
        for entry in entries(folder):
            try:
                return entry.path, read_snapshot(entry.path)
            except SnapshotError as error:
                click.echo(error, err=True)
        _fail(f"There is no snapshot in {folder} that can be read.")
    path = folder / name
    if entry_of(path) is None or path.name != name:
        _fail(f"NAME: expected the name of a snapshot, as `ringserve snapshot list` prints it, got {name!r}")
    try:
        return path, read_snapshot(path)
    except SnapshotError as error:
        _fail(str(error))


def _running_pid() -> int | None:
    try:
        return running_pid()
    except PidFileError as error:
        _fail(str(error))


def _running() -> Mapping[str, Any]:
    pid = _running_pid()
    if pid is None:
        _fail("RingServe is not currently running.")
    try:
        return ask(pid, "/status")
    except NoAnswer as error:
        _fail(f"RingServe (pid {pid}) does not say what it serves: {error}.")


# ---- for people


def _listed(entry: Entry) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": entry.path.name,
        "kind": entry.kind,
        "written": entry.at.isoformat(timespec="milliseconds"),
    }
    try:
        records = read_snapshot(entry.path).state.records
    except SnapshotError as error:
        return {**described, "error": str(error)}
    models: dict[str, list[str]] = {}
    for each in records:
        models.setdefault(each.model, []).append(each.version)
    return {**described, "models": models}


def _row(entry: Entry) -> tuple[str, ...]:
    listed = _listed(entry)
    if "error" in listed:
        models = "cannot be read"
    else:
        models = ", ".join(f"{model} {' '.join(versions)}" for model, versions in listed["models"].items()) or "none"
    return (listed["name"], listed["kind"], f"{entry.at:%Y-%m-%d %H:%M:%S}", _plain(models))


def _model_row(record: VersionRecord) -> tuple[str, ...]:
    marks = [
        ("not restored the last time", record.lost),
        ("from the repository", record.dropped),
        (f"handler {record.handler}", bool(record.handler)),
        (f"queue timeout {record.queue_timeout_s} s", bool(record.queue_timeout_s)),
        (f"from {record.url}", record.remote),
        (f"placement {dict(record.placement)}", bool(record.placement)),
    ]
    return (
        _plain(record.model),
        _plain(record.version) + (" *" if record.default else ""),
        _plain(record.mar_name),
        _span(record.min_workers, record.max_workers),
        _said(record.batch_size),
        _said(record.batch_wait_ms),
        _said(record.response_timeout_s),
        _plain(", ".join(words for words, so in marks if so)),
    )


def _span(low: int | None, high: int | None) -> str:
    return _said(low) if low == high else f"{_said(low)}-{_said(high)}"


def _said(number: int | None) -> str:
    return "-" if number is None else str(number)


def _shown_properties(found: Snapshot) -> dict[str, str]:
    """TorchServe writes the password of its keystore as well."""
    secret = {name for name, key in HONOURED.items() if key.secret}
    return {
        key: HIDDEN if key in secret and value else without_credentials(value)
        for key, value in found.properties.items()
    }


def _without_secrets(found: Snapshot) -> Snapshot:
    return replace(found, properties=_shown_properties(found))


def _plain(text: str) -> str:
    """On one line, and nothing in it that a terminal obeys: a snapshot may be anybody's."""
    return "".join(each if each.isprintable() else " " for each in text)


def _fail(message: str) -> NoReturn:
    click.echo(message, err=True)
    sys.exit(1)


def _print(lines: Iterable[str]) -> None:
    click.echo("\n".join(lines))


def _print_json(value: object) -> None:
    click.echo(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode())

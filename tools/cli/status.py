"""`ringserve status`: whether a server runs, and what it serves.

Exit codes: 0 it runs and says so; 1 it runs and does not answer, and stderr says why; 3 none runs. Asked over the server's own
socket file, so it needs neither a port nor a token.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click
import httpcore
import orjson
import psutil

from ringserve.server.admin_socket import SOCKET_NAME, short_path
from ringserve.server.host import work_dirs
from ringserve.server.pid_file import PidFileError, running_pid

NOT_RUNNING = 3
# Together the most that a server which does not answer can take.
TIMEOUTS_S = {"connect": 1.0, "write": 1.0, "read": 2.0, "pool": 0.1}
HEADINGS = ("MODEL", "VERSION", "STATE", "WORKERS", "DEVICES", "SOURCE")


class NoAnswer(Exception):
    """The server runs, and does not say what it serves; the message says why."""


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(as_json: bool) -> None:
    """Say whether the server runs, and what it serves; exit code 0 when it runs, 3 when it does not."""
    try:
        pid = running_pid()
    except PidFileError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    vitals = None if pid is None else _vitals(pid)
    if pid is None or vitals is None:
        click.echo('{"running": false}' if as_json else "RingServe is not currently running.")
        sys.exit(NOT_RUNNING)
    up_s, processes = vitals
    if not as_json:
        click.echo(f"RingServe is running, pid {pid}, {processes} processes, up {up_s:.0f} s.")
    try:
        served = ask(pid, "/status")
    except NoAnswer as error:
        click.echo(f"RingServe (pid {pid}) does not say what it serves: {error}.", err=True)
        sys.exit(1)
    if as_json:
        about = {"running": True, "pid": pid, "processes": processes, "upSeconds": round(up_s)}
        click.echo(orjson.dumps({**about, **served}, option=orjson.OPT_INDENT_2).decode())
    else:
        click.echo("\n".join(describe(served)))


def _vitals(pid: int) -> tuple[float, int] | None:
    """For how long it runs, and its processes; None when it has just ended."""
    try:
        process = psutil.Process(pid)
        return time.time() - process.create_time(), len(process.children())
    except psutil.NoSuchProcess:
        return None


def ask(pid: int, path: str) -> dict[str, Any]:
    """What the server answers to a GET. Raises `NoAnswer`."""
    try:
        found = [folder / SOCKET_NAME for folder in work_dirs(pid) if (folder / SOCKET_NAME).exists()]
    except psutil.NoSuchProcess:
        found = []
    if not found:
        raise NoAnswer("it is starting or going down")
    try:
        with short_path(found[-1]) as uds, httpcore.ConnectionPool(uds=uds) as pool:
            response = pool.request("GET", f"http://localhost{path}", extensions={"timeout": TIMEOUTS_S})
        answer = orjson.loads(response.content)
    except httpcore.TimeoutException:
        raise NoAnswer("it does not answer in time") from None
    except (OSError, httpcore.NetworkError, httpcore.ProtocolError):
        raise NoAnswer("it is starting or going down") from None
    except orjson.JSONDecodeError:
        raise NoAnswer("its answer is not JSON") from None
    if response.status != 200 or not isinstance(answer, dict):
        raise NoAnswer(f"it answers with status {response.status}")
    return answer


def describe(served: Mapping[str, Any]) -> list[str]:
    """The lines for people: a table of versions, then what is not well with them, and the files that are not served."""
    rows = [_row(each) for each in served["models"]]
    lines = table([HEADINGS, *rows]) if rows else ["No models are registered."]
    failures = [_failure(each) for each in served["models"] if each.get("reason")]
    files = [_file(each) for each in served["repository"]]
    lost = [_plain(f"{each['model']} {each['version']}: {each['reason']}") for each in served.get("notRestored", ())]
    trouble = [_plain(served["snapshots"])] if served.get("snapshots") else []
    return [
        *lines,
        *_under("Failing:", failures),
        *_under("Not served:", files),
        *_under("Not restored:", lost),
        *_under("Snapshots:", trouble),
    ]


def _under(heading: str, lines: Sequence[str]) -> list[str]:
    return [heading, *(f"  {each}" for each in lines)] if lines else []


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _row(version: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = version["minWorkers"], version["maxWorkers"]
    return (
        _plain(version["model"]),
        _plain(version["version"]) + (" *" if version["default"] else ""),
        version["state"],
        f"{version['workersReady']}/{low}" + (f"-{high}" if high != low else ""),
        ",".join(version["devices"]) or "-",
        _plain(version["source"]),
    )


def _failure(version: Mapping[str, Any]) -> str:
    """Its first line; the log has the others."""
    return _plain(f"{version['model']} {version['version']}: {version['reason'].partition(chr(10))[0]}")


def _file(entry: Mapping[str, Any]) -> str:
    since = f" (since {entry['since']})" if entry.get("since") else ""
    reason = f": {entry['reason']}" if entry.get("reason") else ""
    return _plain(f"{entry['file']}: {entry['state']}{reason}{since}")


def _plain(text: str) -> str:
    """On one line, and nothing in it that a terminal obeys: names and reasons come out of archives."""
    return "".join(each if each.isprintable() else " " for each in text)

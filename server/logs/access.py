"""The access log: a line for every request, in TorchServe's format, for next to nothing on a request's way.

`add` remembers a tuple. A quarter of a second after the first, or when there are enough of them, they become lines, all at once, and a
thread writes those. A process that is killed takes that last quarter of a second with it.

Who asked is in a line, what for, and how that ended: never what was sent, nor the value of anything in a query, where keys and signed
addresses travel. Some of management's are shown, for what they are is known.
"""

import asyncio
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ringserve.server.logs.formats import ACCESS_LOG, JSON, Clock
from ringserve.server.logs.rotating import LogFile
from ringserve.server.logs.writer import Outlet, Writer
from ringserve.server.settings import Settings

ACCESS_LOG_FILE = "access_log.log"
PERIOD_S = 0.25
ENTRIES_MAX = 500
TARGET_CHARS_MAX = 1024
CACHED_MAX = 4096  # texts of requests and of clients that are kept; then all are made anew
HIDDEN = "***"
# What these hold is a number, a word of a list, or the name of a model.
SHOWN = frozenset(
    {
        "batch_size",
        "customized",
        "initial_workers",
        "limit",
        "max_batch_delay",
        "max_worker",
        "min_worker",
        "model_name",
    }
    | {"model_version", "next_page_token", "number_gpu", "response_timeout", "runtime", "startup_timeout"}
    | {"synchronous", "timeout"}
)
_USER = re.compile(r"//[^/]*@")  # of a target that names a host as well, as proxies are asked
MILLIS = tuple(f",{number:03d} - " for number in range(1000))

Entry = tuple[float, Any, str, str, int, float, str]


class AccessLog:
    """Of one process, on its event loop. `outlet` takes the lines."""

    def __init__(
        self,
        outlet: Outlet,
        *,
        as_json: bool = False,
        call_later: Callable[[float, Callable[[], None]], object] | None = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._outlet = outlet
        self._close = close
        self._call_later = call_later or asyncio.get_running_loop().call_later
        self._as_json = as_json
        self._lines = self._json if as_json else self._text
        self._clock = Clock(utc=as_json)
        self._entries: list[Entry] = []
        self._peers: dict[Any, str] = {}
        self._requests: dict[tuple[str, str], str] = {}

    def add(
        self,
        peer: Any,
        method: str,
        target: str,
        status: int,
        took_s: float,
        request_id: str = "",
        now: Any = time.time,
    ) -> None:
        """One request that is answered: the client's address as the socket has it, what it asked for, the answer's status."""
        entries = self._entries
        entries.append((now(), peer, method, target, status, took_s, request_id))
        count = len(entries)
        if count == 1:
            self._call_later(PERIOD_S, self.flush)
        elif count >= ENTRIES_MAX:
            self.flush()

    def flush(self) -> None:
        """Hand over what there is."""
        entries, self._entries = self._entries, []
        if entries:
            if len(self._requests) > CACHED_MAX:
                self._requests.clear()
            if len(self._peers) > CACHED_MAX:
                self._peers.clear()
            self._outlet.put(self._lines(entries).encode("utf-8", "backslashreplace"), len(entries))

    def close(self) -> None:
        """Write what is left. What is added later is lost."""
        self.flush()
        self._close()

    def _text(self, entries: list[Entry]) -> str:
        """One loop with everything in it: this is most of what a request costs."""
        peers, requests, clock, millis = self._peers, self._requests, self._clock, MILLIS
        lines, second, moment = [], -1, ""
        for when_s, peer, method, target, status, took_s, _ in entries:
            whole_s = int(when_s)
            if whole_s != second:
                second, moment = whole_s, clock.second(whole_s)
            where = peers.get(peer) or self._peer(peer)
            what = requests.get((method, target)) or self._request(method, target)
            began = millis[int((when_s - whole_s) * 1000)]
            lines.append(f"{moment}{began}{where} {what} {status} {int(took_s * 1000)}\n")
        return "".join(lines)

    def _json(self, entries: list[Entry]) -> str:
        peers, requests, clock = self._peers, self._requests, self._clock
        lines = []
        for when_s, peer, method, target, status, took_s, request_id in entries:
            where = peers.get(peer) or self._peer(peer)
            what = requests.get((method, target)) or self._request(method, target)
            named = json.dumps(request_id)
            lines.append(
                f'{{"time": "{clock.text(when_s)}", "level": "INFO", "logger": "{ACCESS_LOG}", {what}, {where},'
                f' "status": {status}, "took_ms": {int(took_s * 1e6) / 1000}, "request_id": {named}}}\n'
            )
        return "".join(lines)

    def _peer(self, peer: Any) -> str:
        text = shown_peer(peer)
        if self._as_json:
            text = f'"remote": {json.dumps(text[1:])}'
        self._peers[peer] = text
        return text

    def _request(self, method: str, target: str) -> str:
        shown = shown_target(target)
        text = f'"{_quoted(method)} {_quoted(shown)} HTTP/1.1"'
        if self._as_json:
            message = json.dumps(f"{method} {shown} HTTP/1.1")
            text = f'"message": {message}, "method": {json.dumps(method)}, "path": {json.dumps(shown)}'
        self._requests[method, target] = text
        return text


def open_access_log(path: str, log_format: str) -> AccessLog | None:
    """On the running loop, with a thread of its own; None without a path. No file is opened before there is something to write."""
    if not path:
        return None
    writer = Writer("access-log")
    return AccessLog(writer.outlet(path, LogFile(Path(path))), as_json=log_format == JSON, close=writer.close)


def access_log_path(settings: Settings) -> str:
    """Absolute, for other processes too; empty where there is to be none."""
    return str(settings.log_location.absolute() / ACCESS_LOG_FILE) if settings.access_log else ""


def shown_peer(peer: Any) -> str:
    """A client's address as Java prints it; that of a socket file has no name."""
    if not isinstance(peer, tuple):
        return "/unix"
    host, port = peer[0], peer[1]
    return f"/[{host}]:{port}" if ":" in host else f"/{host}:{port}"


def shown_target(target: str) -> str:
    """What was asked for, without the values in its query."""
    if len(target) > TARGET_CHARS_MAX:
        target = target[:TARGET_CHARS_MAX] + "..."
    path, mark, query = target.partition("?")
    if not path.startswith("/"):
        path = _USER.sub(f"//{HIDDEN}@", path)
    if not mark:
        return path
    return f"{path}?{'&'.join(map(_shown_parameter, query.split('&')))}"


def _shown_parameter(parameter: str) -> str:
    name, _, value = parameter.partition("=")
    if name in SHOWN:
        return parameter
    # Without a name, a value may stand in its place.
    return f"{name}={HIDDEN}" if value else HIDDEN


def _quoted(text: str) -> str:
    """Inside quotes, and on one line."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return text
    return json.dumps(text)[1:-1]

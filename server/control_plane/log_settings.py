"""Log settings (contract section 3.10): what of the server's own log is written, as long as the server runs.

They act where the records of all processes come together, in the supervisor: a kind that is switched off is neither in `ts_log.log` nor
on the console. What models print is theirs, and is written whatever is set. The format is accepted and shown, for lines begin with
ISO 8601 times as it is.
"""

import logging
from collections.abc import Mapping
from typing import Any

from ringserve.protocol.errors import BadRequest, Unsupported
from ringserve.server.logs.formats import MODEL_LOG

FILE_IS_FIXED = "log file location can not be updated through network protocol"
FORMATS = ("default", "ISO8601")
VERBOSE_MAX = 2**32 - 1
_KINDS = ("log_info", "log_warning", "log_error")


class LogSettings(logging.Filter):
    """Of this process; a filter of its log's handlers."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Any] = {
            "log_file": "",
            "log_info": True,
            "log_warning": True,
            "log_error": True,
            "log_verbose_level": 0,
            "log_format": "default",
        }

    def install(self) -> None:
        """Ask this before anything is written from now on."""
        for handler in logging.getLogger().handlers:
            handler.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether it is written. Fatal records always are."""
        if record.name == MODEL_LOG or record.levelno >= logging.CRITICAL:
            return True
        if record.levelno >= logging.ERROR:
            return bool(self.values["log_error"])
        if record.levelno >= logging.WARNING:
            return bool(self.values["log_warning"])
        if record.levelno >= logging.INFO:
            return bool(self.values["log_info"])
        return bool(self.values["log_verbose_level"])

    def update(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Set what is `wanted`, all of it or nothing, and return all settings. What is no setting is passed over. Raises `BadRequest`,
        and `Unsupported` for the file."""
        if "log_file" in wanted:
            raise Unsupported(FILE_IS_FIXED)
        new: dict[str, Any] = {}
        for kind in _KINDS:
            if wanted.get(kind) is not None:
                new[kind] = _truth(kind, wanted[kind])
        verbose = wanted.get("log_verbose_level")
        if verbose is not None:
            if not isinstance(verbose, int) or isinstance(verbose, bool) or not 0 <= verbose <= VERBOSE_MAX:
                raise BadRequest("attempt to access JSON non-unsigned-integer as unsigned-integer: log_verbose_level")
            new["log_verbose_level"] = verbose
        form = wanted.get("log_format")
        if form is not None:
            if not isinstance(form, str):
                raise BadRequest("attempt to access JSON non-string as string: log_format")
            if form not in FORMATS:
                raise BadRequest(f"invalid argument for --log_format, got: {form[:200]}")
            new["log_format"] = form
        self.values.update(new)
        level = logging.DEBUG if self.values["log_verbose_level"] else logging.NOTSET
        logging.getLogger("ringserve").setLevel(level)
        return dict(self.values)


def _truth(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise BadRequest(f"attempt to access JSON non-boolean as boolean: {key}")
    return value

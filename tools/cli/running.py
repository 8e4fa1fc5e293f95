"""What `ringserve run` does: open the model, load it, ask it, show what it answers."""

import contextlib
import logging
import os
import signal
import statistics
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version as installed_version
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO

import click

from ringserve.protocol.errors import RingServeError
from ringserve.server.repository.sections import content_type_of
from ringserve.server.settings import ConfigError
from ringserve.tools.archiver import ArchiveError, ArchiveRequest
from ringserve.tools.local_model import LocalModel, Wishes, gathered, names_handler, opened
from ringserve.tools.local_run import Asking, Debugging, Ended, LocalInput, LocalRun, Printer, exit_code


def run_model(
    target: str, inputs: Sequence[Path], output: Path | None, flags: dict[str, Any], *, post_mortem: bool
) -> None:
    """Raises `click.ClickException`, and `SystemExit` with the command's exit code."""
    content_type = flags["content_type"] or flags["headers"].get("content-type")
    given = [_input(path, content_type) for path in inputs]
    debugging = Debugging(post_mortem=post_mortem)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_logging_to_stderr(debugging))
        stack.enter_context(_ending_in_order())
        try:
            model = stack.enter_context(_model(target, len(inputs), flags))
        except (RingServeError, ArchiveError, ConfigError) as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            raise click.ClickException(f"{target} cannot be read: {error.strerror or error}") from error
        printer = Printer(sys.stderr, _bodies(output, stack))
        if model.requirements is not None:
            printer.note(
                f"{model.requirements} is not installed for this: the model runs with the packages of this Python"
            )
        _ask(_loaded(model, printer, debugging), printer, given, flags)
        if printer.failed:
            raise SystemExit(1)


@contextlib.contextmanager
def _ending_in_order() -> Iterator[None]:
    """Whoever ends the program, by whichever signal, leaves no unpacked archive behind."""
    owner = os.getpid()

    def end(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a process that the model has forked
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        raise Ended(number)

    taken = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]
    for number in taken:
        signal.signal(number, end)
    try:
        yield
    except KeyboardInterrupt as error:
        raise SystemExit(exit_code(error)) from None
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)


def _input(path: Path, content_type: str | None) -> LocalInput:
    if str(path) == "-":
        return LocalInput("-", content_type or "application/octet-stream", sys.stdin.buffer.read())
    return LocalInput(str(path), content_type or content_type_of(path.name), path.read_bytes())


@contextlib.contextmanager
def _logging_to_stderr(debugging: Debugging) -> Iterator[None]:
    """A program that calls this has its logging back afterwards."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s %(message)s")
    root = logging.getLogger()
    printing = list(root.handlers)

    def goes_on(record: logging.LogRecord) -> bool:
        return record.exc_info is None or exit_code(record.exc_info[1]) is None

    for handler in printing:
        handler.addFilter(goes_on)
    root.addHandler(debugging)  # after the others: who sits in front of the debugger has read what was raised
    try:
        yield
    finally:
        root.removeHandler(debugging)
        for handler in printing:
            handler.removeFilter(goes_on)


def _bodies(output: Path | None, stack: contextlib.ExitStack) -> BinaryIO:
    """Where bodies go. What the model and its children print must not get between them: it goes to stderr, unless a person reads both."""
    if output is not None:
        try:
            return stack.enter_context(output.open("wb"))
        except OSError as error:
            raise click.ClickException(f"--output: {output} cannot be written: {error.strerror}") from error
    stdout = sys.stdout
    if stdout.isatty():
        return stdout.buffer
    stack.enter_context(contextlib.redirect_stdout(sys.stderr))
    try:
        fd, other = stdout.fileno(), sys.stderr.fileno()
    except OSError:  # they have none where a program calls this
        return stdout.buffer
    bodies = stack.enter_context(os.fdopen(os.dup(fd), "wb"))
    os.dup2(other, fd)
    stack.callback(os.dup2, bodies.fileno(), fd)
    return bodies


def _model(target: str, rows: int, flags: dict[str, Any]) -> AbstractContextManager[LocalModel]:
    config = flags["config"].absolute() if flags["config"] is not None else None
    wishes = Wishes(flags["device"], flags["envelope"], config, max(rows, 1), installed_version("ringserve"))
    packing = {name: flags[name] for name in ("serialized_file", "model_file", "extra_files")}
    if names_handler(target):
        name = Path(target.partition(":")[0]).stem
        return gathered(ArchiveRequest(name, "1.0", target, **packing), wishes)
    for name, value in packing.items():
        if value is not None:
            raise click.UsageError(f"--{name.replace('_', '-')} goes with a handler file, got {target}")
    if not target or not Path(target).exists():
        raise click.UsageError(f"TARGET: expected an archive, a folder or a handler, found nothing at {target}")
    return opened(Path(target).absolute(), wishes)


def _loaded(model: LocalModel, printer: Printer, debugging: Debugging) -> LocalRun:
    running = LocalRun(model, printer)
    try:
        took_s = running.load()
    except RingServeError as error:
        raise click.ClickException(f"The model cannot be loaded: {error.message}") from error
    except BaseException as error:  # noqa: BLE001 - shown, and the end of it
        if exit_code(error) is None:
            traceback.print_exc()
        debugging.look_into(error)
        raise SystemExit(1) from None
    printer.note(f"Loaded {model.loaded.name} {model.loaded.version} in {took_s * 1000:.1f} ms")
    return running


def _ask(running: LocalRun, printer: Printer, given: list[LocalInput], flags: dict[str, Any]) -> None:
    if flags["describe"]:
        running.describe()
    asking = Asking(flags["headers"], flags["url_path"].lstrip("/"), flags["explain"])
    rounds: list[float] = []
    for _ in range(flags["repeat"]):
        rounds.extend(running.predict(batch, asking) for batch in _batches(given, whole=flags["batch"]))
        printer.quiet = True
    if rounds:
        median_ms, first_ms = statistics.median(rounds) * 1000, rounds[0] * 1000
        printer.note(f"Calls: {len(rounds)}, the first {first_ms:.1f} ms, their median {median_ms:.1f} ms")
    running.close()


def _batches(given: list[LocalInput], *, whole: bool) -> Iterator[list[LocalInput]]:
    if not given:
        return iter(())
    return iter([given] if whole else [[each] for each in given])

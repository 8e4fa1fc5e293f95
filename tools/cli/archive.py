"""`ringserve archive`: the flags of `torch-model-archiver`, and the word `inspect`."""

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click

from ringserve.server.repository.manifest import RUNTIMES
from ringserve.tools.archiver import ARCHIVE_FORMATS, ArchiveError, ArchiveRequest, write_archive
from ringserve.tools.cli.inspect import inspect
from ringserve.tools.cli.torchserve import in_full

PROGRESS_BYTES_MIN = 64 << 20  # less is done before anybody has read how far it is


def _progress(total_bytes: int) -> AbstractContextManager[Callable[[int], object]]:
    """A bar on a terminal, where there is enough to wait for."""
    if total_bytes < PROGRESS_BYTES_MIN or not sys.stderr.isatty():
        return nullcontext(lambda _bytes: None)
    return _bar(total_bytes)


@contextmanager
def _bar(total_bytes: int) -> Iterator[Callable[[int], object]]:
    label = f"Packing {total_bytes / (1 << 20):,.0f} MB"
    with click.progressbar(length=total_bytes, label=label, file=sys.stderr) as bar:
        yield bar.update


class _File(click.Path):
    """Scripts pass on variables that are empty; for the archiver that is no file. (Path("") would be the current folder.)"""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        return super().convert(value, parameter, context) if value else None


FILE = _File(path_type=Path)


class ArchiveCommand(click.Command):
    """Flags without a word in front, as `torch-model-archiver` has them: so words are looked for before flags are read."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        if args[:1] == [inspect.name]:
            return inspect.make_context(f"{info_name} {inspect.name}", args[1:], parent, **extra)
        flags = [flag for option in self.params for flag in option.opts if flag.startswith("--")]
        return super().make_context(info_name, in_full(args, flags), parent, **extra)

    def invoke(self, ctx: click.Context) -> Any:
        return super().invoke(ctx) if ctx.command is self else ctx.command.invoke(ctx)


@click.command(name="archive", cls=ArchiveCommand, epilog="To see what is in one: ringserve archive inspect PATH")
@click.option("--model-name", required=True, help="Name of the model; the archive is called after it.")
@click.option("-v", "--version", required=True, help="Version of the model, for example 1.0.")
@click.option("--handler", required=True, help="A handler file, `file.py:function`, or the name of a default handler.")
@click.option("--serialized-file", type=FILE, help="Weights or a compiled model: .pt, .pth, .onnx, ...")
@click.option("--model-file", type=FILE, help="Python file that holds the model's one class (eager mode).")
@click.option("--extra-files", help="Comma-separated files, folders (packed by content) and wildcards.")
@click.option("-r", "--requirements-file", type=FILE, help="pip requirements of the model.")
@click.option("-c", "--config-file", type=FILE, help="model-config.yaml: workers, batching, inputs and outputs.")
@click.option("--runtime", type=click.Choice(RUNTIMES), default="python", show_default=True)
@click.option(
    "--export-path",
    type=click.Path(path_type=Path),
    default=Path(),
    help="Folder for the archive; the current one by default.",
)
@click.option("--archive-format", type=click.Choice(ARCHIVE_FORMATS), default="default", show_default=True)
@click.option("-f", "--force", is_flag=True, help="Overwrite an existing archive.")
def archive(
    model_name: str,
    version: str,
    handler: str,
    serialized_file: Path | None,
    model_file: Path | None,
    extra_files: str | None,
    requirements_file: Path | None,
    config_file: Path | None,
    runtime: str,
    export_path: Path,
    archive_format: str,
    force: bool,
) -> None:
    """Pack a model into an archive and print its path."""
    request = ArchiveRequest(
        model_name=model_name,
        version=version,
        handler=handler,
        serialized_file=serialized_file,
        model_file=model_file,
        extra_files=extra_files,
        requirements_file=requirements_file,
        config_file=config_file,
        runtime=runtime,
        export_path=export_path,
        archive_format=archive_format,
        force=force,
    )
    try:
        path = write_archive(request, progress=_progress)
    except ArchiveError as error:
        raise click.ClickException(str(error)) from error
    click.echo(path)

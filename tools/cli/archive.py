"""`ringserve archive`: the flags of `torch-model-archiver`."""

from pathlib import Path

import click

from ringserve.server.repository.manifest import RUNTIMES
from ringserve.tools.archiver import ARCHIVE_FORMATS, ArchiveError, ArchiveRequest, write_archive

FILE = click.Path(path_type=Path)


@click.command(name="archive")
@click.option("--model-name", required=True, help="Name of the model; the archive is called after it.")
@click.option("-v", "--version", required=True, help="Version of the model, for example 1.0.")
@click.option("--handler", required=True, help="A handler file, `file.py:function`, or the name of a default handler.")
@click.option("--serialized-file", type=FILE, help="Weights or a compiled model: .pt, .pth, .onnx, ...")
@click.option("--model-file", type=FILE, help="Python file that holds the model's one class (eager mode).")
@click.option("--extra-files", help="Comma-separated files, folders (packed by content) and wildcards.")
@click.option("-r", "--requirements-file", type=FILE, help="pip requirements of the model.")
@click.option("-c", "--config-file", type=FILE, help="model-config.yaml: workers, batching, inputs and outputs.")
@click.option("--runtime", type=click.Choice(RUNTIMES), default="python", show_default=True)
@click.option("--export-path", type=FILE, default=Path(), help="Folder for the archive; the current one by default.")
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
        path = write_archive(request)
    except ArchiveError as error:
        raise click.ClickException(str(error)) from error
    click.echo(path)

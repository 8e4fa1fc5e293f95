"""`ringserve archive inspect`: what a server would make of an archive or a folder."""

from pathlib import Path
from typing import TYPE_CHECKING

import click
import orjson

if TYPE_CHECKING:
    from ringserve.tools.inspection import Inspection


@click.command(name="inspect")
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def inspect(path: Path, as_json: bool) -> None:
    """Show what is in an archive (.mar, .tar.gz) or a folder, and what a server would say to it.

    Nothing is unpacked, and no code of the model is run. Exits with 1 when a server would refuse it.
    """
    # Here and not above: no other command reads models.
    from ringserve.tools.inspection import inspect as inspect_model

    try:
        found = inspect_model(path)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be read: {error.strerror or error}") from error
    if as_json:
        click.echo(orjson.dumps(found.as_json(), option=orjson.OPT_INDENT_2))
    else:
        for line in lines(found):
            click.echo(line)
    if found.problems:
        raise SystemExit(1)


def lines(found: "Inspection") -> list[str]:
    """For people, with nothing that a terminal obeys: names and values are the archive's."""
    from ringserve.server.repository.scan import shown

    said, facts = [], found.as_json()
    if found.manifest is not None:
        manifest = found.manifest
        said.append(f"Model {manifest.model_name} version {manifest.model_version}, runtime {manifest.runtime}")
        said += [] if manifest.missing else ["", "Manifest", *_indented(facts["manifest"])]
    if found.config is not None:
        config = found.config
        if config.raw:
            said += ["", f"Configuration ({manifest.config_file})", *_indented(facts["config"])]
        said += ["", f"Backend {config.backend}"]
        said += [f"  input  {spec}" for spec in config.signature.inputs]
        said += [f"  output {spec}" for spec in config.signature.outputs]
    if found.handler is not None and found.handler.problem is None:
        said.append(f"Handler {found.handler}")
    if found.members:
        said += ["", f"Files: {len(found.members)}, {sum(found.members.values()):,} bytes unpacked"]
        said += [f"  {size:>15,}  {name}" for name, size in found.members.items()]
    for title, sentences in (("Ignored", found.ignored), ("A server would refuse it", found.problems)):
        if sentences:
            said += ["", title, *(f"  {sentence}" for sentence in sentences)]
    return [shown(line) for line in said]


def _indented(value: object) -> list[str]:
    return [f"  {line}" for line in orjson.dumps(value, option=orjson.OPT_INDENT_2).decode().split("\n")]

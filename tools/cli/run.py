"""`ringserve run`: one model, one process, no server; for writing and debugging handlers."""

from pathlib import Path
from typing import Any

import click

FILE = click.Path(path_type=Path)
INPUT = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


def _headers(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    headers = {}
    for value in values:
        name, separator, text = value.partition(":")
        if not separator or not name.strip():
            raise click.BadParameter(f"expected 'Name: value', got {value!r}")
        headers[name.strip().lower()] = text.strip()
    return headers


def _device(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    kind, separator, number = value.partition(":")
    if value == "cpu" or (kind == "cuda" and (number.isdecimal() or not separator)):
        return value if value == "cpu" or separator else "cuda:0"
    raise click.BadParameter(f"expected cpu, cuda or cuda:0, got {value!r}")


@click.command(name="run")
@click.argument("target")
@click.option(
    "--input", "inputs", type=INPUT, multiple=True, help="A request's body; - is stdin. May be given several times."
)
@click.option("--content-type", help="Of the inputs; by default what their file names say.")
@click.option(
    "--header", "headers", callback=_headers, multiple=True, help="'Name: value', may be given several times."
)
@click.option("--config", "-c", type=FILE, help="A model-config.yaml that takes the place of the model's own.")
@click.option("--describe", is_flag=True, help="Ask the model what it says of itself.")
@click.option("--explain", is_flag=True, help="Ask for explanations instead of predictions.")
@click.option("--url-path", default="", help="What follows the model's name in the path.")
@click.option("--envelope", help="The service envelope: json, body, kserve, kservev2, or a module of the model's.")
@click.option("--batch", is_flag=True, help="All inputs in one batch; otherwise one call for each.")
@click.option("--repeat", type=click.IntRange(1), default=1, help="Everything N times; the answers are shown once.")
@click.option("--device", callback=_device, default="cpu", show_default=True)
@click.option("--output", type=FILE, help="The bodies of the answers go there instead of to stdout.")
@click.option("--pdb", "post_mortem", is_flag=True, help="Start the debugger where the model raises.")
@click.option("--serialized-file", type=FILE, help="With a handler file: weights or a compiled model.")
@click.option("--model-file", type=FILE, help="With a handler file: the Python file of the model's class.")
@click.option("--extra-files", help="With a handler file: comma-separated files, folders and wildcards.")
def run(target: str, inputs: tuple[Path, ...], output: Path | None, post_mortem: bool, **flags: Any) -> None:
    """Load a model in this process and show what it answers.

    TARGET is an archive (.mar, .tar.gz), a folder, a handler file (handler.py, handler.py:function) or the name of a default handler.
    Status lines and headers go to stderr, bodies to stdout. breakpoint() in a handler stops in the debugger. Exits with 1 when the
    model cannot be loaded or an answer is an error.
    """
    if not inputs and not flags["describe"]:
        raise click.UsageError("Missing option '--input' (or '--describe').")
    # Here and not above: what runs models is much, and no other command needs it.
    from ringserve.tools.cli.running import run_model

    run_model(target, inputs, output, flags, post_mortem=post_mortem)

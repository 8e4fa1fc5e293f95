"""The `ringserve` command."""

from pathlib import Path
from typing import cast

import click

from ringserve.tools.cli.archive import archive
from ringserve.tools.cli.config import config
from ringserve.tools.cli.serve import restart, start, stop
from ringserve.tools.cli.snapshot import snapshot
from ringserve.tools.cli.status import status
from ringserve.tools.cli.torchserve import torchserve

OWN_FLAGS = ("--help", "-v", "--version")


class Commands(click.Group):
    """Ours; and TorchServe's, which has flags where ours has a word, under its name or ours."""

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        first = arguments[0] if arguments else ""
        by_its_name = Path(context.info_name or "").name == "torchserve"
        if first not in self.commands and (by_its_name or (first.startswith("-") and first not in OWN_FLAGS)):
            arguments = [cast(str, torchserve.name), *arguments]
        return super().parse_args(context, arguments)


@click.group(cls=Commands)
@click.version_option(None, "-v", "--version", package_name="ringserve", prog_name="RingServe")
def main() -> None:
    """Serve models: TorchServe's archives and API over batches in shared memory."""


for command in (start, stop, snapshot, restart, status, config, archive, torchserve):
    main.add_command(command)

if __name__ == "__main__":
    main()

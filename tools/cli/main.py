"""The `ringserve` command."""

import click

from ringserve.tools.cli.archive import archive
from ringserve.tools.cli.serve import start, stop
from ringserve.tools.cli.status import status


@click.group()
@click.version_option(package_name="ringserve", prog_name="RingServe")
def main() -> None:
    """Serve models: TorchServe's archives and API over batches in shared memory."""


for command in (start, stop, status, archive):
    main.add_command(command)

if __name__ == "__main__":
    main()

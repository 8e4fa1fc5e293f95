"""The `ringserve` command."""

import os
import sys
from pathlib import Path
from typing import Any, cast

import click

from ringserve.tools.cli.archive import archive
from ringserve.tools.cli.config import config
from ringserve.tools.cli.run import run
from ringserve.tools.cli.serve import restart, start, stop
from ringserve.tools.cli.snapshot import snapshot
from ringserve.tools.cli.status import status
from ringserve.tools.cli.torchserve import in_full, torchserve

OWN_FLAGS = ("--help", "-v", "--version")


class Commands(click.Group):
    """Ours; and TorchServe's, which has flags where ours has a word, under its name or ours."""

    def main(self, *arguments: Any, **more: Any) -> Any:
        open_standard_streams()
        return super().main(*arguments, **more)

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        first = arguments[0] if arguments else ""
        by_its_name = Path(context.info_name or "").name == "torchserve"
        if first not in self.commands and (by_its_name or (first.startswith("-") and first not in OWN_FLAGS)):
            words = in_full(arguments)
            if arguments == sys.argv[1:]:
                sys.argv[1:] = words  # a server remembers how it was started
            arguments = [cast(str, torchserve.name), *words]
        return super().parse_args(context, arguments)


def open_standard_streams() -> None:
    """Whoever starts us without them would find our sockets in their places, and what is printed in those."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r", closefd=False))


@click.group(cls=Commands)
@click.version_option(None, "-v", "--version", package_name="ringserve", prog_name="RingServe")
def main() -> None:
    """Serve models: TorchServe's archives and API over batches in shared memory."""


for command in (start, stop, snapshot, restart, status, config, archive, run, torchserve):
    main.add_command(command)

if __name__ == "__main__":
    main()

"""Makes one virtual environment for the requirements of a model, in a process of its own.

Run as `python -P -m ringserve.server.repository.environment_build CONTROL_FD` by environments.py. Everything it starts is in its
process group: killing that ends the installation, and when the supervisor dies it ends itself.

What is installed comes first on `sys.path`, then everything the server's own environment has: by a .pth file in which the server's
site folders are added, whose own .pth files count too (an editable installation is one).
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import venv
from pathlib import Path
from typing import IO

from ringserve.server.channel import Channel
from ringserve.server.control import BuildEnvironment
from ringserve.server.repository.requirements import without_secrets

EXIT_NO_ENVIRONMENT = 3
EXIT_NOT_INSTALLED = 4
LAST_WORDS_S = 2.0
MARKER = ".complete"  # written last
BASE_PTH = "zz-ringserve-base.pth"  # .pth files are read in the order of their names: ours is behind those of what is installed


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def make_environment(folder: Path, site_dirs: tuple[str, ...], *, own_pip: bool) -> None:
    """An environment without packages of its own, or with pip alone. Raises `OSError`, `subprocess.CalledProcessError`."""
    if folder.exists():
        shutil.rmtree(folder)
    venv.EnvBuilder(symlinks=True, with_pip=own_pip).create(folder)
    where = {"base": str(folder), "platbase": str(folder)}
    packages = Path(sysconfig.get_path("purelib", scheme="venv", vars=where))
    lines = [f"import site; site.addsitedir({each!a})\n" for each in site_dirs]
    (packages / BASE_PTH).write_text("".join(lines), encoding="ascii")


def install_command(wanted: BuildEnvironment) -> list[str]:
    """What the base already has in a version that does is not installed again."""
    python = str(python_of(Path(wanted.folder)))
    pip = [python, "-P", "-m", "pip"] if wanted.own_pip else [sys.executable, "-P", "-m", "pip", "--python", python]
    options = ["--upgrade-strategy", "only-if-needed", "--no-input", "--progress-bar", "off"]
    return [*pip, "install", *options, "-r", wanted.requirements]


def _build(wanted: BuildEnvironment) -> int:
    folder = Path(wanted.folder)
    try:
        make_environment(folder, wanted.site_dirs, own_pip=wanted.own_pip)
    except (OSError, subprocess.CalledProcessError) as error:
        print(error, file=sys.stderr)
        return EXIT_NO_ENVIRONMENT
    # What an installation that is killed leaves behind goes with the environment.
    scratch = folder / "tmp"
    scratch.mkdir()
    # In the model's folder, so that paths in the file are the model's.
    environ = {**os.environ, "TMPDIR": str(scratch)}
    if _installed_by(install_command(wanted), wanted.model_dir, environ):
        return EXIT_NOT_INSTALLED
    shutil.rmtree(scratch, ignore_errors=True)
    (folder / MARKER).touch()
    return 0


def _installed_by(command: list[str], where: str, environ: dict[str, str]) -> int:
    """The exit code. What pip says is passed on without the secrets that it repeats."""
    pip = subprocess.Popen(command, cwd=where, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert pip.stdout is not None
    reader = threading.Thread(target=_pass_on, args=(pip.stdout,), daemon=True)
    reader.start()
    code = pip.wait()
    reader.join(LAST_WORDS_S)  # something that it has left running may hold its output open
    return code


def _pass_on(said: IO[bytes]) -> None:
    for line in said:
        print(without_secrets(line.decode("utf-8", "replace")), end="", flush=True)


def _end_when_orphaned(control_fd: int) -> None:
    poller = select.poll()
    poller.register(control_fd, 0)  # hang-up and error are always reported, and nothing else
    poller.poll()
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


def main() -> None:
    """Entry point of the process."""
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), BuildEnvironment)
    received = channel.receive(wait=True)
    assert received is not None
    wanted, _ = received
    assert isinstance(wanted, BuildEnvironment)
    threading.Thread(target=_end_when_orphaned, args=(channel.fileno(),), daemon=True).start()
    sys.exit(_build(wanted))


if __name__ == "__main__":
    main()

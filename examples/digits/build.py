"""Train the network and make the example's two archives. Run from the repository's root:

    python -m examples.digits.build [DIR]

DIR is `model_repository/` unless named. Does nothing when both archives are newer than what they are made of.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
RINGSERVE = Path(sys.executable).parent / "ringserve"  # the one installed beside this Python
VERSION = "1.0"
SOURCES = (
    "dataset.py",
    "model.py",
    "train.py",
    "build.py",
    "digit_handler.py",
    "digits-config.yaml",
    "digits-typed-config.yaml",
)


def archives(directory: Path) -> tuple[Path, Path]:
    """Where the two archives go."""
    return directory / "digits.mar", directory / "digits-typed.mar"


def up_to_date(made: Sequence[Path], sources: Sequence[Path]) -> bool:
    """Whether every file of `made` exists and is newer than all `sources`."""
    if not all(path.exists() for path in made):
        return False
    return min(path.stat().st_mtime_ns for path in made) > max(path.stat().st_mtime_ns for path in sources)


def archive(name: str, weights: Path, directory: Path, *options: str | Path) -> None:
    """Write `name`.mar with the archiver's own command line, as a user would."""
    command: list[str | Path] = [
        RINGSERVE,
        "archive",
        "--model-name",
        name,
        "--version",
        VERSION,
        "--serialized-file",
        weights,
    ]
    subprocess.run([*command, *options, "--export-path", directory, "--force"], check=True)


def build(directory: Path) -> None:
    """Train, then archive the network twice: behind a TorchServe handler, and as typed TorchScript."""
    with tempfile.TemporaryDirectory(prefix="digits-") as scratch:
        weights = Path(scratch)
        # A process of its own: it finds its siblings from the root, and torch's memory goes back when it ends.
        subprocess.run([sys.executable, "-m", "examples.digits.train", "--output", weights], cwd=ROOT, check=True)
        archive(
            "digits",
            weights / "digits.pt",
            directory,
            *("--handler", HERE / "digit_handler.py", "--model-file", HERE / "model.py"),
            *("--config-file", HERE / "digits-config.yaml"),
        )
        # The configuration names a backend, so the handler is only for a TorchServe that is given this archive.
        archive(
            "digits-typed",
            weights / "digits-typed.pt",
            directory,
            *("--handler", "base_handler", "--config-file", HERE / "digits-typed-config.yaml"),
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="Make digits.mar and digits-typed.mar.")
    default = ROOT / "model_repository"
    parser.add_argument(
        "directory", type=Path, nargs="?", default=default, help="where to (default: model_repository/)"
    )
    directory: Path = parser.parse_args().directory.resolve()

    directory.mkdir(parents=True, exist_ok=True)
    if up_to_date(archives(directory), [HERE / source for source in SOURCES]):
        print(f"The archives in {directory} are up to date.")
        return
    try:
        build(directory)
    except subprocess.CalledProcessError as error:  # the command has said why on stderr
        raise SystemExit(
            f"The archives were not made: {Path(error.cmd[0]).name} ended with {error.returncode}."
        ) from None


if __name__ == "__main__":
    main()

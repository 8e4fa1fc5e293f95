"""Makes the Python modules of protocol/grpc/*.proto, the same bytes every time: `make proto`.

The versions that decide about the bytes are in constraints.txt. Nothing of this is needed where the server runs.
"""

import shutil
import subprocess
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

PROTO_DIR = Path(__file__).resolve().parent.parent / "protocol" / "grpc"
# What a file is imported as, in .proto files and in Python alike.
PACKAGE = Path("ringserve", "protocol", "grpc")
ENDINGS = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
# Names that others define as well would clash in the pool that all modules of a process share.
SHARED_POOL = (
    ("from google.protobuf import descriptor_pool as _descriptor_pool\n", ""),
    ("DESCRIPTOR = _descriptor_pool.Default().", "DESCRIPTOR = _POOL."),
    ("# @@protoc_insertion_point(imports)\n", "from ringserve.protocol.grpc.pool import POOL as _POOL\n"),
)
PLUGINS = {"mypy": "protoc-gen-mypy", "mypy_grpc": "protoc-gen-mypy_grpc"}


def generate(protos: Path, into: Path) -> list[Path]:
    """Write the modules of all *.proto of a folder into another; the files made. Raises `RuntimeError` with what protoc says."""
    with tempfile.TemporaryDirectory(prefix="ringserve-proto-") as folder:
        root, made = Path(folder, "source"), Path(folder, "made")
        for each in (root / PACKAGE, made):
            each.mkdir(parents=True)
        names = sorted(path.name for path in protos.glob("*.proto"))
        for name in names:
            shutil.copyfile(protos / name, root / PACKAGE / name)
        _protoc(root, made, [str(PACKAGE / name) for name in names])
        found = sorted(path for path in made.rglob("*") if path.is_file() and _says_something(path))
        for path in found:
            (into / path.name).write_text(_in_own_pool(path), encoding="utf-8")
        return [into / path.name for path in found]


def _in_own_pool(path: Path) -> str:
    """The text of a module as protoc has made it, but for the pool (protocol/grpc/pool.py)."""
    text = path.read_text(encoding="utf-8")
    if path.name.endswith("_pb2.py"):
        for theirs, ours in SHARED_POOL:
            if text.count(theirs) != 1:
                raise RuntimeError(f"{path.name}: expected {theirs!r} once, got it {text.count(theirs)} times")
            text = text.replace(theirs, ours)
    return text


def _says_something(path: Path) -> bool:
    """The modules of services of a file that has none are left out."""
    if not path.stem.endswith("_pb2_grpc"):
        return True
    return "Stub" in path.with_suffix(".py").read_text(encoding="utf-8")


def _protoc(root: Path, made: Path, names: list[str]) -> None:
    scripts = Path(sys.executable).parent
    plugins = [f"--plugin={plugin}={scripts / plugin}" for plugin in PLUGINS.values()]
    outputs = [f"--{name}_out={made}" for name in ("python", "grpc_python", *PLUGINS)]
    well_known = files("grpc_tools") / "_proto"
    words = [sys.executable, "-m", "grpc_tools.protoc", f"-I{root}", f"-I{well_known}", *plugins, *outputs, *names]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)
    if done.returncode != 0:
        raise RuntimeError(f"protoc refuses {', '.join(names)}:\n{done.stderr}")


def main() -> None:
    """Write them beside their sources; those whose source has gone go too."""
    made = set(generate(PROTO_DIR, PROTO_DIR))
    for path in PROTO_DIR.iterdir():
        if path.name.endswith(ENDINGS) and path not in made:
            path.unlink()
    for path in sorted(made):
        sys.stdout.write(f"{path.name}\n")


if __name__ == "__main__":
    main()

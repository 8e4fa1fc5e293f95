"""The rules of the house: who imports whom, which package has which home, and how long things may be."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("protocol", "shm", "backends", "server", "tools")
UNMAPPED = ("tests", "benchmarks", "examples")
FILE_LINES_MAX = 500
FUNCTION_LINES_MAX = 70

# Arrows point down: what each folder may import of ours besides itself.
MAY_IMPORT = {
    "protocol": set(),
    "shm": set(),
    "backends": {"protocol"},
    "server": {"protocol", "shm", "backends"},
    "tools": {"protocol", "shm", "backends", "server"},
    "tests": {"protocol", "shm", "backends", "server", "tools"},
    "benchmarks": {"protocol", "shm", "backends", "server", "tools"},
    "examples": {"protocol", "shm", "backends", "server", "tools"},
}

# Third-party packages with a home: the product's files that may import them.
HOMES = {
    "sanic": ("server/app.py", "server/frontend.py", "server/routes/"),
    "uvloop": ("server/frontend.py", "server/instance.py", "server/rpc/frontend.py"),
    "python_multipart": ("server/forms.py",),
    "posix_ipc": ("shm/region.py", "shm/segment.py"),
    "click": ("tools/cli/",),
    "yaml": ("server/repository/config_yaml.py", "backends/ts/"),
    "httpcore": ("server/repository/http_source.py", "tools/cli/status.py"),
    "boto3": ("server/repository/s3.py",),
    "botocore": ("server/repository/s3.py",),
    "cryptography": ("server/security/certificate.py",),
    "grpc": ("server/rpc/",),
    "grpc_health": ("server/rpc/",),
    "grpc_reflection": ("server/rpc/",),
    "watchfiles": ("server/repository/watch.py",),
    "onnxruntime": ("backends/ts/utils/onnx_model.py",),
    "safetensors": ("backends/ts/utils/weights.py",),
    "transformers": ("backends/ts/handler_utils/hf_batch_streamer.py",),
    "huggingface_hub": ("backends/ts/utils/hf_utils.py",),
    "PIL": ("backends/ts/",),
    "captum": ("backends/ts/handler_utils/explanations.py",),
    "torch": ("backends/torchscript", "backends/ts/", "backends/handler_backend.py"),
}
# Words of unfinished work, put together here so that this file does not hold them.
UNFINISHED = re.compile(r"\b(?:TO" r"DO|FIX" r"ME|XX" r"X|HA" r"CK|WI" r"P)\b")
TEXTS = {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".properties", ".sh", ""}


# Not ours in style: what the suite packs into archives stands for users' code, with packages and relative imports.
GENERATED = ("_pb2", "_pb2_grpc")  # by make proto
USERS = ROOT / "tests" / "e2e" / "suite" / "archives"


def sources(*folders: str) -> list[Path]:
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    ours = (path for path in found if "__pycache__" not in path.parts and not path.is_relative_to(USERS))
    return sorted(path for path in ours if not path.stem.endswith(GENERATED))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


PRODUCT = [name_of(path) for path in sources(*MAPPED)]
EVERYTHING = PRODUCT + [name_of(path) for path in sources(*UNMAPPED)]


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))


def only_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def nodes(name: str) -> Iterator[ast.AST]:
    """Everything in a file that runs."""
    left: list[ast.AST] = [tree_of(name)]
    while left:
        node = left.pop()
        if not only_for_types(node):
            yield node
            left.extend(ast.iter_child_nodes(node))


def imports(name: str) -> set[str]:
    """Dotted names of what a file imports, wherever in it."""
    found: set[str] = set()
    for node in nodes(name):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno}: a relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def imported_folders(name: str) -> set[str]:
    return {each.split(".")[1] for each in imports(name) if each.startswith("ringserve.")}


@pytest.mark.parametrize("name", EVERYTHING)
def test_imports_point_down(name: str) -> None:
    folder = name.split("/")[0]
    assert imported_folders(name) <= MAY_IMPORT[folder] | {folder}


@pytest.mark.parametrize("name", PRODUCT)
def test_nothing_imports_our_folders_by_their_bare_names(name: str) -> None:
    """A user's archive may hold its own `server.py`; inside a worker that is the one such a name means."""
    assert not {each.split(".")[0] for each in imports(name)} & {*MAPPED, *UNMAPPED}


@pytest.mark.parametrize("package", HOMES)
def test_third_party_packages_stay_in_their_homes(package: str) -> None:
    users = {name for name in PRODUCT if package in {each.split(".")[0] for each in imports(name)}}
    assert users, f"nobody imports {package} any more"
    assert {name for name in users if not name.startswith(HOMES[package])} == set()


def test_backends_are_created_in_the_process_of_their_model_alone() -> None:
    creators = {name for name in PRODUCT if "ringserve.backends.registry.create_backend" in imports(name)}
    assert {name for name in creators if name.startswith(("server/", "tools/"))} == {
        "server/worker.py",
        "tools/local_run.py",
    }


@pytest.mark.parametrize("module", ["server.supervisor", "server.frontend", "server.worker", "tools.cli.main"])
def test_no_process_but_a_front_end_of_grpc_imports_that(module: str) -> None:
    script = f"import sys, ringserve.{module}; assert not {{'grpc', 'google.protobuf'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", script], check=True, timeout=60)


def test_a_front_end_of_grpc_imports_no_framework_and_nothing_of_http() -> None:
    script = "import sys, ringserve.server.rpc.frontend; assert not {'torch', 'ts', 'sanic', 'cryptography'} & set(sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", script], check=True, timeout=60)


@pytest.mark.parametrize("module", ["server.supervisor", "server.frontend", "tools.cli.main"])
def test_no_process_but_a_worker_imports_a_framework_or_ts_nor_an_extra_before_it_is_needed(module: str) -> None:
    unwanted = {"torch", "ts", "sklearn", "boto3", "pynvml", "cryptography"}
    script = f"import sys, ringserve.{module}; assert not {unwanted} & set(sys.modules)"
    subprocess.run([sys.executable, "-P", "-c", script], check=True, timeout=60)


@cache
def setuptools_settings() -> dict[str, object]:
    settings: dict[str, object] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    return settings


def test_the_package_list_is_the_tree() -> None:
    """A package missing from the list is left out of the wheel without a word."""
    with_init = {path.parent for path in sources(*MAPPED) if path.name == "__init__.py"}
    assert with_init == {path.parent for path in sources(*MAPPED)}, "a folder of ours has no __init__.py"
    listed = setuptools_settings()["packages"]
    assert isinstance(listed, list)
    assert sorted(listed) == sorted("ringserve." + name_of(path).replace("/", ".") for path in with_init)


def test_every_mapped_folder_is_a_parent_of_packages() -> None:
    assert setuptools_settings()["package-dir"] == {f"ringserve.{folder}": folder for folder in MAPPED}


@pytest.mark.parametrize("folder", MAPPED)
def test_a_mapped_folder_says_that_it_is_typed(folder: str) -> None:
    assert (ROOT / folder / "py.typed").is_file()


@pytest.mark.parametrize("folder", [*MAPPED, "tests", "benchmarks", "examples"])
def test_no_folder_can_be_imported_by_its_bare_name(folder: str) -> None:
    script = f"import sys; from importlib.util import find_spec; sys.exit(find_spec({folder!r}) is not None)"
    assert subprocess.run([sys.executable, "-P", "-c", script], check=False, cwd=ROOT, timeout=60).returncode == 0
    if folder in MAPPED:
        assert find_spec(f"ringserve.{folder}") is not None


def test_the_tests_are_no_package() -> None:
    packages = (ROOT / "tests").rglob("__init__.py")
    assert [name_of(path) for path in packages if not path.is_relative_to(USERS)] == []


@pytest.mark.parametrize("name", EVERYTHING)
def test_files_and_functions_are_short_enough_to_read(name: str) -> None:
    assert len((ROOT / name).read_text(encoding="utf-8").splitlines()) <= FILE_LINES_MAX
    functions = (node for node in ast.walk(tree_of(name)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    long = {each.name: each.end_lineno - each.lineno + 1 for each in functions if each.end_lineno is not None}
    assert {each: lines for each, lines in long.items() if lines > FUNCTION_LINES_MAX} == {}


@pytest.mark.parametrize("name", PRODUCT)
def test_a_file_says_what_it_is_for(name: str) -> None:
    tree = tree_of(name)
    assert not tree.body or ast.get_docstring(tree)


def texts() -> list[Path]:
    top = [path for path in ROOT.iterdir() if path.is_file() and path.suffix in TEXTS and not path.name.startswith(".")]
    folders = [*MAPPED, *UNMAPPED, "docs"]
    below = (path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file())
    return top + [path for path in below if path.suffix in TEXTS and "__pycache__" not in path.parts]


def test_nothing_is_left_unfinished_in_writing() -> None:
    found = []
    for path in texts():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if UNFINISHED.search(line):
                found.append(f"{name_of(path)}:{number}: {line.strip()}")
    assert found == []

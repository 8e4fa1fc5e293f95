"""What tests of several folders need."""

from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile

import pytest


def _make_wheel(folder: Path, name: str, version: str, source: str) -> Path:
    """A package of one module, as pip installs it without any network or build."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-{version}-py3-none-any.whl"
    info = f"{name}-{version}.dist-info"
    members = {
        f"{name}.py": source,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    members[f"{info}/RECORD"] = "".join(f"{each},,\n" for each in [*members, f"{info}/RECORD"])
    with ZipFile(path, "w") as wheel:
        for member, text in members.items():
            wheel.writestr(member, text)
    return path


@pytest.fixture(scope="session")
def make_wheel() -> Callable[[Path, str, str, str], Path]:
    return _make_wheel

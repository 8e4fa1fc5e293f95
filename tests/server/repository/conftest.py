"""A model store, and a web server that has an archive for it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.repository.fetching import BODY
from tests.server.repository.file_server import FileServer, answer


@pytest.fixture
def store(tmp_path: Path) -> Path:
    (tmp_path / "store").mkdir()
    return tmp_path / "store"


@pytest.fixture
def source() -> Iterator[FileServer]:
    with FileServer() as server:
        server.acts["/x.mar"] = answer(200, BODY)
        yield server

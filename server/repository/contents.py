"""What a model consists of, wherever it lies: in a folder, or in an archive that nobody has unpacked (archive.py)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ringserve.server.repository.files import open_regular


class Contents(Protocol):
    """The files of one model, by their paths in it."""

    def has(self, name: str) -> bool:
        """Whether there is a file or folder of this path."""

    def has_file(self, name: str) -> bool:
        """Whether there is a file of this path."""

    def read(self, name: str, bytes_max: int) -> bytes:
        """Its first `bytes_max` bytes. Raises `OSError`, and `InvalidModel` for an archive that is damaged."""


@dataclass(frozen=True, slots=True)
class FolderContents:
    """What lies in a folder. A `Contents`."""

    folder: Path

    def has(self, name: str) -> bool:
        return (self.folder / name).exists()

    def has_file(self, name: str) -> bool:
        return (self.folder / name).is_file()

    def read(self, name: str, bytes_max: int) -> bytes:
        with open_regular(self.folder / name) as file:
            return file.read(bytes_max)

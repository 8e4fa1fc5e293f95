"""What a file saved by torch holds. All its formats are zip files, and their suffixes do not tell them apart."""

import enum
import zipfile
from pathlib import Path


class FileKind(enum.Enum):
    """The value completes the sentence "it holds ..."."""

    TORCHSCRIPT = "a TorchScript module"
    EXPORTED = "a program saved by torch.export"
    COMPILED = "a package compiled by AOTInductor"
    WEIGHTS = "what torch.save wrote: a state dict, or a pickled object"
    OTHER = "nothing that torch has saved"


# Which kind has a member whose path contains the text. The first that fits counts.
_SIGNS = (
    ("/data/aotinductor/", FileKind.COMPILED),
    ("/models/", FileKind.EXPORTED),
    ("serialized_exported_program.json", FileKind.EXPORTED),  # torch before 2.8
    ("/constants.pkl", FileKind.TORCHSCRIPT),
    ("/data.pkl", FileKind.WEIGHTS),
)


def kind_of(path: str | Path) -> FileKind:
    """Only the directory of the zip file is read. Raises OSError when there is no such file."""
    try:
        with zipfile.ZipFile(path) as file:
            members = ["/" + name for name in file.namelist()]
    except zipfile.BadZipFile:
        return FileKind.OTHER
    for sign, kind in _SIGNS:
        if any(sign in member for member in members):
            return kind
    return FileKind.OTHER

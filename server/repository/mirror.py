"""What is served of a folder that lies in the model repository: copies of its small files, links to the others.

A model that is unpacked there may write beside its code while it is loaded or asked: a cache, a log, compiled kernels. Served in its
own folder, that would be a new content of the repository, and a reason to load it again, for ever. So what it writes lies aside and
goes with it; and its code stays what it was when somebody changes the folder, until that is served. Weights are too large to copy and
nothing that a model writes to.
"""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ringserve.server.repository.archive_writing import create_file
from ringserve.server.repository.files import open_regular

FILES_MAX = 20_000
DEPTH_MAX = 64
COPIED_FILE_BYTES_MAX = 1 << 20
COPIED_BYTES_MAX = 64 << 20  # of all; from then on there are links
NOT_SERVED = "__pycache__"  # Python's own cache, which it makes anew


def mirror(folder: Path, into: Path, without: frozenset[str] = frozenset()) -> None:
    """`into` exists and is empty. What the folder itself has of the names `without` is left out. Folders become folders; links among them, and hidden ones, which are no content (scan.py), become
    links. Raises `OSError`, also for more than anybody serves."""
    bytes_left = COPIED_BYTES_MAX
    for inside, name in _walked(folder, into, without):
        source, target = folder.absolute() / inside / name, into / inside / name
        small = _small_file(source, min(COPIED_FILE_BYTES_MAX, bytes_left))
        if small is None:
            target.symlink_to(source)
            continue
        data, is_program = small
        bytes_left -= len(data)
        with create_file(target) as file:
            file.write(data)
        if is_program:
            target.chmod(0o700)


def _small_file(path: Path, bytes_max: int) -> tuple[bytes, bool] | None:
    """What is in it, and whether it can be run. None for anything else, and what cannot be read: it may be what nobody reads."""
    try:
        with open_regular(path) as file:
            data, mode = file.read(bytes_max + 1), os.fstat(file.fileno()).st_mode
    except OSError:
        return None
    return (data, bool(mode & stat.S_IXUSR)) if len(data) <= bytes_max else None


def _walked(folder: Path, into: Path, without: frozenset[str]) -> Iterator[tuple[Path, str]]:
    """What becomes a copy or a link, behind the folders that hold it, which are made. Raises `OSError`."""

    def refuse(error: OSError) -> None:
        raise error

    count = 0
    for where, folders, files in os.walk(folder, onerror=refuse):
        inside = Path(where).relative_to(folder)
        folders[:] = [name for name in folders if name != NOT_SERVED and (inside.parts or name not in without)]
        count += len(folders) + len(files)
        if count > FILES_MAX or len(inside.parts) > DEPTH_MAX:
            raise OSError(errno.E2BIG, f"more than {FILES_MAX} files or {DEPTH_MAX} nested folders", str(folder))
        links = {name for name in folders if name.startswith(".") or (Path(where) / name).is_symlink()}
        folders[:] = [name for name in folders if name not in links]
        for name in folders:
            (into / inside / name).mkdir(mode=0o700)
        for name in (*links, *files):
            yield inside, name

"""Archives written by us: layouts, flags, atomicity, and that they equal what `torch-model-archiver` writes."""

import json
import logging
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import pytest
from click.testing import CliRunner

from ringserve.server.repository.store import ModelStore
from ringserve.tools.archiver import ArchiveError, ArchiveRequest, write_archive
from ringserve.tools.cli.archive import archive as archive_command

MANIFEST_NAME = "MAR-INF/MANIFEST.json"
NOON = datetime(2026, 11, 20, 12, 0, 5)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the files of a model."""
    for name in ("h.py", "net.py", "w.pt", "reqs.txt", "i1.json", "i2.json"):
        (tmp_path / name).write_text(f"content of {name}")
    (tmp_path / "model-config.yaml").write_text("batchSize: 3\n")
    for name in ("a.txt", "sub/b.txt", "sub/.keep", ".git/x", "__pycache__/p.pyc", "__MACOSX/y", "sub/.idea/z"):
        (tmp_path / "extra" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "extra" / name).write_text(name)
    (tmp_path / "extra/empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def request(**changes: Any) -> ArchiveRequest:
    plain = ArchiveRequest(model_name="m", version="1.0", handler="h.py", export_path=Path("out"))
    return replace(plain, **changes)


def names(path: Path) -> list[str]:
    with ZipFile(path) as bundle:
        return bundle.namelist()


def manifest_of(path: Path) -> dict[str, Any]:
    with ZipFile(path) as bundle:
        manifest: dict[str, Any] = json.loads(bundle.read(MANIFEST_NAME))
    return manifest


def refused(archive_request: ArchiveRequest) -> str:
    with pytest.raises(ArchiveError) as caught:
        write_archive(archive_request)
    return str(caught.value)


FULL = request(
    handler="h:run",
    serialized_file=Path("w.pt"),
    model_file=Path("net.py"),
    extra_files="extra,i*.json",
    requirements_file=Path("reqs.txt"),
    config_file=Path("model-config.yaml"),
)
FULL_MEMBERS = [
    MANIFEST_NAME,
    *("a.txt", "h.py", "i1.json", "i2.json", "model-config.yaml", "net.py", "reqs.txt"),
    *("sub/.keep", "sub/b.txt", "w.pt"),
]


@pytest.mark.parametrize(("archive_format", "method"), [("default", ZIP_DEFLATED), ("zip-store", ZIP_STORED)])
def test_a_zip_holds_every_file_in_sorted_order(work: Path, archive_format: str, method: int) -> None:
    path = write_archive(replace(FULL, archive_format=archive_format), NOON)
    assert path == Path("out/m.mar")
    with ZipFile(path) as bundle:
        assert bundle.namelist() == FULL_MEMBERS
        assert {info.compress_type for info in bundle.infolist()} == {method}
        assert bundle.read("sub/b.txt") == b"sub/b.txt"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_the_manifest_tells_what_was_given(work: Path) -> None:
    assert manifest_of(write_archive(replace(FULL, runtime="python3"), NOON)) == {
        "createdOn": "20/11/2026 12:00:05",
        "runtime": "python3",
        "model": {
            "modelName": "m",
            "serializedFile": "w.pt",
            "handler": "h:run",
            "modelFile": "net.py",
            "modelVersion": "1.0",
            "requirementsFile": "reqs.txt",
            "configFile": "model-config.yaml",
        },
        "archiverVersion": version("ringserve"),
    }
    assert manifest_of(write_archive(request(force=True)))["model"] == {
        "modelName": "m",
        "handler": "h.py",
        "modelVersion": "1.0",
    }


def test_a_tgz_holds_everything_below_the_models_name(work: Path) -> None:
    path = write_archive(replace(FULL, archive_format="tgz"))
    assert path == Path("out/m.tar.gz")
    with tarfile.open(path) as bundle:
        assert bundle.getnames() == [f"m/{name}" for name in FULL_MEMBERS]
        assert {(entry.uid, entry.uname, entry.isreg()) for entry in bundle} == {(0, "", True)}


def test_no_archive_is_a_folder_with_the_same_files(work: Path) -> None:
    path = write_archive(replace(FULL, archive_format="no-archive"))
    assert path == Path("out/m")
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert files == set(FULL_MEMBERS)
    assert [entry.name for entry in Path("out").iterdir()] == ["m"]


@pytest.mark.parametrize("archive_format", ["default", "zip-store", "tgz"])
def test_the_same_request_gives_the_same_bytes(work: Path, archive_format: str) -> None:
    wanted = replace(FULL, archive_format=archive_format, force=True)
    first = write_archive(wanted, NOON).read_bytes()
    assert write_archive(wanted, NOON).read_bytes() == first


@pytest.mark.parametrize("archive_format", ["default", "zip-store", "tgz"])
def test_equal_files_give_equal_bytes_whatever_their_times_and_modes(
    work: Path, archive_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    wanted = replace(FULL, archive_format=archive_format, force=True)
    first = write_archive(wanted).read_bytes()
    for path in work.rglob("*"):
        if path.is_file():
            path.chmod(0o755)
            os.utime(path, (1, 1_600_000_000))
    second = write_archive(wanted)
    assert second.read_bytes() == first
    model = ModelStore(work / "out", work / "w").unpack(second)
    assert model.manifest.raw["createdOn"] == "14/11/2023 22:13:20"


def test_members_have_the_same_times_and_modes_in_every_run(work: Path) -> None:
    with ZipFile(write_archive(FULL)) as bundle:
        assert {(info.date_time, info.external_attr >> 16) for info in bundle.infolist()} == {
            ((1980, 1, 1, 0, 0, 0), 0o100644)
        }
    with tarfile.open(write_archive(replace(FULL, archive_format="tgz"))) as bundle:
        assert {(entry.mtime, entry.mode, entry.uid, entry.gid) for entry in bundle} == {(315_532_800, 0o644, 0, 0)}


@pytest.mark.parametrize("epoch", ["yesterday", "1e9", "9" * 30])
def test_an_epoch_that_is_no_time_is_refused(work: Path, epoch: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", epoch)
    assert refused(request()) == f"SOURCE_DATE_EPOCH: expected seconds since 1970, got {epoch!r}"


@pytest.mark.parametrize("archive_format", ["default", "zip-store", "tgz"])
def test_a_file_longer_than_32_bits_can_say_is_packed_and_unpacked(
    work: Path, archive_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the limits of the formats lowered: what is written beyond them is what would be at 4 GB."""
    monkeypatch.setattr("zipfile.ZIP64_LIMIT", 1000)
    data = os.urandom(5000)
    Path("w.pt").write_bytes(data)
    path = write_archive(request(serialized_file=Path("w.pt"), archive_format=archive_format))
    if archive_format != "tgz":
        assert b"\x01\x00\x10\x00" + (5000).to_bytes(8, "little") in path.read_bytes()  # the extra field of zip64
    assert (ModelStore(work / "out", work / "w").unpack(path).model_dir / "w.pt").read_bytes() == data


@pytest.mark.parametrize("archive_format", ["default", "tgz", "no-archive"])
def test_progress_is_told_in_bytes(work: Path, archive_format: str) -> None:
    totals: list[int] = []
    done: list[int] = []

    @contextmanager
    def progress(total_bytes: int) -> Iterator[Callable[[int], object]]:
        totals.append(total_bytes)
        yield done.append

    write_archive(replace(FULL, archive_format=archive_format), progress=progress)
    assert totals == [sum(done)]
    assert sum(done) == sum(Path(name).stat().st_size for name in ("h.py", "net.py", "w.pt", "reqs.txt")) + sum(
        path.stat().st_size
        for path in map(
            Path, ("i1.json", "i2.json", "model-config.yaml", "extra/a.txt", "extra/sub/b.txt", "extra/sub/.keep")
        )
    )


@pytest.mark.parametrize(
    ("handler", "entry", "members"),
    [
        ("h.py", "h.py", ["h.py"]),
        ("h", "h", ["h.py"]),
        ("./h", "h", ["h.py"]),
        ("h:run", "h:run", ["h.py"]),
        ("./h.py:run", "h.py:run", ["h.py"]),
        ("image_classifier", "image_classifier", []),
        ("vllm_handler", "vllm_handler", []),
    ],
)
def test_a_handler_is_a_file_or_a_default_name(work: Path, handler: str, entry: str, members: list[str]) -> None:
    path = write_archive(request(handler=handler))
    assert manifest_of(path)["model"]["handler"] == entry
    assert names(path) == [MANIFEST_NAME, *members]


def test_a_cpp_handler_is_a_library_or_a_default_name(work: Path) -> None:
    Path("libx.so").write_bytes(b"")
    assert names(write_archive(request(handler="libx:Net", runtime="LSP"))) == [MANIFEST_NAME, "libx.so"]
    assert names(write_archive(request(handler="BaseHandler", runtime="LSP", force=True))) == [MANIFEST_NAME]


@pytest.mark.parametrize(
    ("extra_files", "members"),
    [
        ("i1.json, i2.json", ["i1.json", "i2.json"]),
        ("i?.json,", ["i1.json", "i2.json"]),
        ("i[12].json,i1.json", ["i1.json", "i2.json"]),
        ("extra/sub", [".keep", "b.txt"]),
        ("extra/a.txt,extra/s*", [".keep", "a.txt", "b.txt"]),
    ],
)
def test_extra_files_are_a_comma_list_with_wildcards_and_folders(
    work: Path, extra_files: str, members: list[str]
) -> None:
    path = write_archive(request(handler="base_handler", extra_files=extra_files))
    assert names(path) == [MANIFEST_NAME, *members]


def test_a_name_with_brackets_is_first_taken_as_it_is(work: Path) -> None:
    Path("w[1].bin").write_text("")
    assert "w[1].bin" in names(write_archive(request(extra_files="w[1].bin")))


def test_a_wildcard_without_match_only_warns(work: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert names(write_archive(request(extra_files="no*"))) == [MANIFEST_NAME, "h.py"]
    assert "Given wildcard pattern did not match any file: no*" in caplog.text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_name": "a/b"}, "Model name 'a/b' contains special characters."),
        ({"model_name": "-a"}, "Model name '-a' contains special characters."),
        ({"model_name": "a\n"}, "Model name 'a\\n' contains special characters."),
        ({"version": ""}, "Model version is not defined."),
        ({"handler": ""}, "Handler is not defined."),
        ({"runtime": "java"}, "Runtime 'java' is not one of python, python3, LSP."),
        ({"archive_format": "rar"}, "Archive format 'rar' is not one of default, tgz, no-archive, zip-store."),
        ({"handler": "gone"}, "File does not exist: gone.py (given as --handler)"),
        ({"serialized_file": Path("gone.pt")}, "File does not exist: gone.pt (given as --serialized-file)"),
        ({"model_file": Path("extra")}, "File does not exist: extra (given as --model-file)"),
        ({"extra_files": "h.py,gone"}, "File does not exist: gone (given as --extra-files)"),
        ({"export_path": Path("h.py")}, "Given export-path h.py is not a directory."),
        ({"export_path": Path("h.py/deep")}, "Given export-path h.py/deep is not a directory."),
    ],
)
def test_a_wrong_request_is_refused_with_its_sentence(work: Path, changes: dict[str, Any], sentence: str) -> None:
    assert refused(request(**changes)).startswith(sentence)
    assert not Path("out/m.mar").exists()


def test_two_files_of_one_name_are_refused(work: Path) -> None:
    Path("extra/h.py").write_text("another handler")
    assert refused(request(extra_files="extra")) == "h.py and extra/h.py would both be h.py in the archive."
    assert names(write_archive(request(extra_files="h.py,./h.py"))) == [MANIFEST_NAME, "h.py"]


def test_the_manifest_cannot_be_replaced(work: Path) -> None:
    Path("extra/MAR-INF").mkdir()
    Path("extra/MAR-INF/MANIFEST.json").write_text("{}")
    assert "would replace the archive's own MAR-INF/MANIFEST.json" in refused(request(extra_files="extra"))


def test_a_link_that_loops_is_refused(work: Path) -> None:
    Path("extra/sub/loop").symlink_to(work / "extra")
    assert refused(request(extra_files="extra")) == "extra/sub/loop links to a folder that holds it."


def test_links_to_files_are_packed_as_files_and_dangling_ones_refused(work: Path) -> None:
    Path("extra/sub/w.pt").symlink_to(work / "w.pt")
    for archive_format in ("default", "tgz", "no-archive"):
        path = write_archive(request(extra_files="extra/sub", archive_format=archive_format))
    assert not (path / "w.pt").is_symlink()
    with tarfile.open("out/m.tar.gz") as bundle:
        assert bundle.getmember("m/w.pt").isreg()
    Path("extra/sub/gone").symlink_to(work / "absent")
    assert refused(request(extra_files="extra/sub")) == "extra/sub/gone is neither a file nor a folder."


def test_what_no_server_would_unpack_is_refused_at_once(work: Path) -> None:
    Path("extra/A.txt").write_text("differs from a.txt in case only")
    assert refused(request(extra_files="extra")).startswith(
        "No server would unpack this archive. Archive m.mar, member"
    )
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize("archive_format", ["default", "tgz", "no-archive"])
def test_an_existing_target_stays_unless_forced(work: Path, archive_format: str) -> None:
    path = write_archive(request(archive_format=archive_format))
    with_weights = request(archive_format=archive_format, serialized_file=Path("w.pt"))
    assert refused(with_weights).startswith(f"{path} already exists.\nPlease specify --force/-f option")
    write_archive(replace(with_weights, force=True))
    assert ModelStore(work / "out", work / "w").entries() == [path.name]
    assert [entry.name for entry in Path("out").iterdir()] == [path.name]
    if archive_format == "default":
        assert "w.pt" in names(path)
    if archive_format == "no-archive":
        assert (path / "w.pt").is_file()


@pytest.mark.parametrize(("archive_format", "name"), [("no-archive", "m"), ("default", "m.mar")])
def test_force_does_not_cost_a_folder_that_is_no_model(work: Path, archive_format: str, name: str) -> None:
    precious = work / "out" / name / "precious"
    precious.parent.mkdir(parents=True)
    precious.write_text("")
    assert "holds no model" in refused(request(archive_format=archive_format, force=True))
    assert precious.exists()


@pytest.mark.parametrize("archive_format", ["default", "zip-store", "tgz", "no-archive"])
def test_a_failure_while_writing_leaves_the_old_archive_and_nothing_else(
    work: Path, archive_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(request(archive_format=archive_format))
    before = path.read_bytes() if path.is_file() else sorted(path.rglob("*"))

    def vanish(*_args: object, **_keywords: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "w.pt")

    monkeypatch.setattr("ringserve.tools.archiver._copy", vanish)
    monkeypatch.setattr("ringserve.tools.archiver._Counted", vanish)
    wanted = request(archive_format=archive_format, serialized_file=Path("w.pt"), force=True)
    assert refused(wanted).startswith(f"{path} cannot be written: ")
    assert (path.read_bytes() if path.is_file() else sorted(path.rglob("*"))) == before
    assert [entry.name for entry in Path("out").iterdir()] == [path.name]


def test_a_folder_that_cannot_take_its_place_leaves_the_old_one_there(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_archive(request(archive_format="no-archive"))
    before, rename = sorted(path.rglob("*")), Path.rename

    def fail_for_new(source: Path, target: Path) -> Path:
        if source.name == "new":
            raise OSError(5, "Input/output error")
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", fail_for_new)
    wanted = request(archive_format="no-archive", serialized_file=Path("w.pt"), force=True)
    assert refused(wanted).startswith(f"{path} cannot be written: ")
    assert sorted(path.rglob("*")) == before
    assert [entry.name for entry in Path("out").iterdir()] == [path.name]


def test_files_older_than_the_zip_format_are_packed(work: Path) -> None:
    os.utime("w.pt", (0, 0))
    assert "w.pt" in names(write_archive(request(serialized_file=Path("w.pt"))))


FLAGS = [
    *("--model-name", "m", "-v", "1.0", "--handler", "h.py", "--serialized-file", "w.pt"),
    *("--model-file", "net.py", "--extra-files", "extra,i*.json", "-r", "reqs.txt", "-c", "model-config.yaml"),
]


def by_torch_model_archiver(out: Path, archive_format: str, flags: Sequence[str] = FLAGS) -> None:
    program = Path(sys.executable).with_name("torch-model-archiver")
    command = [str(program), *flags, "--export-path", str(out), "--archive-format", archive_format]
    # It stages files in the temporary folder under the model's name; a private one keeps parallel runs apart.
    staging = out.with_name(f"{out.name}-staging")
    staging.mkdir()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "TMPDIR": str(staging)})


def by_us(out: Path, archive_format: str, flags: Sequence[str] = FLAGS) -> None:
    command = [*flags, "--export-path", str(out), "--archive-format", archive_format]
    result = CliRunner().invoke(archive_command, command)
    assert result.exit_code == 0, result.output


def packed(path: Path) -> tuple[dict[str, bytes], dict[str, Any]]:
    """The files of an archive of either format, and its manifest without what tells who wrote it when."""
    if path.suffix == ".mar":
        with ZipFile(path) as bundle:
            files = {name: bundle.read(name) for name in bundle.namelist() if not name.endswith("/")}
    else:
        with tarfile.open(path) as tar:
            found = {entry.name: tar.extractfile(entry) for entry in tar if entry.isfile()}
            files = {name: file.read() for name, file in found.items() if file is not None}
    (name,) = [name for name in files if name.endswith(MANIFEST_NAME)]
    manifest = json.loads(files.pop(name))
    del manifest["createdOn"], manifest["archiverVersion"]
    return files, manifest


def same(*flags: str) -> list[str]:
    return ["--model-name", "m", "-v", "1.0", *flags]


@pytest.mark.parametrize(
    ("archive_format", "flags"),
    [
        ("default", FLAGS),
        ("tgz", FLAGS),
        ("default", same("--handler", "image_classifier", "--serialized-file", "w.pt", "--extra-files", "i1.json")),
        ("tgz", same("--handler", "text_classifier", "--model-file", "net.py")),
        ("default", same("--handler", "extra/sub/deep", "--runtime", "python3")),
        ("tgz", same("--handler", "./h:run", "--extra-files", "extra/s*,i?.json,absent*")),
        ("zip-store", same("--handler", "h:run", "--serialized-file", "extra/a.txt", "--version", "2-rc.1")),
        ("default", same("--handler", "BaseHandler", "--runtime", "LSP", "--serialized-file", "w.pt")),
    ],
)
def test_both_command_lines_write_the_same_members_and_manifest(
    work: Path, archive_format: str, flags: list[str]
) -> None:
    Path("extra/sub/deep.py").write_text("def handle(data, context): return data")
    found = []
    writers: list[Callable[[Path, str, Sequence[str]], None]] = [by_torch_model_archiver, by_us]
    for writer in writers:
        out = work / writer.__name__
        out.mkdir()
        writer(out, archive_format, flags)
        (path,) = out.iterdir()
        found.append((path.name, *packed(path)))
    assert found[0] == found[1]


@pytest.mark.parametrize("archive_format", ["default", "zip-store", "no-archive"])
def test_both_archivers_write_the_same_model_and_the_store_reads_both(work: Path, archive_format: str) -> None:
    models = []
    writers: list[Callable[[Path, str], None]] = [by_torch_model_archiver, by_us]
    for writer in writers:
        out = work / writer.__name__
        out.mkdir()
        writer(out, archive_format)
        store = ModelStore(out, work / "work")
        (entry,) = store.entries()
        models.append(store.unpack(store.locate(entry)))
    contents = [
        {
            str(path.relative_to(model.model_dir)): path.read_bytes()
            for path in model.model_dir.rglob("*")
            if path.is_file() and path.name != "MANIFEST.json"
        }
        for model in models
    ]
    assert contents[0] == contents[1]
    assert set(contents[1]) == set(FULL_MEMBERS) - {MANIFEST_NAME}
    theirs, ours = (model.manifest.raw for model in models)
    assert ours["model"] == theirs["model"]
    assert ours.keys() == theirs.keys()
    assert models[0].config == models[1].config
    assert models[1].config.batch_size == 3

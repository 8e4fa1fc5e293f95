"""The store: which name means which path, and folders that come and go with their models."""

import asyncio
import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from ringserve.protocol.errors import Internal, InvalidModel, ModelNotFound
from ringserve.server.repository import mirror
from ringserve.server.repository import store as store_module
from ringserve.server.repository.manifest import Manifest
from ringserve.server.repository.model_config import ModelConfig
from ringserve.server.repository.remote import Fetched, RemoteSources
from ringserve.server.repository.store import ModelStore, UnpackedModel, fallback_name

MANIFEST = json.dumps({"model": {"modelName": "m", "configFile": "model-config.yaml"}})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A model store with an archive, a no-archive model and what else people leave in such a folder."""
    root = tmp_path / "store"
    (root / "folder_model/MAR-INF").mkdir(parents=True)
    (root / "folder_model/MAR-INF/MANIFEST.json").write_text(MANIFEST)
    (root / "folder_model/model-config.yaml").write_text("batchSize: 4")
    (root / "plain_folder").mkdir()
    (root / "README.md").write_text("not a model")
    write_mar(root / "b.mar")
    write_mar(root / ".hidden.mar")
    return root


@pytest.fixture
def store(root: Path, tmp_path: Path) -> ModelStore:
    return ModelStore(root, tmp_path / "work")


def write_mar(path: Path, manifest: str = MANIFEST) -> None:
    with ZipFile(path, "w") as bundle:
        bundle.writestr("MAR-INF/MANIFEST.json", manifest)
        bundle.writestr("model-config.yaml", "batchSize: 2")


def test_the_constructor_touches_nothing(tmp_path: Path) -> None:
    ModelStore(tmp_path / "store", tmp_path / "work")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["b.mar", "/any/folder/b.mar", "./b.mar", "C:\\models\\b.mar", "ftp://host/b.mar"])
def test_the_last_component_names_an_archive_of_the_store(store: ModelStore, root: Path, url: str) -> None:
    assert store.locate(url) == root / "b.mar"


@pytest.mark.parametrize("url", ["folder_model", "folder_model/", "/elsewhere/folder_model"])
def test_a_folder_of_the_store_can_be_named(store: ModelStore, root: Path, url: str) -> None:
    assert store.locate(url) == root / "folder_model"


@pytest.mark.parametrize("url", [None, ""])
def test_an_empty_url_is_refused(store: ModelStore, url: str | None) -> None:
    with pytest.raises(ModelNotFound, match=r"^empty url$"):
        store.locate(url)


@pytest.mark.parametrize("url", ["../b.mar", "x/../b.mar", "..", "b..mar", "http://host/../b.mar"])
def test_a_relative_url_is_refused(store: ModelStore, url: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        store.locate(url)
    assert str(caught.value) == f"Relative path is not allowed in url: {url}"


@pytest.mark.parametrize(
    "url", ["http://host/b.mar", "HTTPS://host/b.mar", "s3://bucket/b.mar", "file:///b.mar", "file:b.mar"]
)
def test_a_remote_url_is_denied_even_when_the_store_has_the_file(store: ModelStore, url: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        store.locate(url)
    assert str(caught.value) == f"Given URL {url} does not match any allowed URL(s)"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        *((each, each) for each in ("gone.mar", "/", ".", "x/.")),
        ("n" * 5000, "n" * 300 + "…"),
        ("a\0b.mar", "a\\x00b.mar"),
        ("\ud800.mar", "\\ud800.mar"),
    ],
)
def test_what_the_store_does_not_hold_is_not_found(store: ModelStore, url: str, shown: str) -> None:
    with pytest.raises(ModelNotFound) as caught:
        store.locate(url)
    assert str(caught.value) == f"Model not found at: {shown}"


def test_a_name_of_the_store_is_fetched_where_it_lies_and_never_forgotten(store: ModelStore, root: Path) -> None:
    fetched = asyncio.run(store.fetch("/any/b.mar"))
    assert fetched == Fetched(root / "b.mar", "/any/b.mar")
    store.take_back(fetched)
    store.forget(fetched)
    assert (root / "b.mar").exists()
    assert not store.came_by_url("b.mar")


def test_a_remote_url_is_fetched_when_it_is_allowed(root: Path, tmp_path: Path) -> None:
    write_mar(tmp_path / "far.mar")
    store = ModelStore(root, tmp_path / "work", RemoteSources(("file://.*",)))
    url = f"file://{tmp_path}/far.mar"
    for give_up in (store.take_back, store.forget):
        fetched = asyncio.run(store.fetch(url))
        assert fetched == Fetched(root / "far.mar", url, remote=True, downloaded=True)
        assert store.came_by_url("far.mar")
        assert store.unpack(fetched.path).manifest.model_name == "m"
        give_up(fetched)
        assert not fetched.path.exists()
        assert not store.came_by_url("far.mar")
    write_mar(root / "far.mar")
    fetched = asyncio.run(store.fetch(url, at_startup=True))
    store.take_back(fetched)
    assert fetched.path.exists()
    assert not store.came_by_url("far.mar")


@pytest.mark.parametrize(
    "url", [None, "", "gone.mar", "../b.mar", "http://host/b.mar", "http://me:5ecret@host/b.mar?5ecret"]
)
def test_what_cannot_be_located_cannot_be_fetched_either(store: ModelStore, url: str | None) -> None:
    with pytest.raises(ModelNotFound) as caught:
        asyncio.run(store.fetch(url))
    assert "5ecret" not in str(caught.value)


def test_a_password_in_what_is_no_remote_url_is_not_told(store: ModelStore) -> None:
    """TorchServe takes the last component of any URL that it does not know for a name of the store."""
    assert asyncio.run(store.fetch("ftp://user:5ecret@host/b.mar")).shown_url == "ftp://***@host/b.mar"
    with pytest.raises(ModelNotFound) as caught:
        store.locate(" http://user:5ecret@host/gone.mar")
    assert str(caught.value) == "Model not found at: http://***@host/gone.mar"


def test_a_folder_outside_the_store_cannot_be_named(store: ModelStore, tmp_path: Path) -> None:
    (tmp_path / "outside/MAR-INF").mkdir(parents=True)
    with pytest.raises(ModelNotFound):
        store.locate(str(tmp_path / "outside"))


def test_entries_are_the_models_and_nothing_else(store: ModelStore, root: Path) -> None:
    write_mar(root / "a.mar")
    (root / "dangling.mar").symlink_to(root / "gone")
    (root / "folder.mar").mkdir()
    for name in ("c.tar.gz", "d.TGZ", "e.model", "f.tar", "g.zip"):
        (root / name).write_bytes(b"")
    assert store.entries() == ["a.mar", "b.mar", "c.tar.gz", "d.TGZ", "e.model", "folder_model"]


def test_entries_of_a_missing_store_say_so(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"^Model store not found at: "):
        ModelStore(tmp_path / "absent", tmp_path).entries()


def test_an_archive_is_unpacked_into_a_private_folder_of_its_own(store: ModelStore, root: Path, tmp_path: Path) -> None:
    first, second = store.unpack(root / "b.mar"), store.unpack(root / "b.mar")
    assert first.model_dir != second.model_dir
    assert first.model_dir.parent == second.model_dir.parent == tmp_path / "work/models"
    assert first.temporary
    assert first.manifest.model_name == "m"
    assert first.config.batch_size == 2
    assert (first.model_dir / "model-config.yaml").read_text() == "batchSize: 2"
    for folder in (first.model_dir, first.model_dir.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_folder_model_is_used_where_it_is(store: ModelStore, root: Path, tmp_path: Path) -> None:
    unpacked = store.unpack(root / "folder_model")
    assert (unpacked.model_dir, unpacked.temporary) == (root / "folder_model", False)
    assert unpacked.config.batch_size == 4
    assert not (tmp_path / "work").exists()


def test_a_folder_without_a_manifest_needs_a_name(store: ModelStore, root: Path) -> None:
    with pytest.raises(InvalidModel, match="is missing"):
        store.unpack(store.locate("plain_folder"))
    assert store.unpack(store.locate("plain_folder"), "m").manifest == Manifest("m", missing=True)


def test_a_folder_with_nothing_but_the_models_folder_is_that_one(store: ModelStore, root: Path) -> None:
    (root / "outer").mkdir()
    (root / "folder_model").rename(root / "outer/inner")
    unpacked = store.unpack(store.locate("outer"))
    assert (unpacked.model_dir, unpacked.manifest.model_name) == (root / "outer/inner", "m")
    (root / "outer/more").write_text("")
    with pytest.raises(InvalidModel, match="is missing"):
        store.unpack(store.locate("outer"))


def test_a_folder_served_aside_is_made_of_copies_and_links_and_keeps_what_is_written_there_apart(
    store: ModelStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror, "COPIED_FILE_BYTES_MAX", 10)
    monkeypatch.setattr(mirror, "COPIED_BYTES_MAX", 1000)
    folder = root / "folder_model"
    (folder / "pack/__pycache__").mkdir(parents=True)
    (folder / "pack/a.py").write_text("a")
    (folder / "pack/a.py").chmod(0o755)
    (folder / "pack/weights").write_text("a lot of them")
    (folder / "elsewhere").symlink_to(tmp_path)
    (folder / ".git/objects").mkdir(parents=True)
    (folder / "gone").symlink_to(tmp_path / "gone")
    os.mkfifo(folder / "pipe")
    before = sorted(folder.rglob("*"))
    unpacked = store.unpack(store.locate("folder_model"), aside=True)
    assert (unpacked.temporary, unpacked.config.batch_size) == (True, 4)
    model_dir = unpacked.model_dir
    assert sorted(path.relative_to(model_dir).as_posix() for path in model_dir.rglob("*")) == [
        *(
            ".git",
            "MAR-INF",
            "MAR-INF/MANIFEST.json",
            "elsewhere",
            "gone",
            "model-config.yaml",
            "pack",
            "pack/a.py",
            "pack/weights",
        ),
        "pipe",
    ]
    assert (
        model_dir / ".git"
    ).is_symlink()  # nobody looks there for a new content, and it may hold any number of files
    assert (model_dir / "pack/weights").is_symlink()
    (model_dir / "pack/cache").write_text("the model's")
    (model_dir / "pack/a.py").write_text("the model's")
    assert (folder / "pack/a.py").read_text() == "a"
    assert os.access(model_dir / "pack/a.py", os.X_OK)
    monkeypatch.setattr(mirror, "COPIED_BYTES_MAX", 0)
    other = store.unpack(store.locate("folder_model"), aside=True)
    assert (other.model_dir / "pack/a.py").is_symlink()
    store.discard(unpacked)
    assert not model_dir.exists()
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("file", "name"),
    [("a-b.mar", "a_b"), ("a.b.tar.gz", "a_b"), ("x.TGZ", "x"), ("x.model", "x_model"), ("folder.v1", "folder_v1")],
)
def test_the_name_of_a_file_stands_in_for_a_name(file: str, name: str) -> None:
    assert fallback_name(Path("store", file)) == name


def test_a_config_that_the_manifest_does_not_name_is_not_read(store: ModelStore, root: Path) -> None:
    write_mar(root / "b.mar", '{"model": {"modelName": "m"}}')
    assert store.unpack(root / "b.mar").config == ModelConfig()


def test_a_name_is_given_to_a_model_without_one(store: ModelStore, root: Path) -> None:
    write_mar(root / "my-net v2.mar", '{"model": {}}')
    path = store.locate("my-net v2.mar")
    assert store.unpack(path, fallback_name(path)).manifest.model_name == "my_net_v2"
    with pytest.raises(InvalidModel, match="Model name is not defined"):
        store.unpack(path)


@pytest.mark.parametrize("manifest", ["{", '{"model": {"modelName": "m", "configFile": "MAR-INF/MANIFEST.json"'])
def test_a_model_that_cannot_be_read_leaves_no_folder(
    store: ModelStore, root: Path, tmp_path: Path, manifest: str
) -> None:
    write_mar(root / "b.mar", manifest)
    with pytest.raises(InvalidModel):
        store.unpack(root / "b.mar")
    assert list((tmp_path / "work/models").iterdir()) == []


def test_an_archive_that_cannot_be_unpacked_leaves_no_folder(store: ModelStore, root: Path, tmp_path: Path) -> None:
    (root / "b.mar").write_bytes(b"no zip")
    with pytest.raises(InvalidModel):
        store.unpack(root / "b.mar")
    assert list((tmp_path / "work/models").iterdir()) == []


def test_a_full_disk_is_our_fault_and_leaves_no_folder(
    store: ModelStore, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill_disk(_archive: Path, into: Path) -> None:
        (into / "half").write_text("written")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store_module, "extract", fill_disk)
    with pytest.raises(Internal) as caught:
        store.unpack(root / "b.mar")
    assert str(caught.value) == "Failed to save model: b.mar (No space left on device)"
    assert list((tmp_path / "work/models").iterdir()) == []


def test_discard_removes_what_unpack_made_and_may_be_repeated(store: ModelStore, root: Path) -> None:
    unpacked = store.unpack(root / "b.mar")
    store.discard(unpacked)
    assert not unpacked.model_dir.exists()
    store.discard(unpacked)


def test_discard_never_removes_a_folder_of_the_store(store: ModelStore, root: Path) -> None:
    store.discard(store.unpack(root / "folder_model"))
    store.discard(UnpackedModel(Manifest("m"), ModelConfig(), root / "folder_model", temporary=True))
    assert (root / "folder_model/MAR-INF/MANIFEST.json").is_file()


def test_the_repository_loads_no_framework() -> None:
    """The supervisor imports it; a framework there would cost every server start its seconds and memory."""
    code = "import sys, ringserve.server.repository.store; print(sorted({'torch', 'sanic'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"

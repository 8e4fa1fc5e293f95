"""Archives by URL on a real server: what is allowed arrives and predicts; anything else says why, in a bounded time, and leaves
nothing. The source is a web server of the test; the real `ringserve` asks it."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from ringserve.server.testing import ServerProcess, wait_until
from tests.server.repository.file_server import FileServer, answer, redirect

BYTES_MAX = 200_000


@pytest.fixture(scope="module")
def archive_bytes(archive: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[bytes]:
    """Of the model `far`, which tells what it was given."""
    yield archive(tmp_path_factory.mktemp("far") / "store", "far", "probe.py:handle").read_bytes()


@pytest.fixture(scope="module")
def source(archive_bytes: bytes) -> Iterator[FileServer]:
    with FileServer() as source:
        source.acts["/far.mar"] = answer(200, archive_bytes)
        yield source


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("remote")


@pytest.fixture(scope="module")
def options(folder: Path, source: FileServer) -> dict[str, object]:
    """Of the servers of this file: the source, any host on the port that http means, and the files of one folder."""
    allowed = (f"{source.url}/.*", "http://[a-z0-9.]+/.*", f"file://{folder}/files/.*")
    config = {
        "allowed_urls": ",".join(allowed),
        "max_model_download_bytes": BYTES_MAX,
        "model_download_timeout": 60,
        "default_workers_per_model": 1,
        "model_control_mode": "none",
    }
    return {"models": (), "config": config}


@pytest.fixture(scope="module")
def far_server(folder: Path, options: dict[str, object]) -> Iterator[ServerProcess]:
    (folder / "store").mkdir()
    (folder / "files").mkdir()
    server = ServerProcess(folder / "store", folder=folder / "server", **options)  # type: ignore[arg-type]
    with server:
        yield server
    assert server.remains() == []


@pytest.fixture(scope="module")
def api(far_server: ServerProcess) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=far_server.management_url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """After every test: an empty store, no model, nothing unpacked, no worker."""
    yield
    if "api" in request.fixturenames:
        folder, server = request.getfixturevalue("folder"), request.getfixturevalue("far_server")
        assert list((folder / "store").iterdir()) == []
        assert request.getfixturevalue("api").get("/models").json()["models"] == []
        assert list(server.tmp_dir.glob("ringserve-*/models/*")) == []
        assert server.workers() == []


def register(api: httpx.Client, url: str) -> httpx.Response:
    return api.post("/models", params={"url": url})


def failure(api: httpx.Client, url: str) -> str:
    """The cause that a failed download names."""
    refused = register(api, url)
    body = refused.json()
    assert (refused.status_code, body["code"], body["type"]) == (400, 400, "DownloadArchiveException")
    start = f"Failed to download archive from: {url} ("
    assert body["message"].startswith(start)
    return str(body["message"]).removeprefix(start).removesuffix(")")


def test_an_archive_by_url_is_served_and_goes_with_its_model(
    api: httpx.Client, far_server: ServerProcess, source: FileServer, folder: Path, archive_bytes: bytes
) -> None:
    url = f"{source.url}/far.mar?token=5ecret"
    made = register(api, url)
    assert (made.status_code, made.json()["status"]) == (
        200,
        'Model "far" Version: 1.0 registered with 1 initial workers',
    )
    assert (folder / "store/far.mar").read_bytes() == archive_bytes
    said = httpx.post(f"{far_server.inference_url}/predictions/far", content=b"x", trust_env=False)
    assert said.json()["model"] == "far"
    [described] = api.get("/models/far").json()
    assert described["modelUrl"] == f"{source.url}/far.mar?***"
    taken = register(api, url)
    assert (taken.status_code, taken.json()["message"]) == (500, "Model file already exists far.mar")
    assert api.delete("/models/far").status_code == 200
    assert "5ecret" not in far_server.log


def test_a_file_url_is_copied_and_only_the_copy_is_deleted(
    api: httpx.Client, folder: Path, archive_bytes: bytes
) -> None:
    original = folder / "files/far.mar"
    original.write_bytes(archive_bytes)
    assert register(api, f"file://{original}").status_code == 200
    assert api.delete("/models/far").status_code == 200
    assert original.exists()
    os.mkfifo(folder / "files/pipe.mar")
    assert failure(api, f"file://{folder}/files/pipe.mar") == "expected a regular file"


@pytest.mark.parametrize(
    "url",
    ["https://127.0.0.1/far.mar", "http://127.0.0.1:1/far.mar", "s3://bucket/far.mar", "file:///etc/far.mar"],
)
def test_a_url_that_is_not_listed_is_refused(api: httpx.Client, url: str) -> None:
    refused = register(api, url)
    assert refused.status_code == 404
    assert refused.json() == {
        "code": 404,
        "type": "ModelNotFoundException",
        "message": f"Given URL {url} does not match any allowed URL(s)",
    }


@pytest.mark.parametrize("host", ["169.254.169.254", "127.1", "2130706433", "10.0.0.1", "0"])
def test_a_wildcard_reaches_no_private_address(api: httpx.Client, host: str) -> None:
    refused = register(api, f"http://{host}/far.mar")
    assert refused.status_code == 404
    assert "does not match any allowed URL(s) (" in refused.json()["message"]


def test_redirects_reach_nothing_that_is_not_listed(api: httpx.Client, source: FileServer) -> None:
    url = f"{source.url}/away.mar"
    with FileServer() as other:
        source.acts["/away.mar"] = redirect(f"{other.url}/far.mar")
        assert failure(api, url) == f"redirected to {other.url}/far.mar, which does not match any allowed URL(s)"
        assert other.requests == []
    source.acts["/away.mar"] = redirect("http://169.254.169.254/latest/meta-data/far.mar")
    assert failure(api, url).startswith("redirected, and 169.254.169.254 is a link-local or metadata address")
    source.acts["/away.mar"] = redirect("file:///etc/passwd")
    assert "expected http or https" in failure(api, url)
    source.acts["/away.mar"] = redirect("/far.mar")
    assert register(api, url).status_code == 200
    assert api.delete("/models/far").status_code == 200


def test_what_is_no_archive_says_so_and_is_not_kept(api: httpx.Client, source: FileServer) -> None:
    source.acts["/text.mar"] = answer(200, b"<html>sign in</html>")
    refused = register(api, f"{source.url}/text.mar")
    assert (refused.status_code, refused.json()["type"]) == (400, "InvalidModelException")
    assert refused.json()["message"].startswith("Archive text.mar: expected a zip archive, got 20 bytes")


def test_a_handler_that_does_not_load_takes_its_download_along(
    api: httpx.Client, source: FileServer, archive: Callable[..., Path], tmp_path: Path
) -> None:
    made = archive(tmp_path / "store", "bad", "bad.py:handle", source="raise ValueError('no')\n")
    source.acts["/bad.mar"] = answer(200, made.read_bytes())
    assert register(api, f"{source.url}/bad.mar").status_code == 500


def test_a_source_that_fails_says_how(api: httpx.Client, source: FileServer, archive_bytes: bytes) -> None:
    url = f"{source.url}/gone.mar"
    assert failure(api, url) == "status 404 Not Found"
    source.acts["/gone.mar"] = answer(200, archive_bytes, length=len(archive_bytes) + 1)
    assert failure(api, url).startswith("peer closed connection without sending complete message body")
    source.acts["/gone.mar"] = answer(200, b"", length=BYTES_MAX + 1)
    assert failure(api, url) == "200,001 bytes, and max_model_download_bytes is 200,000"
    source.acts["/gone.mar"] = answer(200, bytes(BYTES_MAX + 1), length=None)
    assert failure(api, url).startswith("at least 200,001 bytes")


def test_a_refused_connection_says_so(api: httpx.Client) -> None:
    """From a name that is this machine's, on the port that http means, where nobody listens as a rule."""
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", 80)) == 0:
            pytest.skip("somebody listens on port 80")
    assert failure(api, "http://localhost/far.mar") == "connection refused"


def test_while_a_source_hangs_the_server_answers_and_the_name_is_taken(
    api: httpx.Client, far_server: ServerProcess, source: FileServer, folder: Path
) -> None:
    url = f"{source.url}/slow.mar"
    with ThreadPoolExecutor() as pool, FileServer() as slow:
        source.acts["/slow.mar"] = slow.hang(b"start")
        hanging = pool.submit(failure, api, url)
        wait_until(lambda: list((folder / "store").glob(".slow.mar.*.part")), 20, "a download under way")
        second = register(api, url)
        assert (second.status_code, second.json()["message"]) == (500, "Model file already exists slow.mar")
        assert register(api, f"{source.url}/far.mar").status_code == 200
        said = httpx.post(f"{far_server.inference_url}/predictions/far", content=b"x", trust_env=False)
        assert said.status_code == 200
        assert api.delete("/models/far").status_code == 200
        assert not hanging.done()
        slow.released.set()
        assert hanging.result(30).startswith("peer closed connection without sending complete message body")


def test_at_start_up_it_is_downloaded_once_and_nobody_waits_for_a_source_that_hangs(
    options: dict[str, object], source: FileServer, tmp_path: Path
) -> None:
    store = tmp_path / "store"
    store.mkdir()
    config: dict[str, object] = {**options["config"], "model_download_timeout": 1}  # type: ignore[dict-item]
    far, slow = f"{source.url}/far.mar", f"{source.url}/slow.mar?token=5ecret="
    source.acts["/slow.mar"] = source.hang(b"start")
    source.requests.clear()
    for models in ((far, slow), (f"near={far}",)):
        (store / f".old.mar.{'0' * 16}.part").write_bytes(b"left by a server that was killed")
        server = ServerProcess(store, models=models, config=config, folder=tmp_path / "server")
        with server:
            predict = f"{server.inference_url}/predictions/{'far' if slow in models else 'near'}"
            _wait_for_an_answer(predict)
            if slow in models:
                shown = f"{source.url}/slow.mar?***"
                cause = "not complete after model_download_timeout, 1 s"
                assert (
                    f"Failed to load model: {shown}: Failed to download archive from: {shown} ({cause})" in server.log
                )
            assert "5ecret" not in server.log
        assert [path.name for path in store.iterdir()] == ["far.mar"]
        assert server.remains() == []
    assert [path for path, _ in source.requests].count("/far.mar") == 1

    config["model_download_timeout"] = 600
    source.arrived.clear()
    server = ServerProcess(store, models=(slow,), config=config, folder=tmp_path / "server")
    server.launch()
    assert source.arrived.wait(30)
    os.kill(server.pid, signal.SIGTERM)
    assert server.wait(30) == 0, server.log
    assert [path.name for path in store.iterdir()] == ["far.mar"]
    assert server.remains() == []


def _wait_for_an_answer(url: str) -> None:
    wait_until(lambda: httpx.post(url, content=b"x", trust_env=False).status_code == 200, 30, "an answer")


def test_nothing_is_allowed_by_default(
    start_server: Callable[..., ServerProcess], source: FileServer, tmp_path: Path
) -> None:
    source.requests.clear()
    server = start_server(tmp_path / "store", models=(f"{source.url}/far.mar",))
    assert f"Given URL {source.url}/far.mar does not match any allowed URL(s)" in server.log
    refused = httpx.post(f"{server.management_url}/models", params={"url": f"{source.url}/far.mar"}, trust_env=False)
    assert refused.status_code == 404
    assert source.requests == []

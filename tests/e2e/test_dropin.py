"""Models are dropped into the folder of a running server, replaced and removed there: served, switched and gone."""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import httpx
import pytest

from ringserve.server.testing import FLAGS, ServerProcess, wait_until
from tests.e2e.asking import Asking

WAIT_S = 30.0
BUG_WORDS = ("a look at the model repository failed", "could not be", "was never retrieved", "Exception in callback")
SAYS = "def handle(data, context):\n    return None if data is None else [{word!r}] * len(data)\n"


class Site:
    """A server that watches `folder`, and the workshop where archives are made before they are dropped."""

    def __init__(self, server: ServerProcess, folder: Path, archive: Callable[..., Path]) -> None:
        self.server, self.folder = server, folder
        self.archive = archive
        self._workshop = folder.parent / "made"
        self._http = httpx.Client(timeout=WAIT_S, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def made(self, name: str, word: str, **options: Any) -> Path:
        return self.archive(self._workshop, name, "h.py:handle", source=SAYS.format(word=word), **options)

    def copy(self, target: str, made: Path) -> None:
        """As by `cp`, which ends a moment before the file counts as whole."""
        (self.folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(made, self.folder / target)

    def drop(self, target: str, name: str, word: str, **options: Any) -> None:
        """As by `mv` of a file that was made some time ago: it is whole at once."""
        made = self.made(name, word, **options)
        os.utime(made, (1, 1))
        (self.folder / target).parent.mkdir(parents=True, exist_ok=True)
        os.replace(made, self.folder / target)

    def says(self, path: str) -> str | int:
        """What a model answers, or the status of an error."""
        response = self._http.get(f"{self.server.inference_url}/predictions/{path}")
        return response.text if response.status_code == 200 else response.status_code

    def wait_for(self, path: str, word: str | int) -> None:
        wait_until(lambda: self.says(path) == word, WAIT_S, f"{word} from {path}\n{self.server.log}")

    def manage(self, method: str, path: str) -> httpx.Response:
        return self._http.request(method, f"{self.server.management_url}{path}")

    def files(self) -> dict[str, dict[str, Any]]:
        """What `ringserve status` knows of files that are not served."""
        return {row["file"]: row for row in self.manage("GET", "/status").json()["repository"]}

    def wait_for_state(self, file: str, state: str) -> dict[str, Any]:
        wait_until(
            lambda: self.files().get(file, {}).get("state") == state, WAIT_S, f"{file} {state}\n{self.server.log}"
        )
        return self.files()[file]

    def asking(self, model: str) -> Asking:
        return Asking(self.server.inference_url, model)

    def versions(self, model: str) -> dict[str, int]:
        described = self.manage("GET", f"/models/{model}/all").json()
        return {each["modelVersion"]: each["batchSize"] for each in described} if isinstance(described, list) else {}


def serve(folder: Path, archive: Callable[..., Path], *flags: str) -> Iterator[Site]:
    repository = folder / "repository"
    repository.mkdir()
    (repository / "README.md").write_text("models come here")
    config = {"default_workers_per_model": 1}
    server = ServerProcess(repository, models=(), config=config, flags=(*FLAGS, *flags), folder=folder / "server")
    site = Site(server, repository, archive)
    site.drop("early.mar", "early", "from the start")
    with server:
        yield site
        site.close()
    assert server.remains() == []
    assert [words for words in BUG_WORDS if words in server.log] == []


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]) -> Iterator[Site]:
    yield from serve(tmp_path_factory.mktemp("watched"), archive, "--model-control-mode", "watch")


def test_what_lies_there_at_the_start_is_served_as_soon_as_the_server_is(site: Site) -> None:
    assert site.says("early") == "from the start"
    described = site.manage("GET", "/models/early").json()[0]
    assert (described["modelUrl"], described["loadedAtStartup"]) == ("early.mar", True)


def test_a_file_is_served_switched_without_a_failed_request_and_gone(site: Site) -> None:
    site.copy("word.mar", site.made("word", "first"))
    site.wait_for("word", "first")
    described = site.manage("GET", "/models/word").json()[0]
    assert [each["state"] for each in described["repository"]] == ["served"]
    assert described["modelUrl"] == "word.mar"
    with site.asking("word") as asking:
        site.copy("word.mar", site.made("word", "second"))
        wait_until(lambda: asking.answers["second"] >= 5, WAIT_S, f"the second\n{site.server.log}")
        site.drop("word.mar", "word", "third", version="2.0")
        wait_until(lambda: asking.answers["third"] >= 5, WAIT_S, f"another version\n{site.server.log}")
    assert set(asking.answers) == {"first", "second", "third"}, asking.answers
    assert site.versions("word").keys() == {"2.0"}
    (site.folder / "word.mar").unlink()
    site.wait_for("word", 404)
    wait_until(lambda: "word.mar is not served any more" in site.server.log, WAIT_S, "unloaded")
    assert site.manage("GET", "/models/word").status_code == 404


def test_a_request_that_is_worked_on_is_answered_before_its_model_goes(site: Site, tmp_path: Path) -> None:
    made = site.archive(tmp_path / "store", "held", "gate.py:handle")
    site.copy("held.mar", made)
    with ThreadPoolExecutor(1) as pool:
        wait_until(lambda: site.manage("GET", "/models/held").status_code == 200, WAIT_S, "served")
        url = f"{site.server.inference_url}/predictions/held"
        asked = pool.submit(httpx.post, url, content=str(tmp_path), timeout=WAIT_S, trust_env=False)
        wait_until((tmp_path / "started").exists, WAIT_S, "the request is worked on")
        (site.folder / "held.mar").unlink()
        wait_until(lambda: site.manage("GET", "/models/held").status_code == 404, WAIT_S, "out of the routes")
        assert site.files()["held.mar"]["state"] == "unloading"
        (tmp_path / "open").touch()
        assert asked.result().text == "passed"
    wait_until(lambda: "held.mar" not in site.files(), WAIT_S, "gone")


def escaping(path: Path) -> None:
    with ZipFile(path, "w") as bundle:
        bundle.writestr("../../escaped.txt", "out")


def bomb(path: Path) -> None:
    with ZipFile(path, "w", compression=8) as bundle:
        bundle.writestr("MAR-INF/MANIFEST.json", "{}")
        with bundle.open("zeros", "w") as file:
            for _ in range(80):
                file.write(bytes(1 << 20))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "not an archive": (lambda path: path.write_bytes(b"no archive"), "expected a zip archive, got 10 bytes"),
    "escapes its folder": (escaping, "expected a plain path inside the model's folder"),
    "a bomb": (bomb, "expected"),
    "without a manifest": (lambda path: ZipFile(path, "w").close(), "MAR-INF/MANIFEST.json is missing"),
}


def test_a_broken_file_changes_nothing_and_says_why(site: Site, tmp_path: Path) -> None:
    site.drop("kept.mar", "kept", "first")
    site.wait_for("kept", "first")
    reasons = []
    with site.asking("kept") as asking:
        for what, (breaking, sentence) in BROKEN.items():
            made = tmp_path / "made.mar"
            breaking(made)
            os.utime(made, (1, 1))
            os.replace(made, site.folder / "kept.mar")

            def told(sentence: str = sentence) -> bool:
                row = site.files().get("kept.mar", {})
                return row.get("state") == "refused" and sentence in row["reason"] and row["reason"] not in reasons

            wait_until(told, WAIT_S, f"{what}\n{site.server.log}")
            reasons.append(site.files()["kept.mar"]["reason"])
            [row] = site.manage("GET", "/models/kept").json()[0]["repository"]
            assert (row["state"], row["model"], row["version"], row["reason"]) == (
                "refused",
                "kept",
                "1.0",
                reasons[-1],
            )
            assert (
                f"Failed to load model: kept.mar: {reasons[-1].partition(' What was')[0].rstrip('.')}"
                in site.server.log
            )
        data = site.made("kept", "second").read_bytes()
        (site.folder / "kept.mar").write_bytes(data[: len(data) // 2])
        wait_until(lambda: "still being copied, or cut off" in str(site.files()), WAIT_S, "a cut off file")
        assert site.files()["kept.mar"]["state"] == "incomplete"
        site.drop("kept.mar", "kept", "third")
        wait_until(lambda: asking.answers["third"] > 0, WAIT_S, "the mended file")
    assert set(asking.answers) == {"first", "third"}
    assert not list(site.server.folder.parent.rglob("escaped.txt"))


def test_a_model_that_does_not_load_leaves_the_one_before(site: Site) -> None:
    site.drop("loads.mar", "loads", "first")
    site.wait_for("loads", "first")
    source = "raise RuntimeError('no such weights')"
    made = site.archive(site.folder.parent / "made", "loads", "h.py:handle", source=source)
    site.copy("loads.mar", made)
    row = site.wait_for_state("loads.mar", "retrying")
    assert "no such weights" in row["reason"]
    assert site.says("loads") == "first"


def test_a_file_that_is_copied_slowly_is_not_touched_before_it_is_whole(site: Site) -> None:
    data = site.made("slow", "whole").read_bytes()
    with (site.folder / "slow.mar").open("wb") as file:
        for start in range(0, len(data), len(data) // 3 + 1):
            file.write(data[start : start + len(data) // 3 + 1])
            file.flush()
            if start + len(data) // 3 + 1 < len(data):
                site.wait_for_state("slow.mar", "incomplete")
                assert site.says("slow") == 404
    site.wait_for("slow", "whole")
    assert "Failed to load model: slow.mar" not in site.server.log


def test_a_folder_of_versions_is_served_as_its_configuration_says(site: Site, tmp_path: Path) -> None:
    for version in ("9.0", "10.0"):
        site.drop(f"many/{version}/any.mar", "ignored", f"many {version}")
    site.wait_for("many", "many 10.0")
    wait_until(lambda: site.versions("many") == {"10.0": 1}, WAIT_S, "the latest alone")
    (site.folder / "many/config.yaml").write_text('version_policy: all\ndefault_version: "9.0"\nbatchSize: 3\n')
    (site.folder / "many/10.0/config.yaml").write_text("batchSize: 5\n")
    wait_until(lambda: site.versions("many") == {"9.0": 3, "10.0": 5}, WAIT_S, f"both\n{site.server.log}")
    site.wait_for("many", "many 9.0")
    assert site.says("many/10.0") == "many 10.0"
    unpacked = tmp_path / "11.0"
    with ZipFile(site.made("ignored", "many 11.0")) as bundle:
        bundle.extractall(unpacked)
    shutil.copytree(unpacked, site.folder / "many/11.0")
    site.wait_for("many/11.0", "many 11.0")
    (site.folder / "many/config.yaml").write_text("version_policy: newest\n")
    assert "expected all" in site.wait_for_state("many/9.0/any.mar", "refused")["reason"]
    assert site.says("many") == "many 9.0"
    (site.folder / "many/config.yaml").unlink()
    wait_until(lambda: site.versions("many").keys() == {"11.0"}, WAIT_S, "the latest alone")
    shutil.rmtree(site.folder / "many")
    site.wait_for("many", 404)


def test_what_the_api_unregisters_stays_away_until_its_file_changes(site: Site) -> None:
    site.drop("sent.mar", "sent", "first")
    site.wait_for("sent", "first")
    assert site.manage("DELETE", "/models/sent").status_code == 200
    assert "unregistered by the management API" in site.files()["sent.mar"]["reason"]
    assert site.manage("GET", "/models/sent").status_code == 404
    site.drop("sent.mar", "sent", "again")
    site.wait_for("sent", "again")


def test_a_version_of_the_api_is_left_alone(site: Site) -> None:
    site.drop("own.mar", "own", "from the folder")
    site.wait_for("own", "from the folder")
    site.drop("other.mar", "own", "claims the same")
    assert "already registered" in site.wait_for_state("other.mar", "refused")["reason"]
    assert site.says("own") == "from the folder"


def test_who_registers_a_file_that_is_served_already_has_it_from_then_on(site: Site) -> None:
    site.drop("both.mar", "both", "one")
    site.wait_for("both", "one")
    register = "/models?url=/any/folder/both.mar&initial_workers=2&batch_size=4"
    with site.asking("both") as asking:
        wait_until(lambda: asking.answers["one"] > 5, WAIT_S, "asked")
        answer = site.manage("POST", register)
        assert (answer.status_code, "registered with 2 initial workers" in answer.text) == (200, True)
    assert set(asking.answers) == {"one"}
    [described] = site.manage("GET", "/models/both").json()
    assert (described["batchSize"], described["minWorkers"], described["loadedAtStartup"]) == (4, 2, False)
    assert site.manage("POST", register).status_code == 409
    site.drop("both.mar", "both", "two")
    site.drop("next.mar", "next", "dropped later")
    site.wait_for("next", "dropped later")
    [row] = site.manage("GET", "/models/both").json()[0]["repository"]
    assert (row["state"], "left to it" in row["reason"]) == ("served", True)
    assert site.says("both") == "one"


def test_without_reports_of_the_file_system_it_is_polled(
    tmp_path_factory: pytest.TempPathFactory, archive: Callable[..., Path]
) -> None:
    folder = tmp_path_factory.mktemp("polled")
    for site in serve(folder, archive, "--model-control-mode", "poll", "--repository-poll-s", "1"):
        assert site.says("early") == "from the start"
        with site.asking("early") as asking:
            site.drop("early.mar", "early", "switched")
            site.drop("many/1.0/m.mar", "many", "a version")
            site.wait_for("many", "a version")
            wait_until(lambda: asking.answers["switched"] > 0, WAIT_S, "switched")
        assert set(asking.answers) == {"from the start", "switched"}
        (site.folder / "early.mar").unlink()
        site.wait_for("early", 404)

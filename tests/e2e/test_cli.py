"""`ringserve start`, `stop`, `status` and `archive`, as people and scripts call them: words, exit codes, what is left."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ringserve.server.testing import COMMAND_S_MAX, ServerProcess, command, free_port, wait_until


class CommandLine:
    """Runs `ringserve` in a folder and with a TMPDIR of its own, on free ports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = folder / "store"
        self.store.mkdir()
        # Started and stopped by commands; used here to look for what they leave.
        self.watch = ServerProcess(self.store, folder=folder)
        self.watch.log_file = folder / "logs" / "ts_log.log"
        self.pid_file = self.watch.tmp_dir / ".model_server.pid"
        self.write_config({})

    def write_config(self, more: Mapping[str, object]) -> None:
        self.watch.config.update({"default_workers_per_model": 1, **more})
        self.watch.write_config()

    def run(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self.watch.run(*words)

    def start(self, *words: object) -> subprocess.CompletedProcess[str]:
        return self.run(*self.start_words, *words)

    def start_without_standard_streams(self) -> subprocess.CompletedProcess[bytes]:
        line = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", command(), *map(str, self.start_words)]
        return subprocess.run(line, env=self.watch.env, cwd=self.folder, timeout=COMMAND_S_MAX, check=False)

    @property
    def start_words(self) -> tuple[object, ...]:
        return ("start", "--model-store", self.store, "--ts-config", self.watch.config_file, "--ncs")

    @property
    def url(self) -> str:
        return self.watch.inference_url

    @property
    def management_url(self) -> str:
        return self.watch.management_url

    def pid(self) -> int:
        return int(self.pid_file.read_text())

    def models(self) -> list[str]:
        listed = httpx.get(f"{self.management_url}/models", trust_env=False).json()["models"]
        return [each["modelName"] for each in listed]


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[CommandLine]:
    """Whatever a test leaves running is killed; nothing may be left by then."""
    line = CommandLine(tmp_path)
    yield line
    assert line.watch.kill_all() == []
    assert line.watch.remains() == []


def failed(result: subprocess.CompletedProcess[str], code: int = 1) -> str:
    """What a command that could not do its work says; never a traceback."""
    assert result.returncode == code, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    return result.stderr


def test_the_life_of_a_server_in_the_background(cli: CommandLine, archive: Callable[..., Path]) -> None:
    archive(cli.store, "plain", "plain.py:handle")
    status = cli.run("status")
    assert (status.returncode, status.stdout) == (3, "RingServe is not currently running.\n")

    started = cli.start("--models", "all")
    assert started.returncode == 0, started.stderr
    assert f"pid {cli.pid()}" in started.stdout
    assert httpx.get(f"{cli.url}/predictions/plain", trust_env=False).text == "plain 1.0", "it listens by then"
    assert os.getsid(cli.pid()) == cli.pid(), "it outlives the terminal"

    status = cli.run("status")
    assert status.returncode == 0
    assert f"RingServe is running, pid {cli.pid()}" in status.stdout

    said = failed(cli.start("--models", "all"))
    expected = f"RingServe is already running (pid {cli.pid()}), please use ringserve stop to stop it.\n"
    assert said == expected
    assert failed(cli.start("--models", "all", "--foreground")).endswith(expected)
    assert httpx.get(f"{cli.url}/predictions/plain", trust_env=False).text == "plain 1.0"

    stopped = cli.run("stop")
    assert (stopped.returncode, stopped.stdout) == (0, "RingServe has stopped.\n")
    assert cli.watch.remains() == [], "stop returns when everything is gone"

    again = cli.run("stop")
    assert (again.returncode, again.stdout) == (0, "RingServe is not currently running.\n")
    assert cli.run("status").returncode == 3


def pid_of_the_dead() -> str:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return str(process.pid)


@pytest.mark.parametrize(
    "content",
    [pid_of_the_dead, lambda: str(os.getpid()), lambda: "garbage"],
    ids=["dead pid", "foreign pid", "garbage"],
)
def test_a_stale_pid_file_stops_nobody(cli: CommandLine, content: Callable[[], str]) -> None:
    cli.pid_file.write_text(content())
    result = cli.run("status")
    assert (result.returncode, result.stdout) == (3, "RingServe is not currently running.\n")
    assert ("Removing orphan pid file." in result.stderr) == (content() != str(os.getpid()))
    assert not cli.pid_file.exists()


def test_a_server_starts_over_a_stale_pid_file_and_again_at_once_on_the_same_ports(cli: CommandLine) -> None:
    cli.pid_file.write_text(pid_of_the_dead())
    assert cli.run("stop").returncode == 0
    cli.pid_file.write_text(pid_of_the_dead())
    for start in (cli.start, cli.start_without_standard_streams):
        assert start().returncode == 0
        assert psutil.pid_exists(cli.pid())
        assert httpx.get(f"{cli.url}/ping", trust_env=False).status_code == 200
        assert cli.models() == [], "none was named"
        assert cli.run("stop").returncode == 0


@pytest.mark.parametrize(
    ("key", "words"),
    [("inference_address", []), ("management_address", ["--foreground"])],
    ids=["background", "foreground"],
)
def test_a_port_in_use_is_named_and_nothing_starts(cli: CommandLine, key: str, words: list[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        cli.write_config({key: address})
        said = failed(cli.start(*words))
    assert f"{key}: {address} cannot be bound: Address already in use" in said
    assert cli.watch.remains() == []


def test_a_missing_model_store_is_named(cli: CommandLine) -> None:
    nowhere = cli.folder / "nowhere"
    said = failed(cli.run("start", "--model-store", nowhere))
    assert said == f"--model-store directory not found: {nowhere}\n"
    assert failed(cli.run("start")) == "Missing mandatory parameter --model-store\n"
    said = failed(cli.run("start", "--model-store", cli.store, "--ts-config", nowhere))
    assert said == f"--ts-config file not found: {nowhere}\n"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("job_queue_size=many", ["job_queue_size", "whole number", "'many'"]),
        ("model_store=$$NOT_SET_ANYWHERE$$", ["Invalid Environment Variable NOT_SET_ANYWHERE"]),
    ],
)
def test_a_bad_value_in_the_configuration_names_file_line_and_key(
    cli: CommandLine, line: str, words: Sequence[str]
) -> None:
    config = cli.folder / "bad.properties"
    config.write_text(f"# a comment\n\n{line}\n")
    said = failed(cli.run("start", "--model-store", cli.store, "--ts-config", config))
    assert said.startswith(f"{config}:3: {line.partition('=')[0]}: ")
    assert [word for word in words if word not in said] == []


def test_an_address_that_everybody_reaches_needs_a_word_about_tokens(cli: CommandLine) -> None:
    cli.write_config({"inference_address": f"http://0.0.0.0:{free_port()}"})
    said = failed(cli.start())
    assert "inference_address: expected a loopback address" in said
    assert "--insecure" in said


def test_an_unknown_key_is_warned_about_by_name_and_line(start_server: Any, tmp_path: Path) -> None:
    server = start_server(tmp_path / "store", config={"no_such_key": 1})
    line = 1 + next(
        index for index, text in enumerate(server.config_file.read_text().splitlines()) if "no_such" in text
    )
    assert f"WARNING ringserve {server.config_file}:{line}: no_such_key is not a setting" in server.log


@pytest.mark.parametrize(
    ("words", "models"),
    [
        (["--models", "all"], ["one", "two"]),
        (["--models", "renamed=one.mar", "two.mar"], ["renamed", "two"]),
        (["--models", "one.mar,b=two.mar"], ["b", "one"]),
    ],
    ids=" ".join,
)
def test_models_are_named_as_for_torchserve(
    cli: CommandLine, archive: Callable[..., Path], words: list[str], models: list[str]
) -> None:
    archive(cli.store, "one", "plain.py:handle")
    archive(cli.store, "two", "plain.py:handle")
    started = cli.start(*words)
    assert started.returncode == 0, started.stderr
    assert cli.models() == models
    for name in models:
        answer = httpx.get(f"{cli.url}/predictions/{name}", trust_env=False)
        assert answer.text == f"{name} 1.0"
    assert cli.run("stop").returncode == 0


def test_broken_archives_do_not_keep_the_others_from_starting(
    start_server: Any, archive: Callable[..., Path], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    archive(store, "good", "plain.py:handle")
    (store / "a-broken.mar").write_bytes(b"no archive")
    archive(store, "raising", "h.py:handle", source="raise OSError('no weights')\n")
    server: ServerProcess = start_server(store)
    assert httpx.get(f"{server.inference_url}/predictions/good", trust_env=False).text == "good 1.0"
    assert "Failed to load model: a-broken.mar: Archive a-broken.mar: expected a zip archive" in server.log, server.log
    server.wait_for_log("Failed to start workers for model raising version: 1.0. OSError: no weights", 20)
    listed = httpx.get(f"{server.management_url}/models", trust_env=False).json()["models"]
    assert [each["modelName"] for each in listed] == ["good", "raising"]
    ping = httpx.get(f"{server.inference_url}/ping", trust_env=False)
    assert (ping.status_code, ping.json(), ping.headers["connection"]) == (500, {"status": "Unhealthy"}, "close")


def test_what_archive_packs_is_served(cli: CommandLine) -> None:
    source = Path(__file__).parent / "handlers" / "plain.py"
    words = ["archive", "--model-name", "packed", "-v", "3.1", "--handler", f"{source}:handle"]
    packed = cli.run(*words, "--export-path", cli.store)
    assert packed.returncode == 0, packed.stderr
    assert packed.stdout == f"{cli.store / 'packed.mar'}\n"
    assert cli.start("--models", "packed.mar").returncode == 0
    assert httpx.get(f"{cli.url}/predictions/packed/3.1", trust_env=False).text == "packed 3.1"
    assert cli.run("stop").returncode == 0
    assert "already exists" in failed(cli.run(*words, "--export-path", cli.store))


def test_a_second_server_with_another_tmpdir_runs_beside_the_first(
    start_server: Any, archive: Callable[..., Path], tmp_path: Path
) -> None:
    archive(tmp_path / "store", "plain", "plain.py:handle")
    servers = [start_server(tmp_path / "store") for _ in range(2)]
    for server in servers:
        assert httpx.get(f"{server.inference_url}/predictions/plain", trust_env=False).text == "plain 1.0"
    assert servers[0].stop() == 0
    assert httpx.get(f"{servers[1].inference_url}/predictions/plain", trust_env=False).text == "plain 1.0"


def test_of_two_servers_started_at_once_one_runs(cli: CommandLine) -> None:
    words = ["start", "--foreground", "--model-store", cli.store, "--ts-config", cli.watch.config_file]
    started = [
        subprocess.Popen([command(), *map(str, words)], env=cli.watch.env, stderr=subprocess.PIPE) for _ in range(2)
    ]
    try:
        wait_until(lambda: any(each.poll() is not None for each in started), 20, "one gives up")
        (loser,) = [each for each in started if each.poll() is not None]
        (winner,) = [each for each in started if each.poll() is None]
        assert loser.returncode == 1
        assert loser.stderr is not None
        assert f"RingServe is already running (pid {winner.pid})".encode() in loser.stderr.read()
        wait_until(lambda: answers(f"{cli.url}/ping"), 20, "the other serves")
        assert cli.run("stop").returncode == 0
    finally:
        for each in started:
            each.kill()
            each.communicate()


def answers(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_the_version_is_told(cli: CommandLine) -> None:
    result = cli.run("--version")
    assert result.returncode == 0
    assert result.stdout.startswith("RingServe, version ")


def test_torchserves_own_command_line_does_and_says_what_torchserves_does(
    cli: CommandLine, archive: Callable[..., Path]
) -> None:
    """By a link of its name; what is logged goes where the command's output goes, as scripts expect."""
    archive(cli.store, "plain", "plain.py:handle")
    link, output = cli.folder / "torchserve", cli.folder / "output"
    link.symlink_to(command())
    temp = cli.folder / "temp"
    temp.mkdir()
    environ = {**cli.watch.env, "TEMP": str(temp)}
    options: dict[str, Any] = {"env": environ, "cwd": cli.folder, "timeout": COMMAND_S_MAX}

    def torchserve(*words: object) -> tuple[int, str]:
        with output.open("wb") as file:
            ended = subprocess.run([link, *map(str, words)], stdout=file, stderr=file, check=False, **options)
        return ended.returncode, output.read_text()

    start = ("--model-store", cli.store, "--models", "plain.mar", "--ts-config", cli.watch.config_file, "--ncs")
    assert torchserve("-v") == (0, "TorchServe Version is 0.12.0\n")
    cli.pid_file.write_text("7777777")
    code, said = torchserve("--start", *start, "--ppath", "plugins")
    assert code == 0
    assert said.startswith("Removing orphan pid file.\n")
    markers = ["Inference API bind to: http://", "Management API bind to: http://", "\nModel server started.\n"]
    assert [marker for marker in markers if marker not in said] == []
    assert "--plugins-path has no effect" in said
    banner = [
        "Torchserve version: 0.12.0 ",
        f"Model Store: {cli.store}",
        "Initial Models: plain.mar",
        "Number of GPUs: ",
    ]
    assert [line for line in banner if f"\n{line}" not in said] == []
    assert httpx.get(f"{cli.url}/predictions/plain", trust_env=False).text == "plain 1.0"
    assert [path.name.partition("-")[0] for path in temp.iterdir()] == ["ringserve"], "it works there"
    assert "plain  1.0 *" in cli.run("status").stdout, "which nobody needs to know who looks for it"
    with output.open("rb") as log:  # the server's; the commands below have a file of their own
        output.unlink()
        again = "TorchServe is already running, please use torchserve --stop to stop TorchServe.\n"
        assert torchserve(*start) == (1, again)
        assert torchserve("--stop") == (0, "TorchServe has stopped.\n")
        assert log.read().endswith(b"Torchserve stopped.\n")
    assert (cli.watch.remains(), list(temp.iterdir())) == ([], [])


def test_wrong_usage_is_exit_code_2(cli: CommandLine) -> None:
    for words in (["start", "--no-such-flag"], ["start", "x.mar"], ["no-such-command"]):
        result = cli.run(*words)
        assert result.returncode == 2
        assert "Usage:" in result.stderr


def test_a_background_start_that_fails_late_says_why_and_leaves_nothing(cli: CommandLine) -> None:
    cli.write_config({"management_address": cli.url.replace("127.0.0.1", "127.0.0.2"), "inference_address": cli.url})
    with socket.create_server(("127.0.0.2", int(cli.url.rpartition(":")[2]))):
        said = failed(cli.start())
    assert "management_address: " in said
    assert "cannot be bound: Address already in use" in said
    wait_until(lambda: cli.watch.processes() == [], 5, "no process")

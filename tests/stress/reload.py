"""A model is replaced every few seconds while clients ask it and another one: what do they notice?

    python tests/stress/reload.py [--seconds 300] [--every 5] [--rate 200] [--torch]

Both models are asked at a fixed rate, and every answer's time counts from when its request was due. Times with reloads alternate with
times without, so that both see the same machine. Prints the failed requests and the 99th percentile of the model that nobody
replaces, with reloads and without; ends with 1 when a request failed or the ratio of the two is above 1.25. With `--torch` the
replaced model imports torch, as most do.
"""

import argparse
import asyncio
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import msgspec
import uvloop

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run by its path, a script does not find the folders of the tree

from ringserve.server.testing import ServerProcess
from ringserve.tools.archiver import ArchiveRequest, write_archive

RATIO_MAX = 1.25
WINDOW_RELOADS = 2
CONNECTIONS = 8  # of each model
ANSWER_S_MAX = 30.0
WARM_UP_S = 3.0
HANDLER = """
{imports}
def handle(data, context):
    return None if data is None else [bytes(row["body"]) for row in data]
"""
QUIET, RELOADING, NEITHER = "without reloads", "with reloads", "between"


class Options(msgspec.Struct, frozen=True):
    seconds: float = 300.0
    every: float = 5.0
    rate: float = 200.0
    torch: bool = False


class Tally:
    """What one model's clients saw."""

    def __init__(self) -> None:
        self.sent = 0
        self.failures: Counter[str] = Counter()
        self.times_ms: dict[str, list[float]] = {QUIET: [], RELOADING: [], NEITHER: []}

    def p99_ms(self, window: str) -> float:
        return statistics.quantiles(self.times_ms[window], n=100)[98]


class Clients:
    """Ask at a fixed rate, whatever the answers do. `window` says what is going on just now."""

    def __init__(self, url: str, model: str, rate: float) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._address = (host, int(port))
        self._head = f"POST /predictions/{model} HTTP/1.1\r\nhost: test\r\ncontent-type: application/octet-stream\r\n"
        self._pause_s = CONNECTIONS / rate
        self.tally = Tally()
        self.window = NEITHER
        self._tasks = [asyncio.ensure_future(self._ask(number)) for number in range(CONNECTIONS)]

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask(self, number: int) -> None:
        tally = self.tally
        reader, writer = await asyncio.open_connection(*self._address)
        due_s = time.perf_counter() + self._pause_s * number / CONNECTIONS
        while True:
            due_s += self._pause_s
            await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
            tally.sent += 1
            body = f"{number} {tally.sent}".encode()
            window = self.window
            writer.write(f"{self._head}content-length: {len(body)}\r\n\r\n".encode() + body)
            try:
                async with asyncio.timeout(ANSWER_S_MAX):
                    answer = await _answer(reader)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                tally.failures[repr(error)] += 1
                writer.close()
                reader, writer = await asyncio.open_connection(*self._address)
                continue
            if answer != body:
                tally.failures[answer[:200].decode(errors="replace")] += 1
            # An answer belongs to a time when it began and ended in it.
            tally.times_ms[window if window == self.window else NEITHER].append((time.perf_counter() - due_s) * 1000)


async def _answer(reader: asyncio.StreamReader) -> bytes:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    return await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))


def make_models(store: Path, *, torch: bool) -> None:
    for name, imports in (("replaced", "import torch" if torch else ""), ("other", "")):
        (store.parent / "handler.py").write_text(HANDLER.format(imports=imports))
        write_archive(
            ArchiveRequest(
                model_name=name, version="1.0", handler=f"{store.parent / 'handler.py'}:handle", export_path=store
            )
        )


async def reload(store: Path, server: ServerProcess) -> None:
    """Replace the model, and wait until the new one is served."""
    done = server.log.count("replaced.mar is model")
    made = store / ".made"
    shutil.copyfile(store / "replaced.mar", made)
    os.replace(made, store / "replaced.mar")
    while server.log.count("replaced.mar is model") == done:
        await asyncio.sleep(0.05)


async def measure(options: Options, server: ServerProcess, store: Path) -> tuple[int, Tally, Tally]:
    """Reloads, and what the clients of both models saw."""
    loop, reloads = asyncio.get_running_loop(), 0
    replaced, other = (Clients(server.inference_url, name, options.rate) for name in ("replaced", "other"))
    await asyncio.sleep(WARM_UP_S)
    end_s = loop.time() + options.seconds
    while loop.time() < end_s:
        other.window = RELOADING
        for _ in range(WINDOW_RELOADS):
            next_s = loop.time() + options.every
            await reload(store, server)
            reloads += 1
            await asyncio.sleep(max(0.0, next_s - loop.time()))
        other.window = NEITHER
        await asyncio.sleep(1)
        other.window = QUIET
        await asyncio.sleep(options.every * WINDOW_RELOADS)
        other.window = NEITHER
        print(f"{reloads} reloads, {replaced.tally.failures.total() + other.tally.failures.total()} failed", flush=True)
    await replaced.stop()
    await other.stop()
    return reloads, replaced.tally, other.tally


def run(options: Options) -> int:
    folder = Path(tempfile.mkdtemp(prefix="ringserve-reload-"))
    store = folder / "store"
    store.mkdir()
    make_models(store, torch=options.torch)
    server = ServerProcess(
        store,
        models=(),
        config={"default_workers_per_model": 1, "model_control_mode": "watch"},
        folder=folder / "server",
    )
    try:
        with server:
            reloads, replaced, other = uvloop.run(measure(options, server, store))
        remains = server.remains()
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)
    failures = replaced.failures + other.failures
    quiet, busy = other.p99_ms(QUIET), other.p99_ms(RELOADING)
    print(f"{replaced.sent + other.sent:,} requests, {reloads} reloads, {failures.total()} failed requests")
    for text, count in failures.most_common(8):
        print(f"  {count} x {text}")
    for remain in remains:
        print(f"  left behind: {remain}")
    print(
        f"99th percentile of the other model: {quiet:.2f} ms {QUIET}, {busy:.2f} ms {RELOADING}: {busy / quiet:.2f} x"
    )
    return int(failures.total() > 0 or remains != [] or busy > RATIO_MAX * quiet)


def main(arguments: Sequence[str] | None = None) -> int:
    default = Options()
    parser = argparse.ArgumentParser(description="Reload a model under load.")
    parser.add_argument("--seconds", type=float, default=default.seconds)
    parser.add_argument("--every", type=float, default=default.every, help="seconds from one reload to the next")
    parser.add_argument("--rate", type=float, default=default.rate, help="requests a second, of each model")
    parser.add_argument("--torch", action="store_true", help="the replaced model imports torch")
    return run(Options(**vars(parser.parse_args(arguments))))


if __name__ == "__main__":
    sys.exit(main())

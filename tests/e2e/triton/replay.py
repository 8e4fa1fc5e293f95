"""Hold the conversation with our server, or with one that runs already:

    python tests/e2e/triton/replay.py RECORDED            # starts the server on the repository
    python tests/e2e/triton/replay.py RECORDED HTTP GRPC  # asks the one at these ports

and print what differs, chapter by chapter.
"""

import gzip
import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

import httpx

from ringserve.server.testing import FLAGS, ServerProcess, wait_until
from tests.e2e.triton.repository import REPOSITORY, write_repository
from tests.e2e.triton.steps_control import KEY, KEY_BYTES
from tests.e2e.triton.talk import Talk, client_region
from tests.e2e.triton.verdicts import Verdict, judged

READY_S_MAX = 60.0


def read(path: Path) -> list[dict[str, Any]]:
    """The recorded lines: `chapter`, `step`, `said`."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def server_of(folder: Path, **more: Any) -> ServerProcess:
    """Our server on the models of the conversation, loaded by name as Triton loads them."""
    write_repository(folder / "repository")
    named = [word for name in REPOSITORY for word in ("--load-model", name)]
    config = {"model_control_mode": "explicit", "allow_client_shm": "true", "job_queue_size": "1000", **more}
    flags = (*FLAGS, *named)
    return ServerProcess(
        folder / "repository", models=(), config=config, flags=flags, folder=folder / "server", grpc=True
    )


def ready_ports(server: ServerProcess) -> tuple[int, int]:
    """Its HTTP and gRPC ports, once every model is loaded."""
    url = f"{server.inference_url}/v2/health/ready"
    wait_until(lambda: httpx.get(url).status_code == 200, READY_S_MAX, "every model to be loaded")
    http, rpc = (int(each.rpartition(":")[2]) for each in (server.inference_url, server.grpc_address))
    return http, rpc


def held(lines: list[dict[str, Any]], talk: Talk) -> Iterator[tuple[str, dict[str, Any], Verdict, str]]:
    """(chapter, recorded line, verdict, what differs), step by step."""
    own = f"{KEY}_{os.getpid()}"  # others may hold the same conversation on this machine
    with client_region(own, KEY_BYTES):
        for line in json.loads(json.dumps(lines).replace(KEY, own)):
            verdict, why = judged(line["said"], talk.take(line["step"]))
            yield line["chapter"], line, verdict, why


def show(lines: list[dict[str, Any]], http_port: int, grpc_port: int) -> None:
    counts: Counter[tuple[str, Verdict]] = Counter()
    talk = Talk(http_port, grpc_port)
    for chapter, line, verdict, why in held(lines, talk):
        counts[chapter, verdict] += 1
        if verdict in (Verdict.OTHER, Verdict.WORDS) or (verdict is Verdict.DIED and why):
            step = {key: each for key, each in line["step"].items() if key != "headers"}
            print(
                f"{chapter} {sum(counts[chapter, each] for each in Verdict)} {verdict.name}: {str(step)[:260]}\n    {why[:500]}"
            )
    talk.close()
    for chapter in dict.fromkeys(line["chapter"] for line in lines):
        print(f"{chapter:24}", *(f"{each.name} {counts[chapter, each]:4}" for each in Verdict))
    total = sum(counts.values())
    for each in Verdict:
        count = sum(number for (_, verdict), number in counts.items() if verdict is each)
        print(f"{each.name}: {count} of {total}, {count / total:.1%}")


def main(file: str, *ports: str) -> None:
    lines = read(Path(file))
    if ports:
        show(lines, int(ports[0]), int(ports[1]))
        return
    with tempfile.TemporaryDirectory() as folder, server_of(Path(folder)) as server:
        show(lines, *ready_ports(server))


if __name__ == "__main__":
    main(*sys.argv[1:])

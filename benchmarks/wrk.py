"""The same load by `wrk`, where it is installed: the fastest loader there is, and the one others publish figures of.

`wrk` looks at the status of an answer and not at its body; `bench.py` compares answers before and after each run.
"""

import json
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from benchmarks.loader import Job, Load

NAME = "wrk"
MARK = "load: "  # our line among those of wrk
SPARE_S = 30.0

# `done` runs once, after the load: unlike a `response` function it costs the measurement nothing. Times are in µs.
SCRIPT = """
local file = io.open({body}, "rb")
wrk.method, wrk.body = "POST", file:read("*a")
file:close()
{headers}
function done(summary, latency, requests)
  local failed = summary.errors
  io.write(string.format(
    '{mark}{{"requests": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "bad_status": %d, "lost": %d}}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    failed.status, failed.connect + failed.read + failed.write + failed.timeout))
end
"""


def is_installed() -> bool:
    return shutil.which(NAME) is not None


def write_script(sent: bytes, headers: Mapping[str, str], directory: Path) -> Path:
    """The Lua file of a load. All connections send the same body: choosing one in Lua would slow `wrk` down."""
    body, script = directory / "body.bin", directory / "wrk.lua"
    body.write_bytes(sent)
    lines = [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items()]
    script.write_text(SCRIPT.format(body=json.dumps(str(body)), headers="\n".join(lines), mark=MARK))
    return script


def command(url: str, connections: int, seconds: float, script: Path) -> list[str]:
    # One thread: the contestants share these CPUs, and more of ours would be fewer of theirs.
    return [NAME, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(script), url]


def parse(output: str) -> Load:
    """The figures of one run. Raises ValueError when `wrk` did not come to its end."""
    lines = [line for line in output.splitlines() if line.startswith(MARK)]
    if len(lines) != 1:
        raise ValueError(f"wrk printed no figures:\n{output}")
    figures: dict[str, int] = json.loads(lines[0].removeprefix(MARK))
    answered = figures["requests"] - figures["bad_status"]  # wrk counts a refusal as a request
    return Load(
        requests=answered,
        rps=answered * 1e6 / figures["duration_us"],
        p50_ms=figures["p50_us"] / 1000,
        p99_ms=figures["p99_us"] / 1000,
        errors=figures["bad_status"] + figures["lost"],
    )


def run_on(
    url: str, body: bytes, headers: Mapping[str, str], connections: int, seconds: float, directory: Path
) -> Load:
    """One load, in a directory of its own for the files that `wrk` reads."""
    script = write_script(body, headers, directory)
    done = subprocess.run(
        command(url, connections, seconds, script),
        capture_output=True,
        text=True,
        check=True,
        timeout=seconds + SPARE_S,
    )
    return parse(done.stdout)


def run(job: Job, directory: Path) -> Load:
    """The same load that the bundled loader would make."""
    url = f"http://{job.host}:{job.port}{job.path}"
    headers = {"Content-Type": "application/octet-stream"}
    return run_on(url, job.bodies[0], headers, job.connections, job.seconds, directory)

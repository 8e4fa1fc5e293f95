"""Starts a server with a model of each datatype and has KServe's client ask it, in an environment of its own: the package weighs
450 MB with what it brings along, and wants other versions than ours.

python -P tests/e2e/kserve/run.py PYTHON      (one that has the package `kserve`)
"""

import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from ringserve.server.testing import ServerProcess, wait_until
from ringserve.tools.archiver import ArchiveRequest, write_archive

CHECK = Path(__file__).with_name("check.py")
READY_S_MAX = 60.0
CHECK_S_MAX = 120.0
DTYPES = {
    **{name: name.lower() for name in ("INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64")},
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BOOL": "bool",
    "BYTES": "bytes",
}
CONFIG = """
backend: python
batchSize: 4
inputs:
  - {{name: x, dtype: {0}, shape: [-1]}}
outputs:
  - {{name: y, dtype: {0}, shape: [-1]}}
"""
SOURCE = """
class Mirror:
    def predict(self, inputs):
        return {"y": inputs["x"]}
"""


def write_store(store: Path, workshop: Path) -> None:
    """A model for each datatype, named like it."""
    handler = workshop / "mirror.py"
    handler.write_text(SOURCE)
    for name, dtype in DTYPES.items():
        config = workshop / f"{name}.yaml"
        config.write_text(CONFIG.format(dtype))
        write_archive(
            ArchiveRequest(model_name=name, version="1", handler=str(handler), config_file=config, export_path=store)
        )


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=READY_S_MAX):
            return True
    except urllib.error.HTTPError:
        return False


def main(python: str) -> int:
    with tempfile.TemporaryDirectory(prefix="ringserve-kserve-") as folder:
        store = Path(folder) / "store"
        store.mkdir()
        write_store(store, Path(folder))
        config = {"default_workers_per_model": 1}
        with ServerProcess(store, config=config, grpc=True) as server:
            for name in DTYPES:
                ready = f"{server.inference_url}/v2/models/{name}/ready"
                wait_until(lambda url=ready: answers(url), READY_S_MAX, ready)  # type: ignore[misc]
            start_s = time.monotonic()
            command = [python, "-P", str(CHECK), server.inference_url, server.grpc_address, *DTYPES]
            status = subprocess.run(command, check=False, timeout=CHECK_S_MAX).returncode
            print(f"{time.monotonic() - start_s:.1f} s")
        assert server.remains() == []
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

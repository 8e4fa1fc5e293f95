"""Hold the conversation with a TorchServe and write down what it says:

    python tests/e2e/torchserve_grpc/record.py COMMAND FILE

COMMAND is its `torchserve`.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from ringserve.server.testing import free_port
from tests.e2e.inference.record import torchserve
from tests.e2e.torchserve_grpc.steps import CHAPTERS, SCENES
from tests.e2e.torchserve_grpc.talk import Talk


def main(command: str, file: str) -> None:
    lines = []
    for scene in SCENES:
        ports = {f"grpc_{name}_port": str(free_port()) for name in ("inference", "management")}
        asked = replace(scene, config={**scene.config, **ports})
        with tempfile.TemporaryDirectory() as folder, torchserve(Path(command), asked, Path(folder)):
            talk = Talk(*(f"127.0.0.1:{port}" for port in ports.values()))
            for chapter, steps in CHAPTERS[scene.name].items():
                for step in steps():
                    lines.append({"chapter": chapter, "step": step, "said": talk.take(step)})
                    print(chapter, json.dumps(lines[-1])[:300], flush=True)
            talk.close()
    Path(file).write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


if __name__ == "__main__":
    main(*sys.argv[1:])

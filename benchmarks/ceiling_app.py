"""Ceiling 1: Sanic answering without a model. The body is received, the answer is a constant.

python benchmarks/ceiling_app.py PORT ANSWER_FILE
"""

import sys
from pathlib import Path

from sanic import HTTPResponse, Request, Sanic

app = Sanic("ceiling", configure_logging=False)
app.config.ACCESS_LOG = False
answer = b""


@app.post("/predict")
async def predict(request: Request) -> HTTPResponse:
    assert request.body
    return HTTPResponse(answer, content_type="application/json")


if __name__ == "__main__":
    answer = Path(sys.argv[2]).read_bytes()
    app.run(host="127.0.0.1", port=int(sys.argv[1]), single_process=True, access_log=False, motd=False)

"""The programmatic launcher, as far as no server starts: what a program is given that reads too little, or asks nobody."""

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from ringserve.server.launcher import LINES_MAX, Response, _Lines, register_model, register_model_with_params
from ringserve.server.testing import free_port


def test_importing_it_imports_nothing_of_the_server() -> None:
    script = (
        "import sys, ringserve.server.launcher\n"
        "ours = {name for name in sys.modules if name.startswith('ringserve.')}\n"
        "assert ours == {'ringserve.server', 'ringserve.server.launcher'}, ours\n"
        "assert not {'sanic', 'uvloop', 'msgspec', 'psutil'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-P", "-c", script], check=True, timeout=60)


def test_lines_that_nobody_reads_are_kept_up_to_a_number_and_the_rest_is_counted() -> None:
    lines = _Lines()
    for number in range(LINES_MAX + 20):
        lines.put(f"{number}\n")
    lines.put(None)
    assert lines.get() == "(21 lines are left out here: nobody read them)\n"
    assert [lines.get() for _ in range(LINES_MAX)] == [f"{each}\n" for each in range(21, LINES_MAX + 20)] + [None]
    assert lines.empty()
    lines.put("on\n")
    assert lines.get() == "on\n", "once is enough"


class _Management(BaseHTTPRequestHandler):
    """Answers with what it was asked."""

    def do_POST(self) -> None:
        body = f'{{"asked": "{self.path}"}}'.encode()
        self.send_response(404 if "none" in self.path else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def management() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), _Management) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_model_is_registered_as_torchserves_launcher_does(management: str) -> None:
    response = register_model("one", "http://host/a b.mar?x=1&y=2", management_address=management)
    assert (response.status_code, response.ok) == (200, True)
    query = "model_name=one&url=http%3A%2F%2Fhost%2Fa+b.mar%3Fx%3D1%26y%3D2&initial_workers=1&synchronous=true"
    assert response.json() == {"asked": f"/models?{query}"}
    assert response.headers["content-length"] == str(len(response.text))


@pytest.mark.parametrize("params", [{"url": "none", "batch_size": 4}, (("url", "none"), ("batch_size", 4))], ids=type)
def test_parameters_come_as_they_are_in_a_mapping_or_in_pairs(management: str, params: dict[str, object]) -> None:
    response = register_model_with_params(params, management_address=management)
    assert (response.status_code, response.ok) == (404, False)
    assert response.json() == {"asked": "/models?url=none&batch_size=4"}


def test_nobody_to_ask_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="refused"):
        register_model("one", "one.mar", management_address=f"http://127.0.0.1:{free_port()}")


def test_an_answer_that_is_no_json_says_so() -> None:
    with pytest.raises(ValueError, match="Expecting value"):
        Response(200, {}, b"OK").json()

"""A small web server in a thread, whose every answer a test decides: files, redirects, and all that goes wrong."""

import contextlib
import ssl
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self

Act = Callable[[BaseHTTPRequestHandler], None]
PATIENCE_S_MAX = 60.0


class FileServer:
    """`acts` maps a path, without its query, to what is done; anything else is 404. `requests` are the paths asked for with
    their headers. What `hang` does ends with the `with`."""

    def __init__(self, certificate: Path | None = None) -> None:
        self.acts: dict[str, Act] = {}
        self.requests: list[tuple[str, Mapping[str, str]]] = []
        self.released = threading.Event()
        self.arrived = threading.Event()  # at what hangs
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append((self.path, dict(self.headers)))
                act = outer.acts.get(self.path.partition("?")[0], answer(404))
                with contextlib.suppress(ConnectionError):
                    act(self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that hang up are what many tests are about

        self._server = Server(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = int(self._server.server_address[1])
        self.url = f"{'http' if certificate is None else 'https'}://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *raised: object) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()

    def hang(self, start: bytes = b"", promised_bytes: int = 1000) -> Act:
        """Answer, send `start` of what was promised, and nothing more."""

        def act(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("Content-Length", str(promised_bytes))
            handler.end_headers()
            handler.wfile.write(start)
            handler.wfile.flush()
            self.arrived.set()
            self.released.wait(PATIENCE_S_MAX)

        return act


def answer(status: int, body: bytes = b"", *, length: int | None = -1, **headers: str) -> Act:
    """`length` is what Content-Length says: the truth by default, None for no such header."""

    def act(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        if length is not None:
            handler.send_header("Content-Length", str(len(body) if length < 0 else length))
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    return act


def redirect(location: str, status: int = 302) -> Act:
    return answer(status, Location=location)

"""Entry point: `python -m orchestration.view runs/NAME`: the groups a run keeps, in the browser, also while it runs.

The page is served to this machine alone.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from functools import partial
from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from configs.shown import one_line, safe
from orchestration import rollouts_page
from orchestration.exits import BAD_INPUT, FAILED, fail
from orchestration.page import page
from orchestration.rollouts import Rollouts, RolloutsError

HOST = "127.0.0.1"
PORT = 8266
_IDLE_S = 30.0  # a connection that says nothing is closed


def main(argv: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(argv)
    try:
        rollouts = Rollouts(arguments.run.expanduser().resolve())
    except (RolloutsError, OSError) as error:
        return fail(error, BAD_INPUT)
    try:
        server = serving(rollouts, arguments.port)
    except OSError as error:
        return fail(f"--port {arguments.port}: {error.strerror}: choose another one, or 0 for any", FAILED)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(f"{rollouts.run.name}: http://{HOST}:{server.server_port}  (Ctrl-C ends it)", flush=True)
    with server:
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def serving(rollouts: Rollouts, port: int) -> ThreadingHTTPServer:
    """The server, listening. Raises OSError where the port is taken."""
    return ThreadingHTTPServer((HOST, port), partial(Handler, rollouts))


class Handler(BaseHTTPRequestHandler):
    """`/`: the page; `/rollouts`: the names of the samples; `/rollouts/NAME`: one of them."""

    timeout = _IDLE_S

    def __init__(self, rollouts: Rollouts, *arguments: Any) -> None:
        self._rollouts = rollouts
        super().__init__(*arguments)

    def do_GET(self) -> None:
        # A page elsewhere whose name is made to lead here must not read the samples.
        if (self.headers.get("Host") or "").rsplit(":", 1)[0] not in (HOST, "localhost"):
            self._answer(HTTPStatus.FORBIDDEN, {"error": f"ask for http://{HOST}"})
            return
        path = unquote(urlsplit(self.path).path)
        try:
            if path == "/":
                self._send(HTTPStatus.OK, "text/html; charset=utf-8", self._page())
            elif path == "/rollouts":
                self._answer(HTTPStatus.OK, {"files": self._rollouts.files()})
            elif path.startswith("/rollouts/"):
                self._answer(HTTPStatus.OK, self._rollouts.read(path.removeprefix("/rollouts/")))
            else:
                self._answer(HTTPStatus.NOT_FOUND, {"error": f"nothing at {one_line(path, 100)}"})
        except RolloutsError as error:
            self._answer(HTTPStatus.NOT_FOUND, {"error": str(error)})
        except ConnectionError:
            self.close_connection = True  # the page was left
        except Exception as error:
            self._answer(HTTPStatus.INTERNAL_SERVER_ERROR, {"error": safe(error)})

    def log_message(self, format: str, *arguments: Any) -> None:
        """Requests are not worth a line."""

    def _page(self) -> bytes:
        name = self._rollouts.run.name
        body = f"<h1>{escape(name)}</h1>{rollouts_page.viewer(self._rollouts.files(), [], live=True)}"
        return page(name, body, rollouts_page.STYLE, rollouts_page.policy(live=True)).encode()

    def _answer(self, status: HTTPStatus, value: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(value, allow_nan=False).encode())

    def _send(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="orchestration.view", description=__doc__)
    parser.add_argument("run", type=Path, help="a run's folder, finished or not")
    parser.add_argument(
        "--port", type=int, default=PORT, choices=range(65536), metavar="PORT", help="0: any that is free"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())

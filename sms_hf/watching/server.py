"""The page of a run that goes on, for a browser on this machine."""

from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock

from ..report.page import make_note, make_page
from .reading import read_run, whole_fields

HOST = "127.0.0.1"
"""Others on the network see nothing: a run's settings and paths are its owner's."""
REFRESH = 5
"""Seconds between two requests of a browser."""


def watch(folder: str | Path, port: int) -> ThreadingHTTPServer:
    """
    A server of the page of a run, built anew at each request, until the run is finished.

    Args:
        folder (`str` or `Path`): The `output_dir` of a run.
        port (`int`): On the loopback address alone; 0 takes one that is free.

    Returns:
        `ThreadingHTTPServer`: To be run with `serve_forever`.

    Raises:
        CheckpointError: If the folder holds no run.
        ImportError: Without matplotlib.
        ValueError: If the port is not free.
    """
    lock = Lock()  # Settings of matplotlib hold for the whole process.

    def page() -> str:
        with lock:
            run = read_run(folder)
            with whole_fields(folder):
                return make_page(run, REFRESH if run.unfinished else None)

    page()
    try:
        return ThreadingHTTPServer((HOST, port), _handler(page))
    except (OSError, OverflowError) as error:
        raise ValueError(
            f"Expected a port that is free, got {port} ({error}). Name another one with --port."
        ) from error


def _handler(page: Callable[[], str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 30

        def do_GET(self) -> None:
            # A page of elsewhere may have its name lead here, to read this one: it still asks by its own name.
            if self.headers.get("Host", "").rsplit(":", 1)[0] not in (HOST, "localhost"):
                self._answer(403, "text/plain", "Only for this machine.")
            elif self.path.split("?")[0] != "/":
                self._answer(404, "text/plain", "Nothing here but /.")
            else:
                try:
                    self._answer(200, "text/html", page())
                except (
                    ValueError,
                    OSError,
                ) as error:  # Between two files that belong together; gone at the next request.
                    self._answer(503, "text/html", make_note(str(error), REFRESH))

        def _answer(self, status: int, kind: str, text: str) -> None:
            body = text.encode("utf-8")
            self.send_response(status)
            for name, value in (
                ("Content-Type", f"{kind}; charset=utf-8"),
                ("Content-Length", str(len(body))),
                ("Cache-Control", "no-store"),
                ("X-Content-Type-Options", "nosniff"),
            ):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """No line for every request."""

    return Handler

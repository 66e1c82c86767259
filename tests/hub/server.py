"""A small Hub in memory, for tests of real clients: the server, and what can go wrong with it."""

import os
import re
import sys
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

from .api import Refusal, Request, answer
from .repositories import LFS_SUFFIXES, File, Repo

CLIENT = {
    "HF_HUB_OFFLINE": "0",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_XET": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_SAFETENSORS_CONVERSION": "1",  # It asks a service on the internet.
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass
class Fault:
    """What goes wrong with the next `times` requests of this kind. [`Hub.break_next`] describes the fields."""

    method: str
    pattern: str
    times: int
    status: int | None
    cut_upload: int | None
    cut_answer: int | None

    def concerns(self, method: str, path: str) -> bool:
        return self.times > 0 and method == self.method and re.search(self.pattern, path) is not None


class Hub:
    """
    A running server.

    Attributes:
        endpoint (`str`): For `HF_ENDPOINT`.
        repos (`dict[str, Repo]`): By `"user/name"`.
        lfs (`dict[str, bytes]`): All large files that were ever uploaded, by SHA-256.
        log (`list[tuple[str, str]]`): Method and path, without the query, of every request in order.
        unknown (`list[tuple[str, str]]`): Those of them that this server does not know.
        crashes (`list`): Exceptions of the server itself.
        faults (`list[Fault]`): Those of `break_next`. Clear it to mend the server.
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}
        self.lfs: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.unknown: list[tuple[str, str]] = []
        self.crashes: list[BaseException | None] = []
        self.faults: list[Fault] = []
        self.lock = Lock()
        self._server = _Server(self)
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def seed(self, repo_id: str, files: dict[str, bytes], private: bool = False, branch: str = "main") -> str:
        """Commit files (path -> content) without a client, to a new repository where there is none; the commit's sha."""
        repo = self.repos.setdefault(repo_id, Repo(repo_id, private))
        added = {path: File(content, path.endswith(LFS_SUFFIXES)) for path, content in files.items()}
        return repo.add(branch, "Seed", repo.at(branch).files | added).sha

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Path -> content. As on the Hub, every repository is born with a `.gitattributes`."""
        return {path: file.content for path, file in self.repos[repo_id].at(revision).files.items()}

    def environment(self, home: str | Path, token: str | None = "hf_test") -> dict[str, str]:
        """
        Of a process that takes this server for the Hub. Its clients read most of it when they are imported.

        Args:
            home (`str` or `Path`): Folder for its cache.
            token (`str`, *optional*, defaults to `"hf_test"`): A key of `TOKENS`, or a wrong one; None: not logged in.
        """
        ours = ("HF_", "HUGGING")
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(ours) and not k.lower().endswith("_proxy")}
        login = {"HF_TOKEN": token} if token else {}
        return inherited | CLIENT | login | {"HF_ENDPOINT": self.endpoint, "HF_HOME": str(home)}

    def break_next(
        self,
        method: str,
        pattern: str,
        times: int = 1,
        *,
        status: int | None = None,
        cut_upload: int | None = None,
        cut_answer: int | None = None,
    ) -> None:
        """
        Let the next requests of a kind fail.

        Args:
            method (`str`): `"GET"`, `"HEAD"`, `"POST"` or `"PUT"`.
            pattern (`str`): Regular expression, searched in the path as it is in `log`.
            times (`int`, *optional*, defaults to 1): How many requests.
            status (`int`, *optional*): Answer with this status, and do nothing that the request asks for.
            cut_upload (`int`, *optional*): Close the connection after so many bytes of the request's body, and do nothing.
            cut_answer (`int`, *optional*): Do what is asked, but close the connection after so many bytes of the answer's
                body. Its head announces all of them.
        """
        self.faults.append(Fault(method, pattern, times, status, cut_upload, cut_answer))

    def note(self, method: str, path: str) -> Fault | None:
        """Log a request, and say what is to go wrong with it."""
        with self.lock:
            self.log.append((method, path))
            fault = next((fault for fault in self.faults if fault.concerns(method, path)), None)
            if fault:
                fault.times -= 1
            return fault


class _Handler(BaseHTTPRequestHandler):
    """One connection: requests come in, faults happen, answers go out."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # Head and body in one packet: the second of two would wait until the first is acknowledged.
    server: "_Server"

    def _handle(self) -> None:
        hub, url = self.server.hub, urlsplit(self.path)
        fault = hub.note(self.command, url.path)
        if fault and fault.cut_upload is not None:
            self.rfile.read(min(fault.cut_upload, int(self.headers["Content-Length"])))
            self.close_connection = True
            return
        request = Request(self.command, url.path, parse_qs(url.query), self.headers, self._read_body())
        if fault and fault.status is not None:
            result = Refusal(fault.status, "Broken on purpose").answer
        else:
            with hub.lock:
                result = answer(hub, request)
        self._send(result.status, result.headers, result.body, cut=fault.cut_answer if fault else None)

    do_HEAD = do_GET = do_POST = do_PUT = _handle

    def _read_body(self) -> bytes:
        if "Transfer-Encoding" in self.headers:
            raise NotImplementedError("No client was seen to send a body in chunks.")
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        if len(body) < size:
            raise ConnectionError("The client went away in the middle of a request.")
        return body

    def _send(self, status: int, headers: dict[str, str], body: bytes, cut: int | None) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:cut])
        self.close_connection = self.close_connection or cut is not None

    def log_message(self, *_: Any) -> None:
        """`Hub.log` has it."""


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: Hub):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub

    def handle_error(self, request: Any, client_address: Any) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):  # That a client goes away is part of the tests.
            self.hub.crashes.append(error)

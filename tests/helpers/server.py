"""A server on this machine that gives files and misbehaves, and one that speaks what huggingface_hub needs of a hub."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import constants, file_download


@dataclass
class Answer:
    """What the server gives for a path.

    Attributes:
        body: content.
        status: HTTP status.
        length: stated length; None for the true one, -1 for none.
        pause: seconds before the second half of the body.
        headers: further headers.
    """

    body: bytes = b""
    status: int = 200
    length: int | None = None
    pause: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


class Handler(BaseHTTPRequestHandler):
    """Gives the answers of ``server.answers``, and notes the requests in ``server.requests``."""

    server: Server

    def log_message(self, *arguments: object) -> None:
        pass

    def send(self, answer: Answer) -> None:
        self.send_response(answer.status)
        if answer.length != -1:
            self.send_header("Content-Length", str(len(answer.body) if answer.length is None else answer.length))
        for key, value in answer.headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        half = len(answer.body) // 2
        with contextlib.suppress(ConnectionError):
            self.wfile.write(answer.body[:half])
            self.wfile.flush()
            time.sleep(answer.pause)
            self.wfile.write(answer.body[half:])

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        self.server.requests.append(f"{self.command} {path}")
        self.send(self.server.find(path))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(f"POST {self.path}")
        self.send(self.server.post(self.path, body))


class Server(ThreadingHTTPServer):
    """A server of files."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def find(self, path: str) -> Answer:
        return self.answers.get(path, Answer(status=404))

    def post(self, path: str, body: bytes) -> Answer:
        return Answer(status=404)


class Hub(Server):
    """A hub. Repositories are dicts of commits; all files are sent inside the commit, none as LFS.

    Attributes:
        repositories: commits of each repository, the last one is main's: files by name.
        private: repositories that are private.
        misbehave: changes the answer of a file, by name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.repositories: dict[str, list[dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.misbehave: dict[str, dict[str, object]] = {}

    def add(self, repository: str, files: dict[str, bytes]) -> str:
        """Add a commit with these files alone, and return its name."""
        self.repositories.setdefault(repository, []).append(files)
        self.private.setdefault(repository, False)
        return commit_name(len(self.repositories[repository]))

    def find(self, path: str) -> Answer:
        parts = path.strip("/").split("/")
        # the description of a repository
        if parts[:2] == ["api", "models"]:
            repository = "/".join(parts[2:4])
            if repository not in self.repositories:
                return missing("RepoNotFound")
            return as_json({"id": repository, "private": self.private[repository], "sha": None, "siblings": []})
        # OWNER/NAME/resolve/REVISION/FILE
        repository, revision, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        commits = self.repositories.get(repository)
        if not commits:
            return missing("RepoNotFound")
        names = {commit_name(number): files for number, files in enumerate(commits, 1)}
        name = commit_name(len(commits)) if revision == "main" else revision
        if name not in names:
            return missing("RevisionNotFound")
        if file not in names[name]:
            return missing("EntryNotFound", commit=name)
        content = names[name][file]
        headers = {"X-Repo-Commit": name, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        answer = Answer(content, headers=headers)
        for key, value in self.misbehave.get(file, {}).items():
            setattr(answer, key, value)
        return answer

    def post(self, path: str, body: bytes) -> Answer:
        if path == "/api/validate-yaml":
            return as_json({"errors": [], "warnings": []})
        if path == "/api/repos/create":
            content = json.loads(body)
            repository = f"{content.get('organization') or 'owner'}/{content['name']}"
            if repository in self.repositories:
                return Answer(json.dumps({"url": f"{self.address}/{repository}"}).encode(), status=409)
            self.repositories[repository] = []
            # huggingface_hub 0.34 sends private, 1.0 visibility
            self.private[repository] = (
                content["private"] if "private" in content else content["visibility"] == "private"
            )
            return as_json({"url": f"{self.address}/{repository}"})
        repository = "/".join(path.split("/")[3:5])
        if "/preupload/" in path:
            files = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in json.loads(body)["files"]
            ]
            return as_json({"files": files})
        if "/commit/" in path:
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            name = self.add(repository, {**(self.repositories[repository] or [{}])[-1], **files})
            return as_json({"commitUrl": f"{self.address}/{repository}/commit/{name}", "commitOid": name})
        return Answer(status=404)


def set_endpoint(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """Set ``HF_ENDPOINT`` as if it had been set before huggingface_hub was imported, which reads it then."""
    monkeypatch.setenv("HF_ENDPOINT", address)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, address)
    for module in (constants, file_download):  # huggingface_hub 0.34 reads the name in the second, 2.4 in the first
        monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
    monkeypatch.setattr(constants, "ENDPOINT", address)


def commit_name(number: int) -> str:
    return f"{number:040x}"


def as_json(content: object) -> Answer:
    return Answer(json.dumps(content).encode(), headers={"Content-Type": "application/json"})


def missing(code: str, commit: str | None = None) -> Answer:
    headers = {"X-Error-Code": code}
    if commit is not None:
        headers["X-Repo-Commit"] = commit
    return Answer(status=404, headers=headers)


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """Answer requests until the end of the block."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

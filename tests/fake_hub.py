"""A model hub on this machine: serves folders as repositories, some only to those who bring the token.

GET  /api/models/OWNER/NAME                   what there is
HEAD, GET  /OWNER/NAME/resolve/REVISION/FILE  the files
"""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "hf_right"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class FakeHub:
    """Where it is, and who asked for what with which token."""

    address: str
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@contextmanager
def fake_hub(open_models: Mapping[str, Path], gated_models: Mapping[str, Path]) -> Iterator[FakeHub]:
    models = {**open_models, **gated_models}

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(sends=False)

        def do_GET(self) -> None:
            self._answer(sends=True)

        def _answer(self, *, sends: bool) -> None:
            authorization = self.headers.get("Authorization")
            hub.asked.append((self.path, authorization))
            parts = self.path.split("?")[0].strip("/").split("/")
            name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            if name not in models:
                return self._refuse(401, "RepoNotFound", "Repository not found")
            if "tree" in parts:  # a folder inside: no model here has one
                return self._refuse(404, "EntryNotFound", "Entry not found")
            if parts[0] == "api":
                return self._send(json.dumps(self._card(name)).encode(), "application/json", sends=sends)
            if name in gated_models and authorization != f"Bearer {TOKEN}":
                return self._refuse(401 if authorization is None else 403, "GatedRepo", "Access is restricted")
            file = models[name] / "/".join(parts[4:])
            if not file.is_file():
                return self._refuse(404, "EntryNotFound", "Entry not found")
            return self._send(file.read_bytes(), "application/octet-stream", sends=sends)

        def _card(self, name: str) -> dict[str, object]:
            files = [{"rfilename": path.name} for path in sorted(models[name].iterdir())]
            return {"id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "siblings": files}

        def _send(self, data: bytes, kind: str, *, sends: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if sends:
                self.wfile.write(data)

        def _refuse(self, status: int, code: str, message: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("X-Error-Message", message)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub = FakeHub(address=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

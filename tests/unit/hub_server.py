"""A local server that speaks as much of the hub's protocol as a push needs, and keeps every call and file."""

import base64
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_good"


class Hub(ThreadingHTTPServer):
    """The account `me` with the token `TOKEN`, and no repositories at first.

    Attributes:
        calls: (method, path) of each call.
        private: repository -> whether it is private.
        files: repository -> path -> content, after a commit.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.calls, self.private, self.files, self.uploads = [], {}, {}, {}
        self.url = f"http://127.0.0.1:{self.server_port}"

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, dict]:
        """Return status and JSON of one call."""
        if token != TOKEN and not path.startswith("/upload/"):
            return 401, {"error": "Invalid credentials in Authorization header"}
        match [method, *path.strip("/").split("/")]:
            case ["GET", "api", "whoami-v2"]:
                return 200, {"name": "me", "type": "user", "orgs": []}
            case ["POST", "api", "validate-yaml"]:
                return 200, {"errors": [], "warnings": []}
            case ["POST", "api", "repos", "create"]:
                return self.create(json.loads(body))
            case ["GET", "api", "models", user, name] if f"{user}/{name}" in self.private:
                return 200, {"id": f"{user}/{name}", "private": self.private[f"{user}/{name}"], "siblings": []}
            case ["POST", "api", "models", _, _, "preupload", "main"]:
                return 200, {"files": [self.mode(file["path"]) for file in json.loads(body)["files"]]}
            case ["POST", _, _, "info", "lfs", "objects", "batch"]:
                return 200, {"objects": [self.place(one) for one in json.loads(body)["objects"]]}
            case ["PUT", "upload", oid]:
                self.uploads[oid] = body
                return 200, {}
            case ["POST", "api", "models", user, name, "commit", "main"]:
                self.commit(f"{user}/{name}", [json.loads(line) for line in body.splitlines()])
                return 200, {"commitUrl": f"{self.url}/{user}/{name}/commit/1", "commitOid": "1" * 40}
        return 404, {"error": "not a call of this stand-in"}

    def create(self, asked: dict) -> tuple[int, dict]:
        repository = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] != "me":
            return 403, {"error": "You don't have the rights to create a model under this namespace"}
        if repository in self.private:
            return 409, {"error": "You already created this model repo", "url": f"{self.url}/{repository}"}
        self.private[repository] = asked.get("private", asked.get("visibility") == "private")
        return 200, {"url": f"{self.url}/{repository}"}

    def mode(self, path: str) -> dict:
        return {
            "path": path,
            "uploadMode": "lfs" if path.endswith(".safetensors") else "regular",
            "shouldIgnore": False,
        }

    def place(self, one: dict) -> dict:
        return one | {"actions": {"upload": {"href": f"{self.url}/upload/{one['oid']}"}}}

    def commit(self, repository: str, lines: list[dict]) -> None:
        files = self.files.setdefault(repository, {})
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.uploads[line["value"]["oid"]]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _serve(self):
        path = self.path.partition("?")[0]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.calls.append((self.command, path))
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        status, found = self.server.answer(self.command, path, token, body)
        data = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = do_PUT = _serve

    def log_message(self, *args):
        pass


@contextmanager
def serve():
    """Run a hub for the length of a block."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()

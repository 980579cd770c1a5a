"""A little Hub on this machine: a repository at one commit, listed and served as by the real one, failing on demand."""

import hashlib
import json
import socket
import struct
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
PAGE = 3  # entries of a listing in one answer


@dataclass(frozen=True)
class Answers:
    """The request is answered with this status."""

    status: int
    retry_after: int | None = None
    rate_limit: str | None = None


@dataclass(frozen=True)
class Resets:
    """The connection is reset, or merely closed, after so many bytes of the content."""

    after: int
    politely: bool = False


@dataclass(frozen=True)
class Stalls:
    """Nothing more comes after so many bytes of the content."""

    after: int


@dataclass
class Hub:
    """A repository (`files` by path), what will go wrong with it (`faults` by path, in order), what was asked of it."""

    files: dict[str, bytes]
    dataset: str = "someone/texts"
    kind: str = "datasets"
    faults: dict[str, list[Answers | Resets | Stalls]] = field(default_factory=dict)
    knows_ranges: bool = True
    redirects: bool = False
    endpoint: str = ""
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def entry(self, path: str) -> dict[str, object]:
        """A file as listings show it: large ones are in LFS, small ones in git."""
        content = self.files[path]
        oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, object] = {"type": "file", "path": path, "size": len(content), "oid": oid}
        if path.endswith((".gz", ".parquet")):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def entries(self, folder: str, recursive: bool) -> list[dict[str, object]]:
        """The files in or below a folder, and folders in it."""
        prefix = f"{folder}/" if folder else ""
        inside = [path for path in sorted(self.files) if path.startswith(prefix)]
        folders = {
            prefix + path.removeprefix(prefix).split("/")[0] for path in inside if "/" in path.removeprefix(prefix)
        }
        files = [path for path in inside if recursive or "/" not in path.removeprefix(prefix)]
        return [
            *({"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)),
            *(self.entry(path) for path in files),
        ]


@contextmanager
def serving(first: Hub, *others: Hub) -> Iterator[Hub]:
    """The first hub behind its `endpoint`, and the repositories of others behind the same one."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_POST(self) -> None:
            asked = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            hub = self.hub()
            self.say([hub.entry(path) for path in asked["paths"] if path in hub.files])

        def do_GET(self) -> None:
            url = urllib.parse.urlsplit(self.path)
            path, query = urllib.parse.unquote(url.path), urllib.parse.parse_qs(url.query)
            hub = self.hub()
            api, tree = f"/api/{hub.kind}/{hub.dataset}", f"/api/{hub.kind}/{hub.dataset}/tree/{COMMIT}"
            if path in (api, *(f"{api}/revision/{name}" for name in ("main", COMMIT, "refs/convert/parquet"))):
                fault = self.fault(hub, "info")
                if isinstance(fault, Answers):
                    self.answer(fault)
                else:
                    self.say(
                        {"id": hub.dataset, "sha": COMMIT, "siblings": [{"rfilename": name} for name in hub.files]}
                    )
            elif path == tree or path.startswith(f"{tree}/"):
                folder = path.removeprefix(tree).strip("/")
                entries = hub.entries(folder, query.get("recursive", ["false"])[0].lower() == "true")
                self.say_page(entries, int(query.get("cursor", ["0"])[0]), query) if entries else self.refuse(
                    404, "EntryNotFound"
                )
            else:
                place = f"/{hub.dataset}/resolve/{COMMIT}/"
                name = path.removeprefix("/datasets").removeprefix(place).removeprefix("/store/")
                self.give(hub, name) if name in hub.files else self.refuse(404, "EntryNotFound")

        def hub(self) -> Hub:
            hub = next((hub for hub in (first, *others) if hub.dataset in self.path), first)
            hub.requests.append((self.command, self.path, {key.lower(): value for key, value in self.headers.items()}))
            return hub

        def fault(self, hub: Hub, name: str) -> Answers | Resets | Stalls | None:
            faults = hub.faults.get(name)
            return faults.pop(0) if faults and self.command == "GET" else None

        def say(self, value: object, **headers: str) -> None:
            body = json.dumps(value).encode()
            self.send_response(200)
            for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
                self.send_header(key, str(value))
            self.end_headers()
            self.wfile.write(body)

        def say_page(self, entries: list[dict[str, object]], start: int, query: dict[str, list[str]]) -> None:
            rest = urllib.parse.urlencode({**{key: value[0] for key, value in query.items()}, "cursor": start + PAGE})
            link = f'<{first.endpoint}{urllib.parse.urlsplit(self.path).path}?{rest}>; rel="next"'
            self.say(entries[start : start + PAGE], **({"Link": link} if start + PAGE < len(entries) else {}))

        def refuse(self, status: int, code: str) -> None:
            self.say_headers(status, {"X-Error-Code": code})

        def answer(self, fault: Answers) -> None:
            asked = {"Retry-After": fault.retry_after, "RateLimit": fault.rate_limit}
            self.say_headers(fault.status, {name: str(value) for name, value in asked.items() if value is not None})

        def say_headers(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": "0"}.items():
                self.send_header(name, value)
            self.end_headers()

        def give(self, hub: Hub, name: str) -> None:
            content, status, start = hub.files[name], 200, 0
            if hub.redirects and not self.path.startswith("/store/"):
                store = first.endpoint.replace("127.0.0.1", "localhost")
                self.say_headers(302, {"Location": f"{store}/store/{name}"})
                return
            fault = self.fault(hub, name)
            if isinstance(fault, Answers):
                self.answer(fault)
                return
            if hub.knows_ranges and (asked := self.headers.get("Range")):
                start, _, stop = asked.removeprefix("bytes=").partition("-")
                start, status = int(start), 206
                content = content[start : int(stop) + 1 if stop else None]
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hub.entry(name)["oid"]}"')
            self.send_header("X-Repo-Commit", COMMIT)
            if status == 206:
                whole = len(hub.files[name])
                self.send_header("Content-Range", f"bytes {start}-{start + len(content) - 1}/{whole}")
            self.end_headers()
            if self.command == "GET":
                self.send_body(content, fault)

        def send_body(self, content: bytes, fault: Resets | Stalls | None) -> None:
            self.wfile.write(content if fault is None else content[: fault.after])
            self.wfile.flush()
            if isinstance(fault, Stalls):
                first.over.wait(30)
            if fault is not None:
                self.close_connection = True
            if isinstance(fault, Resets) and not fault.politely:
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # a client that hung up

    with Server(("127.0.0.1", 0), Handler) as server:
        first.endpoint = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield first
        finally:
            first.over.set()
            server.shutdown()
            thread.join()

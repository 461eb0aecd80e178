"""A web server of files, and one that speaks as much of the Hugging Face Hub's protocol as a download needs."""

import hashlib
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlparse

COMMIT = '0123456789abcdef0123456789abcdef01234567'


class Handler(BaseHTTPRequestHandler):
    """Answers for a folder; :func:`serve` sets the three of its subclass."""

    folder: Path
    hub: bool
    seen: list[tuple[str, str]]

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def answer(self, with_body: bool) -> None:
        path = unquote(urlparse(self.path).path).lstrip('/')
        self.seen.append((self.command, path))
        headers, code = {}, ''
        if self.hub:
            headers, code = {'X-Repo-Commit': COMMIT}, 'EntryNotFound'
            owner, repo, _, revision, file = (path.split('/', 4) + [''] * 5)[:5]
            path = f'{owner}/{repo}/{file}'
            if not (self.folder / owner / repo).is_dir():
                return self.refuse(404, 'RepoNotFound')
            if revision not in ('main', COMMIT):
                return self.refuse(404, 'RevisionNotFound')
            if owner == 'gated' and self.headers.get('Authorization') != 'Bearer secret':
                return self.refuse(403, 'GatedRepo')
        if not (self.folder / path).is_file():
            return self.refuse(404, code, headers)
        body = (self.folder / path).read_bytes()
        self.send_response(200)
        headers |= {'Content-Length': str(len(body)), 'ETag': f'"{hashlib.sha256(body).hexdigest()}"'}
        self.finish_headers(headers)
        if with_body:
            self.wfile.write(body)

    def refuse(self, status: int, code: str, headers: dict | None = None) -> None:
        self.send_response(status)
        self.finish_headers({**(headers or {}), 'X-Error-Code': code, 'Content-Length': '0'})

    def finish_headers(self, headers: dict) -> None:
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *_) -> None:
        pass


@contextmanager
def serve(folder: Path, hub: bool = False):
    """Serve a folder's files; yields the address and a list that requests are noted in.

    As a Hub, ``<owner>/<repo>/<file>`` of the folder is there as revision ``main`` and as :data:`COMMIT`; a repository
    ``gated/…`` asks for the token ``secret``.
    """
    seen: list[tuple[str, str]] = []
    handler = type('HandlerOfFolder', (Handler,), dict(folder=folder, hub=hub, seen=seen))
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.server_port}', seen
    finally:
        server.shutdown()
        server.server_close()

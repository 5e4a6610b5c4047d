"""A package index on the loopback interface, with a few releases of a stand-in on it."""

import contextlib
import hashlib
import http.server
import io
import threading
import zipfile


def wheel(version, core, *, name="standin", requires=()):
    """Return the bytes of a wheel with one module."""
    info = f"{name}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {requirement}\n" for requirement in requires)
    files = {
        f"{name}/__init__.py": "",
        f"{name}/core.py": core,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in files) + f"{info}/RECORD,,\n"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(path, text)
    return buffer.getvalue()


class Index:
    """What the server offers: files by name, and what it says about each, and which of them never arrive."""

    def __init__(self):
        self.files = {}
        self.attributes = {}
        self.requests = []
        self.stalled = set()

    def add(self, version, core, *, name="standin", yanked=None, requires=(), content=None):
        file = f"{name}-{version}-py3-none-any.whl"
        self.files[file] = wheel(version, core, name=name, requires=requires) if content is None else content
        self.attributes[file] = "" if yanked is None else f' data-yanked="{yanked}"'

    def page(self, project):
        links = [
            f'<a href="/files/{file}#sha256={hashlib.sha256(content).hexdigest()}"{self.attributes[file]}>{file}</a>'
            for file, content in self.files.items()
            if file.startswith(f"{project}-")
        ]
        return f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>".encode() if links else None


@contextlib.contextmanager
def serve(index):
    """Serve an index; yields its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self, *, head=False):
            if not head:
                index.requests.append(self.path)
            kind, _, name = self.path.strip("/").partition("/")
            body = index.files.get(name) if kind == "files" else index.page(name)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Type", "text/html" if kind == "simple" else "application/octet-stream")
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            if not head and name in index.stalled:
                self.wfile.write(body[:1])
                self.wfile.flush()
                over.wait(5)  # A client that waits for ever fails a test instead of stopping it.
            elif not head:
                self.wfile.write(body or b"")

        def do_HEAD(self):
            self.do_GET(head=True)

        def log_message(self, *_):
            pass

    over = threading.Event()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple/"
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()

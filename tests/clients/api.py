"""A server with an API, as an author would write one with Python's own library; api.yaml describes it.

python3 api.py PORT [--token-file FILE]

The server prints its port. /told answers with the requests that came, and /api.yaml with the description. With
--token-file the server answers /api/me and /api.yaml only to clients that send the token in the file."""

import hashlib
import json
import sys
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

port, *options = sys.argv[1:]
token = None
if "--token-file" in options:
    token = Path(options[options.index("--token-file") + 1]).read_text().strip()

told = []
# Status and `Retry-After` of the responses that a busy server sends before the answer.
busy = [(429, "1"), (503, "0")]


class Api(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", kind="application/json", headers=()):
        if not isinstance(body, bytes):
            body = json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def known(self):
        brought = self.headers.get("Authorization")
        return token is None or brought == f"Bearer {token}"

    def do_GET(self):
        self.serve(b"")

    def do_POST(self):
        self.serve(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def serve(self, body):
        url = urlsplit(self.path)
        if url.path == "/told":
            return self.answer(200, told)
        told.append({
            "method": self.command,
            "path": self.path,
            "authorization": self.headers.get("Authorization"),
            "type": self.headers.get("Content-Type"),
        })
        if url.path == "/api.yaml":
            if not self.known():
                return self.answer(401, {"message": "who are you?"})
            described = Path(__file__).with_name("api.yaml").read_bytes()
            return self.answer(200, described, "application/yaml")
        where = (self.command, url.path)
        match where:
            case ("GET", "/api/busy"):
                if busy:
                    status, after = busy.pop(0)
                    return self.answer(status, headers=[("Retry-After", after)])
                return self.answer(200, b"12", "text/plain")
            case ("POST", "/api/busy"):
                return self.answer(503, {"message": "later"}, headers=[("Retry-After", "7")])
            case ("GET", "/api/events"):
                return self.events()
            case ("POST", "/api/files"):
                return self.answer(200, parts(self.headers["Content-Type"], body))
            case ("GET", "/api/me"):
                if not self.known():
                    return self.answer(401, {"message": "who are you?"})
                return self.answer(200, {"me": True})
            case ("GET", "/api/away"):
                elsewhere = f"http://127.0.0.2:{self.server.server_address[1]}/api/me"
                return self.answer(302, headers=[("Location", elsewhere)])
            case ("POST", "/api/notes"):
                return self.answer(201, {"id": 7, **json.loads(body)})
            case ("GET", path) if path.startswith("/api/notes/"):
                name = unquote(path.removeprefix("/api/notes/"))
                if name == "none":
                    return self.answer(404, {"message": f"no note {name}"})
                lang = parse_qs(url.query).get("lang", [None])[0]
                return self.answer(200, {"id": 1, "text": name, "lang": lang})
        self.answer(404, {"message": "no such path"})

    def events(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Connection", "close")
        self.end_headers()
        for number in range(3):
            event = f'id: {number}\nevent: tick\ndata: {{"n": {number}}}\n\n'
            self.wfile.write(event.encode())
            self.wfile.flush()
        self.close_connection = True


def parts(kind, body):
    """Length and hash of each part of a multipart form, which Python's mail parser reads."""
    message = BytesParser().parsebytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + body)
    found = {}
    for part in message.get_payload():
        name = part.get_param("name", header="Content-Disposition")
        data = part.get_payload(decode=True)
        found[name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    return found


server = ThreadingHTTPServer(("127.0.0.1", int(port)), Api)
print(server.server_address[1], flush=True)
server.serve_forever()

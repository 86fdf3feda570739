"""A server of the files in its working folder, over HTTPS with HTTP/1.1.

python3 files.py CERTIFICATE KEY PORT

The server prints its port."""

import ssl
import sys
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer


def main():
    certificate, key, port = sys.argv[1:]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    context.set_alpn_protocols(["http/1.1"])
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), SimpleHTTPRequestHandler)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    print(server.server_port, flush=True)
    server.serve_forever()


main()

"""Runs moto's server as the metadata service of a machine with this document, until standard input ends.

python3 amazon.py DOCUMENT

moto's model of the metadata service gives tokens and has no user data. Its server passes other paths on to its model of
S3, so the document is the object `user-data` of a bucket `latest`, which lies at the path of user data. The script
prints the port.
"""

import sys
import urllib.request

from moto.server import ThreadedMotoServer

[document] = sys.argv[1:]
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
server.start()
_, port = server.get_host_and_port()


def put(path, content, fields):
    address = f"http://127.0.0.1:{port}{path}"
    request = urllib.request.Request(address, content, fields, method="PUT")
    urllib.request.urlopen(request).read()


put("/latest", None, {})
# The client signs no request, as for every service of metadata.
fields = {"Content-Type": "text/plain", "x-amz-acl": "public-read"}
put("/latest/user-data", document.encode(), fields)
print("port", port, flush=True)
sys.stdin.read()

#!/usr/bin/env python3
"""Calls an operation of a node over TLS on TCP, with nothing but Python's standard library.

    call_tls.py ed25519:<64 hex>@HOST:PORT OPERATION [JSON] [--follow] [--cert FILE]

Prints the answer as a line of JSON; with --follow every answer of a subscription. FILE holds a
self-signed certificate of your own Ed25519 key and the key, both PEM; without it you are nobody.
Exit status 0: done, 1: failed, the error is on standard error, 3: it is not the pinned key.
"""
import argparse, json, re, socket, ssl, struct, sys

# SubjectPublicKeyInfo of an Ed25519 key (RFC 8410) up to the 32 bytes of the key.
ED25519 = bytes.fromhex("302a300506032b6570032100")


def tlv(der, at):
    """Where the contents of the DER element at `at` begin and end."""
    length, at = der[at + 1], at + 2
    if length == 0x80:
        raise ValueError("not DER: an indefinite length")
    if length & 0x80:
        size = length & 0x7F
        length, at = int.from_bytes(der[at:at + size], "big"), at + size
    return at, at + length


def public_key(certificate):
    """The certificate's SubjectPublicKeyInfo (RFC 5280 section 4.1)."""
    at, end = tlv(certificate, tlv(certificate, 0)[0])  # TBSCertificate, inside Certificate
    fields = []
    while at < end:
        after = tlv(certificate, at)[1]
        fields.append(certificate[at:after])
        at = after
    # After [version,] serial, algorithm, issuer, validity and subject.
    return fields[6 if fields[0][0] == 0xA0 else 5]


def connect(target, cert):
    pin, host, port = re.fullmatch(r"ed25519:([0-9a-f]{64})@\[?(.+?)\]?:(\d+)", target).groups()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # No authority vouches for the certificate; the key inside is compared with the pin below.
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["alknet/call"])
    if cert:
        context.load_cert_chain(cert)
    tls = context.wrap_socket(socket.create_connection((host, int(port)), timeout=60))
    if public_key(tls.getpeercert(binary_form=True)) != ED25519 + bytes.fromhex(pin):
        print("it holds another key than the pinned one", file=sys.stderr)
        sys.exit(3)
    return tls


def main():
    arguments = argparse.ArgumentParser(usage=__doc__)
    arguments.add_argument("target")
    arguments.add_argument("operation")
    arguments.add_argument("input", nargs="?", default="null", type=json.loads)
    arguments.add_argument("--follow", action="store_true")
    arguments.add_argument("--cert")
    args = arguments.parse_args()
    tls = connect(args.target, args.cert)
    payload = {"operationId": "/" + args.operation, "input": args.input}
    body = json.dumps({"type": "call.requested", "id": "1", "payload": payload}).encode()
    tls.sendall(struct.pack(">I", len(body)) + body)
    frames = tls.makefile("rb")
    while header := frames.read(4):
        event = json.loads(frames.read(*struct.unpack(">I", header)))
        if event["type"] == "call.responded":
            print(json.dumps(event["payload"]["output"]), flush=True)
        elif event["type"] == "call.error":
            sys.exit(json.dumps(event["payload"]))
        if not args.follow or event["type"] == "call.completed":
            return
    sys.exit("the node closed the connection")


main()

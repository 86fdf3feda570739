"""Computes keys with the package slip10 (the reference implementation of SLIP-0010) and the words' seed
with Python's own hash functions. Reads "curve path" lines; prints "private public" for each."""

import hashlib
import sys

from slip10 import SLIP10

CURVES = {"ed25519": "ed25519", "nist256p1": "secp256r1"}

words, passphrase = sys.argv[1], sys.argv[2]
seed = hashlib.pbkdf2_hmac("sha512", words.encode(), b"mnemonic" + passphrase.encode(), 2048)
for line in sys.stdin:
    curve, path = line.split()
    node = SLIP10.from_seed(seed, curve_name=CURVES[curve])
    print(node.get_privkey_from_path(path).hex(), node.get_pubkey_from_path(path).hex())

"""Decrypts the data of a LUKS2 partition, as its header describes them, by its volume key.

Arguments: the partition, a file with the volume key, where the plain data go.
"""

import json
import sys

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

FIELDS = 4096


def segment(source):
    """The part of the JSON that says where the data are and how they are encrypted."""
    length = int.from_bytes(source.read(16)[8:], "big")
    source.seek(FIELDS)
    text = source.read(length - FIELDS).split(b"\0", 1)[0]
    return json.loads(text)["segments"]["0"]


def main(partition, key_file, plain):
    with open(key_file, "rb") as file:
        key = algorithms.AES(file.read())
    with open(partition, "rb") as source, open(plain, "wb") as target:
        found = segment(source)
        assert found["encryption"] == "aes-xts-plain64", found
        size = found["sector_size"]
        empty, at = bytes(size), 0
        source.seek(int(found["offset"]))
        while len(sector := source.read(size)) == size:
            # What is all zeroes was never written.
            if sector != empty:
                # Sectors are numbered in units of 512 bytes, whatever their size.
                number = int(found["iv_tweak"]) + at // 512
                decryptor = Cipher(key, modes.XTS(number.to_bytes(16, "little"))).decryptor()
                target.seek(at)
                target.write(decryptor.update(sector) + decryptor.finalize())
            at += size
        target.truncate(at)


main(*sys.argv[1:])

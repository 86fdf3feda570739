"""Makes repositories with the reference implementation of TUF: a good one, and one for each attack.

python3 attacks.py FOLDER

Each attack is a folder NAME with metadata/, targets/ and trusted.json, the root that the client begins with. If it has
a folder NAME.before as well, the client has seen that repository first. The script prints the names.
"""

import copy
import sys
from datetime import datetime, timezone
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

LATE = datetime(2040, 1, 1, tzinfo=timezone.utc)
SOON = datetime(2035, 1, 1, tzinfo=timezone.utc)
EXPIRED = datetime(2030, 1, 1, tzinfo=timezone.utc)
ROLES = ["root", "timestamp", "snapshot", "targets"]
PROGRAM = b"program"
RELEASE = {
    "version": "1.1.0",
    "arch": "x86_64",
    "board": "generic",
    "form": "raw",
    "kernel": "6.12.107",
}
SERIALIZER = JSONSerializer(compact=True)


class Repository:
    """A repository with a key for each role. Attacks change it before it is signed or written."""

    def __init__(self, version=1):
        self.keys = {role: [CryptoSigner.generate_ed25519()] for role in ROLES}
        self.root = Metadata(Root(version=1, expires=LATE, consistent_snapshot=True))
        for role in ROLES:
            self.root.signed.add_key(self.keys[role][0].public_key, role)
        target = TargetFile.from_data("a.efi", PROGRAM, ["sha256"])
        target.unrecognized_fields["custom"] = {"alknet": dict(RELEASE)}
        self.targets = Metadata(Targets(version=version, expires=LATE, targets={"a.efi": target}))
        self.snapshot = Metadata(Snapshot(version=version, expires=LATE))
        self.timestamp = Metadata(Timestamp(version=version, expires=SOON))
        self.program = PROGRAM
        self.roots = []
        self.files = {}

    def sign_root(self):
        self.sign("root", self.root)
        self.roots.append(self.root.to_bytes(SERIALIZER))

    def rotate(self, change, signers):
        """The next root, changed by `change` and signed by `signers`."""
        self.root = copy.deepcopy(self.root)
        self.root.signed.version += 1
        change(self.root.signed)
        self.root.signatures.clear()
        for signer in signers:
            self.root.sign(signer, append=True)
        self.roots.append(self.root.to_bytes(SERIALIZER))

    def sign(self, role, document):
        document.signatures.clear()
        for signer in self.keys[role]:
            document.sign(signer, append=True)

    def release(self):
        """Signs the documents below the root; each names the next one by its bytes."""
        self.sign("targets", self.targets)
        targets = self.targets.to_bytes(SERIALIZER)
        version = self.targets.signed.version
        self.snapshot.signed.meta["targets.json"] = MetaFile.from_data(version, targets, ["sha256"])
        self.sign("snapshot", self.snapshot)
        self.files[f"{version}.targets.json"] = targets
        self.release_timestamp()

    def release_timestamp(self):
        snapshot = self.snapshot.to_bytes(SERIALIZER)
        version = self.snapshot.signed.version
        self.timestamp.signed.snapshot_meta = MetaFile.from_data(version, snapshot, ["sha256"])
        self.sign("timestamp", self.timestamp)
        self.files[f"{version}.snapshot.json"] = snapshot
        self.files["timestamp.json"] = self.timestamp.to_bytes(SERIALIZER)

    def write(self, name):
        folder = Path(sys.argv[1], name)
        metadata, targets = folder / "metadata", folder / "targets"
        metadata.mkdir(parents=True)
        targets.mkdir()
        for number, root in enumerate(self.roots, 1):
            (metadata / f"{number}.root.json").write_bytes(root)
        for file, content in self.files.items():
            (metadata / file).write_bytes(content)
        sha256 = self.targets.signed.targets["a.efi"].hashes["sha256"]
        (targets / f"{sha256}.a.efi").write_bytes(self.program)
        (folder / "trusted.json").write_bytes(self.roots[0])
        if not name.endswith(".before"):
            print(name)


def made(version=1, change=None):
    """A signed repository; `change` runs before anything below the root is signed."""
    repository = Repository(version)
    repository.sign_root()
    if change:
        change(repository)
    repository.release()
    return repository


def good():
    made().write("good")


def expired():
    for role in ["timestamp", "snapshot", "targets"]:

        def expire(it, role=role):
            getattr(it, role).signed.expires = EXPIRED

        made(change=expire).write(f"expired-{role}")
    it = Repository()
    it.root.signed.expires = EXPIRED
    it.sign_root()
    it.release()
    it.write("expired-root")


def rolled_back():
    it = made(version=1)
    old = dict(it.files)
    for document in [it.timestamp, it.snapshot, it.targets]:
        document.signed.version = 2
    it.files = {}
    it.release()
    it.write("rolled-back-timestamp.before")
    it.files = old
    it.write("rolled-back-timestamp")


def rolled_back_snapshot():
    it = made(version=2)
    it.write("rolled-back-snapshot.before")
    it.files = {}
    it.timestamp.signed.version = 3
    it.snapshot.signed.version = 1
    it.release()
    it.write("rolled-back-snapshot")


def rolled_back_targets():
    it = made(version=2)
    it.write("rolled-back-targets.before")
    it.files = {}
    it.timestamp.signed.version = it.snapshot.signed.version = 3
    it.targets.signed.version = 1
    it.release()
    it.write("rolled-back-targets")


def mixed():
    # The targets of version 2 under the name of version 1, which the snapshot names without a hash.
    it = made()
    it.targets.signed.version = 2
    it.sign("targets", it.targets)
    it.snapshot.signed.meta["targets.json"] = MetaFile(1)
    it.sign("snapshot", it.snapshot)
    it.release_timestamp()
    it.files["1.targets.json"] = it.targets.to_bytes(SERIALIZER)
    it.write("mixed-targets")
    it = made()
    it.snapshot.signed.version = 2
    it.sign("snapshot", it.snapshot)
    it.timestamp.signed.snapshot_meta = MetaFile(1)
    it.sign("timestamp", it.timestamp)
    it.files["timestamp.json"] = it.timestamp.to_bytes(SERIALIZER)
    it.files["1.snapshot.json"] = it.snapshot.to_bytes(SERIALIZER)
    it.write("mixed-snapshot")


def other_bytes():
    it = made()
    it.files["1.targets.json"] = it.files["1.targets.json"].replace(b"1.1.0", b"9.9.9")
    it.write("wrong-hash")
    it = made()
    it.files["1.snapshot.json"] += b" "
    it.write("wrong-length")
    it = made()
    it.files["timestamp.json"] += b" " * (1 << 20)
    it.write("endless-metadata")
    it = made()
    it.program = PROGRAM * 1000
    it.write("endless-target")
    it = made()
    it.program = b"gramprp"
    it.write("wrong-target")


def wrong_keys():
    it = Repository()
    it.root.signed.add_key(CryptoSigner.generate_ed25519().public_key, "timestamp")
    it.root.signed.roles["timestamp"].threshold = 2
    it.sign_root()
    it.release()
    it.write("wrong-threshold")
    # One signature, twice.
    it.timestamp.signatures.clear()
    it.timestamp.sign(it.keys["timestamp"][0], append=True)
    text = it.timestamp.to_bytes(SERIALIZER).decode()
    start, end = text.index("[") + 1, text.index("]")
    text = text[:start] + text[start:end] + "," + text[start:end] + text[end:]
    it.files["timestamp.json"] = text.encode()
    it.write("duplicate-signatures")
    it = made()
    it.timestamp.signatures.clear()
    it.files["timestamp.json"] = it.timestamp.to_bytes(SERIALIZER)
    it.write("unsigned")
    it = made()
    it.keys["timestamp"] = it.keys["targets"]
    it.sign("timestamp", it.timestamp)
    it.files["timestamp.json"] = it.timestamp.to_bytes(SERIALIZER)
    it.write("wrong-role-key")
    it = made()
    it.keys["snapshot"] = it.keys["targets"]
    it.sign("targets", it.targets)
    content = it.targets.to_bytes(SERIALIZER)
    it.timestamp.signed.snapshot_meta = MetaFile.from_data(1, content, ["sha256"])
    it.sign("timestamp", it.timestamp)
    it.files["timestamp.json"] = it.timestamp.to_bytes(SERIALIZER)
    it.files["1.snapshot.json"] = content
    it.write("wrong-role")


def duplicate_key_ids():
    """The root names one key twice, so that one signature would count for two."""
    it = Repository()
    it.root.signed.roles["timestamp"].threshold = 2
    it.sign_root()
    trusted = it.roots[0]

    def twice(root):
        key = root.roles["timestamp"].keyids[0]
        root.roles["timestamp"].keyids = [key, key]

    # The reference implementation refuses to read such a role, and writes one all the same.
    it.rotate(twice, it.keys["root"])
    it.release()
    it.roots[0] = trusted
    it.write("duplicate-key-ids")

    def renamed(root):
        key = root.keys.pop(root.roles["timestamp"].keyids[0])
        key.keyid = "00" * 32
        root.keys[key.keyid] = key
        root.roles["timestamp"].keyids = [key.keyid]

    it = made()
    it.rotate(renamed, it.keys["root"])
    it.write("mismatched-key-ids")


def rotations():
    def replace(role, signer):
        def change(root):
            root.revoke_key(root.roles[role].keyids[0], role)
            root.add_key(signer.public_key, role)

        return change

    it = made()
    new = CryptoSigner.generate_ed25519()
    it.rotate(replace("root", new), [*it.keys["root"], new])
    it.write("rotated")
    it = made()
    it.rotate(replace("root", new), it.keys["root"])
    it.write("rotated-by-old-keys-only")
    it = made()
    it.rotate(replace("root", new), [new])
    it.write("rotated-by-new-keys-only")
    it = made()

    def skip(root):
        root.version = 3

    it.rotate(skip, it.keys["root"])
    it.write("skipped-root")
    # The old timestamp key was stolen and replaced; the thief signs once more.
    it = made()
    it.write("revoked-key.before")
    it.rotate(replace("timestamp", new), it.keys["root"])
    it.timestamp.signed.version = 2
    it.files = {}
    it.release()
    it.write("revoked-key")
    # The thief had signed a very high version before; the new keys may begin again below it.
    it = made()
    it.timestamp.signed.version = 1 << 40
    it.release()
    it.write("fast-forward-recovered.before")
    it.rotate(replace("timestamp", new), it.keys["root"])
    it.keys["timestamp"] = [new]
    it.timestamp.signed.version = 2
    it.files = {}
    it.release()
    it.write("fast-forward-recovered")


good()
expired()
rolled_back()
rolled_back_snapshot()
rolled_back_targets()
mixed()
other_bytes()
wrong_keys()
duplicate_key_ids()
rotations()

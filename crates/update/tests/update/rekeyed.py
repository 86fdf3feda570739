"""Gives repositories of The Update Framework Ed25519 keys, the only ones whose signatures our client verifies.

Keys, their IDs, signatures and hashes are replaced one by one: a valid one by a valid one, and a wrong one stays wrong.
Everything else stays as it is.
"""

import hashlib
import json

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding
from securesystemslib.formats import encode_canonical

SHA256 = hashes.SHA256()
PSS = padding.PSS(padding.MGF1(SHA256), padding.PSS.AUTO)


class Members(dict):
    """A JSON object that has not lost the members with one name."""

    def __init__(self, pairs):
        super().__init__(pairs)
        self.doubled = [name for at, (name, _) in enumerate(pairs) if name in dict(pairs[:at])]


def text(value):
    if isinstance(value, dict):
        members = [f"{json.dumps(name)}:{text(item)}" for name, item in value.items()]
        doubled = getattr(value, "doubled", [])
        members += [f"{json.dumps(name)}:{text(value[name])}" for name in doubled]
        return "{" + ",".join(members) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(text, value)) + "]"
    return json.dumps(value)


def key_id(key):
    return hashlib.sha256(encode_canonical(key).encode()).hexdigest()


def load_public(key):
    public = key["keyval"]["public"]
    if key["keytype"] == "ed25519":
        return ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(public))
    # The roots of Sigstore have both spellings of such a key.
    if public.startswith("-----"):
        return serialization.load_pem_public_key(public.encode())
    return ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), bytes.fromhex(public))


def is_valid(key, payload, signature):
    public, signature = load_public(key), bytes.fromhex(signature)
    arguments = {"ed25519": [], "rsa": [PSS, SHA256]}.get(key["keytype"], [ec.ECDSA(SHA256)])
    try:
        public.verify(signature, payload, *arguments)
    except InvalidSignature:
        return False
    return True


class Keys:
    """The keys of one repository, and what replaces them."""

    def __init__(self):
        self.old = {}
        self.new = {}
        self.names = {}

    def replace(self, name, key):
        """Returns the name and the key that replace these. One key always has one replacement."""
        self.old.setdefault(name, key)
        if name not in self.new:
            self.new[name] = ed25519.Ed25519PrivateKey.generate()
        public = self.new[name].public_key().public_bytes_raw().hex()
        fresh = {"keytype": "ed25519", "scheme": "ed25519", "keyval": {"public": public}}
        # A name that is not the hash of its key stays so.
        self.names[name] = key_id(fresh) if key_id(key) == name else name
        return self.names[name], fresh

    def replace_all(self, holder, roles):
        keys = holder["keys"]
        replaced = [self.replace(name, key) for name, key in keys.items()]
        doubled = [self.names[name] for name in keys.doubled]
        holder["keys"] = Members(replaced)
        holder["keys"].doubled = doubled
        for role in roles:
            role["keyids"] = [self.names.get(name, name) for name in role["keyids"]]

    def private(self, public):
        """The private key that replaces one with this public part, if the repository has that one."""
        for name, key in self.old.items():
            if load_public(key) == public:
                return self.new[name]
        return None

    def sign(self, document, before):
        payload = encode_canonical(document["signed"]).encode()
        for signature in document["signatures"]:
            name = signature["keyid"]
            signature["keyid"] = self.names.get(name, name)
            if name in self.old and is_valid(self.old[name], before, signature["sig"]):
                signature["sig"] = self.new[name].sign(payload).hex()


class Repository:
    def __init__(self, metadata):
        self.keys = Keys()
        self.files = {path.name: path.read_bytes() for path in sorted(metadata.glob("*.json"))}
        self.done = {}

    def file(self, role, version):
        """The file of a document, whether its name has a version or not."""
        names = [f"{version}.{role}", role]
        return next((name for name in names if name in self.files), None)

    def convert(self, name, change):
        if name not in self.done:
            document = json.loads(self.files[name], object_pairs_hook=Members)
            before = encode_canonical(document["signed"]).encode()
            change(document["signed"])
            self.keys.sign(document, before)
            self.done[name] = text(document).encode()

    def convert_root(self, signed):
        self.keys.replace_all(signed, signed["roles"].values())

    def convert_list(self, signed):
        """A timestamp or a snapshot, which names other documents with their bytes."""
        # The targets have the keys of the documents that they delegate to.
        for role in sorted(signed["meta"], key=lambda role: (role != "targets.json", role)):
            entry = signed["meta"][role]
            name = self.file(role, entry["version"])
            if name is None or name.endswith("root.json"):
                continue
            self.convert(name, self.convert_list if role == "snapshot.json" else self.convert_targets)
            old, new = self.files[name], self.done[name]
            if entry.get("length") == len(old):
                entry["length"] = len(new)
            if entry.get("hashes", {}).get("sha256") == hashlib.sha256(old).hexdigest():
                entry["hashes"]["sha256"] = hashlib.sha256(new).hexdigest()

    def convert_targets(self, signed):
        if delegations := signed.get("delegations"):
            self.keys.replace_all(delegations, delegations["roles"])

    def convert_all(self):
        for name in self.files:
            if name.endswith("root.json"):
                self.convert(name, self.convert_root)
        if "timestamp.json" in self.files:
            self.convert("timestamp.json", self.convert_list)

#!/usr/bin/env python3
"""linuxkit.py FILE: reads a file for `linuxkit build` with PyYAML and compares it with the members that LinuxKit knows
(its documentation of the YAML format). Prints `fine` or the first mistake."""
import sys

import jsonschema_rs
import yaml

TEXT, FLAG, COUNT = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}
RIGHTS = {"type": "array", "items": {"type": "string", "pattern": "^CAP_[A-Z_]+$"}}
REFERENCE = {"type": "string", "pattern": "^([a-z0-9]+/)?[a-z0-9]+:[a-zA-Z0-9._-]+$"}


def record(required, **members):
    """An object that has no other members than these."""
    return {"type": "object", "properties": members, "required": required.split(), "additionalProperties": False}


def several(item):
    return {"type": "array", "items": item, "minItems": 1}


RUNS = {
    "capabilities": RIGHTS,
    "ambient": RIGHTS,
    "binds": several({"type": "string", "pattern": "^/[^:]+:/[^:]+$"}),
    "command": several(TEXT),
    "env": several(TEXT),
    "net": {"enum": ["host", "new", "none"]},
    "uid": COUNT,
    "gid": COUNT,
    "readonly": FLAG,
    "noNewPrivileges": FLAG,
    "runtime": record("", mkdir=several(TEXT)),
}
CONTAINER = record("name image", name={"type": "string", "pattern": "^[a-z]+$"}, image=REFERENCE, **RUNS)
FILE = record(
    "kernel init services",
    kernel=record("image", image=REFERENCE, cmdline=TEXT, binary=TEXT, tar=TEXT),
    init=several(REFERENCE),
    onboot=several(CONTAINER),
    services=several(CONTAINER),
)

machine = yaml.safe_load(open(sys.argv[1], encoding="utf-8"))
jsonschema_rs.validate(FILE, machine)
names = [part["name"] for part in machine.get("onboot", []) + machine["services"]]
assert len(names) == len(set(names)), f"a name twice: {names}"
print("fine")

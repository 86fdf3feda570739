#!/usr/bin/env python3
"""terraform.py FILE...: reads configurations of Terraform with python-hcl2, and looks for the block to which each name
leads. Prints `fine` or the first mistake."""
import re
import sys

import hcl2

# What Terraform itself declares.
OWN_NAMES = {"count", "each", "local", "path", "self", "terraform"}
QUOTED = re.compile(r'"(?:[^"\\]|\\.)*"')
REFERENCE = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")


def texts(value):
    """Every text of a parsed configuration, without comments."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from texts(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            if not name.startswith("__"):
                yield from texts(one)


def references(text):
    """The first two parts of each name in an expression. The parser leaves the quotation marks around a text."""
    is_text = text.startswith('"')
    expressions = re.findall(r"\$\{([^}]*)\}", text) if is_text else [QUOTED.sub("", text)]
    for name in (name for one in expressions for name in REFERENCE.findall(one)):
        kind, label = name.split(".")[:2]
        if kind not in OWN_NAMES:
            yield f"{kind}.{label}"


def declared(configuration):
    """`var.NAME` of a variable, and `TYPE.NAME` of a resource."""
    for block in configuration.get("variable", []):
        yield from (f"var.{name}" for name in labels(block))
    for block in configuration.get("resource", []):
        for kind in labels(block):
            yield from (f"{kind}.{name}" for name in labels(block[f'"{kind}"']))


def labels(block):
    return [name.strip('"') for name in block if not name.startswith("__")]


for path in sys.argv[1:]:
    with open(path, encoding="utf-8") as file:
        configuration = hcl2.load(file)
    used = {name for text in texts(configuration) for name in references(text)}
    assert len(used) > 3, f"{path}: few names: {used}"
    unknown = used - set(declared(configuration))
    assert not unknown, f"{path}: no block for {sorted(unknown)}"
print("fine")

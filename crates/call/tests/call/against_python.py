"""Judges documents with Python's json as the protocol asks, and what was made of them.

Reads records: document, verdict (`1`: accepted), type, id, payload, each as u32 and bytes. Prints a
line of JSON for each record that is judged otherwise, and in the end how many were accepted.
"""
import json, re, sys

NESTING = 32
KNOWN = {"call." + name for name in
         ("aborted", "completed", "credit", "error", "goaway", "requested", "responded")}
sys.set_int_max_str_digits(0)


class Refused(Exception):
    pass


def once(pairs):
    members = dict(pairs)
    if len(members) != len(pairs):
        raise Refused("a member twice")
    return members


def no_number(name):
    raise Refused(name)


def loads(text):
    # Numbers as they are written: how much of them a program can hold is its own affair.
    return json.loads(text, object_pairs_hook=once, parse_constant=no_number,
                      parse_int=lambda digits: ("n", digits), parse_float=lambda digits: ("n", digits))


def nesting(value):
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return 0 if inside is None else 1 + max(map(nesting, inside), default=0)


def is_text(value):
    """A string that is Unicode: no half of a surrogate pair."""
    return isinstance(value, str) and not re.search("[\ud800-\udfff]", value)


def judged(document):
    """The event, or why it is not one."""
    if document[:1] != b"{":
        raise Refused("no object")
    try:
        event = loads(document.decode("utf-8", "strict"))
    except (ValueError, RecursionError) as error:
        raise Refused(str(error))
    if not (is_text(event.get("type")) and is_text(event.get("id")) and all(map(is_text, event))):
        raise Refused("type and id")
    if not re.fullmatch(r"[!-~]{1,64}", event["id"]):
        raise Refused("id")
    if nesting(event) > NESTING:
        raise Refused("nesting")
    return event


def difference(document, accepted, kind, id, payload):
    try:
        event = judged(document)
    except Refused as refused:
        return f"accepted, though {refused}" if accepted else None
    if not accepted:
        return "refused"
    if kind.decode() != (event["type"] if event["type"] in KNOWN else ""):
        return "another type"
    if id.decode() != event["id"]:
        return "another id"
    said = event.get("payload")
    if loads(payload.decode()) != ({} if said is None else said):
        return "another payload"
    return None


def records(stream):
    while header := stream.read(4):
        record = [stream.read(int.from_bytes(header, "big"))]
        for _ in range(4):
            record.append(stream.read(int.from_bytes(stream.read(4), "big")))
        yield record


accepted = 0
for document, verdict, *said in records(sys.stdin.buffer):
    accepted += verdict == b"1"
    if why := difference(document, verdict == b"1", *said):
        print(json.dumps({"document": document.decode("latin-1"), "why": why}))
print(json.dumps({"accepted": accepted}))

#!/usr/bin/env python3
"""kubevirt.py FILE...: reads manifests with PyYAML and compares those of KubeVirt's machines with the rules below, which
the authors of this program wrote by the documentation of KubeVirt's API: the values of members, and the names by which one
part refers to another. `kubevirt_types.py` has the API's own types. Prints `fine` or the first mistake."""
import sys

import jsonschema_rs
import yaml

TEXT, FLAG, COUNT, EMPTY = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}, {"type": "object", "maxProperties": 0}


def record(required, **members):
    """An object that has no other members than these."""
    return {"type": "object", "properties": members, "required": required.split(), "additionalProperties": False}


def several(item):
    return {"type": "array", "items": item, "minItems": 1}


METADATA = record("name", name=TEXT, labels={"type": "object", "additionalProperties": TEXT})
TARGET = record("bus", bus={"enum": ["virtio", "sata", "scsi", "usb"]}, readonly=FLAG)
DISK = record("name disk", name=TEXT, disk=TARGET, serial={"type": "string", "maxLength": 20}, bootOrder={"type": "integer", "minimum": 1})
PORT = record("port", name=TEXT, port=COUNT, protocol={"enum": ["TCP", "UDP"]})
INTERFACE = record("name masquerade", name=TEXT, masquerade=EMPTY, ports=several(PORT))
FIRMWARE = record(
    "",
    bootloader=record("efi", efi=record("", secureBoot=FLAG, persistent=FLAG)),
    kernelBoot=record(
        "container",
        kernelArgs=TEXT,
        container=record("image", image=TEXT, kernelPath={"type": "string", "pattern": "^/"}, initrdPath={"type": "string", "pattern": "^/"}),
    ),
)
DOMAIN = record(
    "devices",
    machine=record("type", type={"enum": ["q35"]}),
    cpu=record("", cores=COUNT),
    memory=record("guest", guest={"type": "string", "pattern": "^[0-9]+(Mi|Gi)$"}),
    firmware=FIRMWARE,
    devices=record("disks interfaces", rng=EMPTY, disks=several(DISK), interfaces=several(INTERFACE)),
)
VOLUME = record(
    "name",
    name=TEXT,
    containerDisk=record("image", image=TEXT),
    persistentVolumeClaim=record("claimName", claimName=TEXT),
    secret=record("secretName", secretName=TEXT, volumeLabel=TEXT),
)
MACHINE = record(
    "apiVersion kind metadata spec",
    apiVersion={"const": "kubevirt.io/v1"},
    kind={"const": "VirtualMachine"},
    metadata=METADATA,
    spec=record(
        "template",
        runStrategy={"enum": ["Always", "Halted", "Manual", "Once", "RerunOnFailure"]},
        template=record(
            "spec",
            metadata=record("", labels={"type": "object", "additionalProperties": TEXT}),
            spec=record(
                "domain networks volumes",
                domain=DOMAIN,
                networks=several(record("name pod", name=TEXT, pod=EMPTY)),
                volumes=several(VOLUME),
                terminationGracePeriodSeconds=COUNT,
            ),
        ),
    ),
)


def names(parts):
    listed = [part["name"] for part in parts]
    assert len(listed) == len(set(listed)), f"a name twice: {listed}"
    return set(listed)


def check(machine, others):
    """Members, and names that lead to another part."""
    jsonschema_rs.validate(MACHINE, machine)
    spec = machine["spec"]["template"]["spec"]
    devices = spec["domain"]["devices"]
    assert names(devices["disks"]) == names(spec["volumes"]), "a disk has a volume, and each volume a disk"
    assert names(devices["interfaces"]) == names(spec["networks"]), "an interface has a network"
    for volume in spec["volumes"]:
        kinds = set(volume) - {"name"}
        assert len(kinds) == 1, f"one kind of volume: {kinds}"
        for kind, member, part in [("secret", "secretName", "Secret"), ("persistentVolumeClaim", "claimName", "PersistentVolumeClaim")]:
            if kind in volume:
                assert (part, volume[kind][member]) in others, f"no {part} {volume[kind][member]}"
    assert "alk-data" in [disk.get("serial") for disk in devices["disks"]], "no disk of the data"


documents = [one for path in sys.argv[1:] for one in yaml.safe_load_all(open(path, encoding="utf-8"))]
others = {(one["kind"], one["metadata"]["name"]): one for one in documents}
machines = [one for one in documents if one["kind"] == "VirtualMachine"]
assert len(machines) == len(sys.argv) - 1, "each file has a machine"
for machine in machines:
    check(machine, others)
for volume in machines[0]["spec"]["template"]["spec"]["volumes"]:
    if "secret" in volume:
        assert {"user-data", "meta-data"} == set(others["Secret", volume["secret"]["secretName"]]["stringData"]), "NoCloud has two files"
selected = others["Service", "alknet"]["spec"]["selector"]
assert selected.items() <= machines[0]["spec"]["template"]["metadata"]["labels"].items(), "the service selects the machine"
print("fine")

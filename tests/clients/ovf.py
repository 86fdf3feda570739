"""Prints as JSON what the Common OVF Tool (COT) reads in an OVA, and what it finds wrong there.

Arguments: the archive, and the name of the disk in it. COT is by other authors.
"""

import json
import logging
import sys

# COT uses distutils, which Python 3.12 and later do not have. Setuptools provides the module.
import setuptools  # noqa: F401
from COT.vm_description.ovf.ovf import OVF


class Sha256Ovf(OVF):
    """COT expects SHA-1 in each package of OVF 1.x. VMware's tool has written SHA-256 there since 2016."""

    checksum_algorithm = "sha256"


class Findings(logging.Handler):
    """Keeps each warning and each error of COT."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.texts = []

    def emit(self, record):
        self.texts.append(record.getMessage())


def facts(archive, disk_name):
    """What COT reads, once it has compared sizes and hashes."""
    machine = Sha256Ovf(archive, None)
    try:
        machine.validate_hardware()
        hardware = machine.hardware

        def value(kind, name):
            return hardware.find_item(kind).get_value(name, [None])

        _, disk, controller, drive = machine.search_from_filename(disk_name)
        return {
            "product": machine.product,
            "version": machine.version_short,
            "processors": value("cpu", machine.VIRTUAL_QUANTITY),
            "mebibytes": value("memory", machine.VIRTUAL_QUANTITY),
            "cards": hardware.get_item_count("ethernet", None),
            "card": value("ethernet", machine.RESOURCE_SUB_TYPE),
            "network": value("ethernet", machine.CONNECTION),
            "networks": machine.networks,
            "disk": None if disk is None else disk.get(machine.DISK_CAPACITY),
            "controller": None if controller is None else controller.hardware_type,
            "drive": None if drive is None else drive.hardware_type,
        }
    finally:
        machine.destroy()


def main():
    findings = Findings()
    logging.getLogger().addHandler(findings)
    try:
        found = facts(*sys.argv[1:])
    except Exception as error:  # Each of COT's errors is a verdict.
        found = {}
        findings.texts.append(f"{type(error).__name__}: {error}")
    print(json.dumps({"findings": findings.texts, **found}))


main()

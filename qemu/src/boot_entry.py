# Gives the firmware's boot entries for disks a command line: `boot_entry.py VARIABLES LINE`. With a partition and a path,
# they start this file of it: `boot_entry.py VARIABLES LINE GUID FIRST COUNT PATH`, in blocks of 512 bytes.
import re
import sys

from virt.firmware.efi import bootentry, devpath, ucs16
from virt.firmware.varstore import autodetect

file, line, *place = sys.argv[1:]
store = autodetect.open_varstore(file)
variables = store.get_varlist()
changed = 0
for name, variable in variables.items():
    if not re.fullmatch("Boot[0-9A-F]{4}", name):
        continue
    entry = bootentry.BootEntry(data=variable.data)
    # The firmware's own programs lie in its own volume.
    if "Fv" in str(entry.devicepath):
        continue
    if place:
        guid, first, count, path = place
        partition = devpath.DevicePathElem()
        partition.set_gpt(2, int(first), int(count), guid)
        # A path that begins with a partition is a short form, which the firmware completes (UEFI 2.10 section 3.1.2).
        entry.devicepath = devpath.DevicePath.filepath(path)
        entry.devicepath.insert(0, partition)
    entry.optdata = bytes(ucs16.from_string(line))
    variable.data = bytes(entry)
    changed += 1
if not changed:
    sys.exit("no boot entry of a disk: the firmware writes them at its first start")
store.write_varstore(file, variables)

# Gives the firmware's boot entries for disks a command line: `boot_entry.py VARIABLES LINE`.
import re
import sys

from virt.firmware.efi import bootentry, ucs16
from virt.firmware.varstore import autodetect

file, line = sys.argv[1:]
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
    entry.optdata = bytes(ucs16.from_string(line))
    variable.data = bytes(entry)
    changed += 1
if not changed:
    sys.exit("no boot entry of a disk: the firmware writes them at its first start")
store.write_varstore(file, variables)

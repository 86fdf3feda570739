"""Gives the repositories of tough's tests to our client.

python3 tough.py DATA FOLDER

DATA is the folder of the repositories. Each becomes a folder of FOLDER with Ed25519 keys: metadata/, targets/ and
bootstrap.json, its first root. published.json is that root as tough has it. The script prints the names.
"""

import shutil
import sys
from pathlib import Path

from rekeyed import Repository

DATA, FOLDER = map(Path, sys.argv[1:])

for folder in sorted(DATA.iterdir()):
    metadata = folder / "metadata" if (folder / "metadata").exists() else folder
    roots = [name for name in ("1.root.json", "root.json") if (metadata / name).exists()]
    if not roots:
        continue
    repository = Repository(metadata)
    repository.convert_all()
    to = FOLDER / folder.name
    (to / "metadata").mkdir(parents=True)
    for name, document in repository.done.items():
        (to / "metadata" / name).write_bytes(document)
    (to / "bootstrap.json").write_bytes(repository.done[roots[0]])
    (to / "published.json").write_bytes(repository.files[roots[0]])
    if (folder / "targets").exists():
        shutil.copytree(folder / "targets", to / "targets")
    print(folder.name)
